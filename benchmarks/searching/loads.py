"""Closed loops of threads: each makes its next call when it has the answer to the one before."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from searching.system import CORES, Client, K


@dataclass
class Calls:
    """The calls of one thread that count, one after the other without a pause."""

    taken_ms: list[float] = field(default_factory=list)
    begun: float = 0.0
    ended: float = 0.0

    def add(self, begun: float, ended: float) -> None:
        """One more call, by ``time.perf_counter``."""
        if not self.taken_ms:
            self.begun = begun
        self.ended = ended
        self.taken_ms.append(round(1000 * (ended - begun), 3))

    def per_second(self) -> float:
        """Calls per second from the begin of the first to the end of the last."""
        return len(self.taken_ms) / (self.ended - self.begun) if self.taken_ms else 0.0

    def to_json(self, per_call: int) -> dict[str, Any]:
        """Queries per second, and the milliseconds of each call."""
        return {"qps": per_call * self.per_second(), "taken_ms": self.taken_ms}


def closed_loop(
    make_client: Callable[[int], Client],
    queries: NDArray[np.float32],
    *,
    clients: int,
    per_call: int,
    warmup_s: float,
    seconds: float,
    at: float = 0.0,
) -> dict[str, Any]:
    """Search with so many threads at once.

    Args:
        make_client: number of threads that a call may use → what one thread searches with.
        queries: float32 [Q, D], taken in turn; each client begins elsewhere.
        clients: how many threads.
        per_call: queries in a call.
        warmup_s: before calls count.
        seconds: while they count; a call that is under way at the end counts whole, and so does its time.
        at: when to begin, in seconds since 1970, so that several processes do so together.

    Returns:
        ``qps`` and ``taken_ms`` of the calls that count, ``queries`` of all that were made.
    """
    ready = threading.Barrier(clients + 1)

    def work(number: int) -> tuple[Calls, int]:
        try:
            search = make_client(CORES if per_call > 1 and clients == 1 else 1)
        except BaseException:
            ready.abort()
            raise
        position, made, calls = number * len(queries) // clients, 0, Calls()
        ready.wait()
        counted_from = begin[0] + warmup_s
        while True:
            rows = np.arange(position, position + per_call) % len(queries)
            asked = queries[rows]
            started = time.perf_counter()
            search(asked)
            ended = time.perf_counter()
            made += per_call
            position += per_call
            if started >= counted_from:
                calls.add(started, ended)
                if ended >= counted_from + seconds:
                    return calls, made

    begin = [0.0]
    with ThreadPoolExecutor(clients) as pool:
        futures = [pool.submit(work, number) for number in range(clients)]
        time.sleep(max(at - time.time(), 0.0))
        begin[0] = time.perf_counter()
        with contextlib.suppress(threading.BrokenBarrierError):
            ready.wait()
    failures = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(failures, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error  # the one for which the others did not begin
    done = [future.result() for future in futures]
    return {
        "qps": sum(calls.per_second() for calls, _ in done) * per_call,
        "taken_ms": [taken for calls, _ in done for taken in calls.taken_ms],
        "queries": sum(made for _, made in done),
    }


def found_by(make_client: Callable[[int], Client], queries: NDArray[np.float32], per_call: int) -> NDArray[np.int64]:
    """What the system finds for each query, int64 [Q, 10]; −1 where it finds fewer."""
    search = make_client(CORES)
    found = np.full((len(queries), K), -1, np.int64)
    for start in range(0, len(queries), per_call):
        answer = search(queries[start : start + per_call])
        found[start : start + per_call, : answer.shape[1]] = answer
    return found
