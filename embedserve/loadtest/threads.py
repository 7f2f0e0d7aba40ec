"""The closed loop for functions that block, as those of a library in this process do: each client is a thread."""

from __future__ import annotations

import contextlib
import threading
import time
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from embedserve.loadtest.measurements import Measurements, Reply

Call = Callable[[int], int]
"""Makes the call with this number, from 0 for each client; the images, queries or items that were answered."""


def threaded_closed_loop(
    make_client: Callable[[int], Call],
    clients: int,
    seconds: float,
    *,
    warmup_s: float = 0,
    begin_unix_s: float = 0,
) -> Measurements:
    """Threads that each make their next call when the previous one is over.

    A call that is in flight when the window ends is waited for. Each thread records its own times, so that
    measuring slows the calls least.

    Args:
        make_client: number of a client, from 0 → its calls. Called in the client's thread, before any call is made.
        clients: threads.
        seconds: length of the measured window.
        warmup_s: seconds of load before it.
        begin_unix_s: when to begin, in seconds since 1970, so that several processes begin together.

    Raises:
        Exception: the first one that a client raised.
    """
    began_s = [0.0]

    def begin() -> None:
        began_s[0] = time.perf_counter()

    ready = threading.Barrier(clients + 1, action=begin)  # the clock starts when all clients are ready

    def work(number: int) -> tuple[array[float], array[float], array[int]]:
        try:
            call = make_client(number)
        except BaseException:
            ready.abort()
            raise
        sent_s, done_s, answered = array("d"), array("d"), array("I")
        ready.wait()
        from_s = began_s[0] + warmup_s
        made, is_measured = 0, False
        while True:
            before_s = time.perf_counter()
            if is_measured and before_s >= from_s + seconds:  # a call that began now would be outside the window
                return sent_s, done_s, answered
            count = call(made)
            sent_s.append(before_s)
            done_s.append(time.perf_counter())
            answered.append(count)
            made += 1
            is_measured = before_s >= from_s

    with ThreadPoolExecutor(clients) as pool:
        futures = [pool.submit(work, number) for number in range(clients)]
        time.sleep(max(begin_unix_s - time.time(), 0.0))
        with contextlib.suppress(threading.BrokenBarrierError):
            ready.wait()
    failures = [error for future in futures if (error := future.exception()) is not None]
    # One client that cannot begin breaks the barrier of the others; its own error comes first.
    for error in sorted(failures, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    measured = Measurements(warmup_s=warmup_s, seconds=seconds)
    for future in futures:
        for sent_s, done_s, count in zip(*future.result(), strict=True):
            sent_s -= began_s[0]
            measured.add(due_s=sent_s, sent_s=sent_s, done_s=done_s - began_s[0], outcome=Reply(images=count))
    return measured
