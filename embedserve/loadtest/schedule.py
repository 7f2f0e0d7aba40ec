"""When the calls of an open loop are due: at times that do not depend on the answers."""

from __future__ import annotations

import random
from collections.abc import Iterator


def poisson(rate: float, seconds: float, seed: int = 0) -> Iterator[float]:
    """Random times at which calls are due: seconds from the start, ascending, below ``seconds``; fixed by the seed.

    The pauses between them are exponential with mean 1 / rate, as of many independent callers. Evenly spaced calls
    would never meet in the queue, and would measure a server at its best.

    Raises:
        ValueError: the rate is not positive.
    """
    _check(rate)
    pauses = random.Random(seed)
    due_s = pauses.expovariate(rate)
    while due_s < seconds:
        yield due_s
        due_s += pauses.expovariate(rate)


def steady(rate: float, seconds: float) -> Iterator[float]:
    """Evenly spaced times at which calls are due: seconds from the start, from 0 to below ``seconds``.

    Raises:
        ValueError: the rate is not positive.
    """
    _check(rate)
    return (number / rate for number in range(int(rate * seconds)))


def _check(rate: float) -> None:
    if not rate > 0:
        raise ValueError(f"the rate is {rate}; it must be above 0")
