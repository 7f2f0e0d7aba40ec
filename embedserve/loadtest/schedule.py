"""When the calls of an open loop are due: at times that do not depend on the answers."""

from __future__ import annotations

import random
from collections.abc import Iterator


def poisson(rate: float, seconds: float, seed: int = 0) -> Iterator[float]:
    """Seconds from the start at which calls are due, ascending and below ``seconds``; the same ones for each seed.

    The pauses between them are exponential with mean 1 / rate: what many callers that know nothing of each other
    make together. Evenly spaced calls would never meet in the queue, so they would measure a server at its best.

    Raises:
        ValueError: the rate is not positive.
    """
    if not rate > 0:
        raise ValueError(f"the rate is {rate}; it has to be above 0")
    pauses = random.Random(seed)
    due_s = pauses.expovariate(rate)
    while due_s < seconds:
        yield due_s
        due_s += pauses.expovariate(rate)
