"""When a failed call is made again."""

from __future__ import annotations

import random
from collections.abc import Callable

from embedserve.client.failures import Failure
from embedserve.errors import Unavailable

_UNAVAILABLE_ATTEMPTS = 5


def pause_s(
    failure: Failure,
    attempt: int,
    remaining_s: float,
    jitter: Callable[[], float] = random.random,
    *,
    patient: bool = False,
) -> float | None:
    """How long to wait before the next attempt, in seconds; None: give up.

    The pause doubles with each attempt up to 16 times what the server asked for, plus up to half at random, so that
    clients that were refused at the same time do not come back at the same time.

    Args:
        failure: of the last attempt.
        attempt: its number, from 1.
        remaining_s: time until the deadline of the call.
        jitter: gives a random number in [0, 1).
        patient: wait for an unreachable server as long as time remains.
    """
    if failure.retry_after_s is None:
        return None
    if isinstance(failure.error, Unavailable) and attempt >= _UNAVAILABLE_ATTEMPTS and not patient:
        # About two seconds bridge a restart; a server that does not run should be reported, not waited for.
        return None
    pause_s = failure.retry_after_s * 2 ** min(attempt - 1, 4) * (1 + jitter() / 2)
    return pause_s if pause_s < remaining_s else None
