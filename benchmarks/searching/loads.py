"""Searches by threads in a closed loop, and what a system finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedserve.loadtest import Measurements, threaded_closed_loop
from searching.system import CORES, Client, K


def search_loop(
    make_client: Callable[[int], Client],
    queries: NDArray[np.float32],
    *,
    clients: int,
    per_call: int,
    warmup_s: float,
    seconds: float,
    at: float = 0.0,
) -> Measurements:
    """Search with threads, each of which makes its next call when the previous one is answered.

    Args:
        make_client: number of threads that a call may use → what one thread searches with.
        queries: float32 [Q, D], asked in rotation; each client begins at another one.
        clients: threads.
        per_call: queries in a call.
        warmup_s: seconds of load before the measured window.
        seconds: length of the window.
        at: when to begin, in seconds since 1970, so that several processes begin together.

    Returns:
        Measurements in which queries are counted as images.
    """

    def client(number: int) -> Callable[[int], int]:
        search = make_client(CORES if per_call > 1 and clients == 1 else 1)
        first = number * len(queries) // clients

        def call(made: int) -> int:
            start = (first + made * per_call) % len(queries)
            asked = queries[start : start + per_call]  # a view: this is part of the measured time
            if len(asked) < per_call:
                asked = queries[np.arange(start, start + per_call) % len(queries)]
            search(asked)
            return per_call

        return call

    return threaded_closed_loop(client, clients, seconds, warmup_s=warmup_s, begin_unix_s=at)


def to_json(measured: Measurements) -> dict[str, Any]:
    """Queries/s, the milliseconds of each call, and the queries of the whole run.

    If every call takes longer than the window, the milliseconds are those of all calls.
    """
    taken_ms = measured.latencies_ms()
    if not len(taken_ms):
        taken_ms = measured.latencies_ms(whole_run=True)
    return {
        "qps": measured.steady_images_per_s,
        "taken_ms": [round(float(taken), 3) for taken in taken_ms],
        "queries": measured.all_images,
    }


def found_by(make_client: Callable[[int], Client], queries: NDArray[np.float32], per_call: int) -> NDArray[np.int64]:
    """The rows that the system finds for each query, int64 [Q, 10]; −1 where it finds fewer."""
    search = make_client(CORES)
    found = np.full((len(queries), K), -1, np.int64)
    for start in range(0, len(queries), per_call):
        answer = search(queries[start : start + per_call])
        found[start : start + per_call, : answer.shape[1]] = answer
    return found
