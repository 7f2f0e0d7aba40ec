"""Threads that work concurrently until one fails or the time is over."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def run_threads(*workers: Callable[[threading.Event], Any], seconds: float) -> list[Any]:
    """Run each worker in a thread until one fails or the time is over; their results."""
    stop = threading.Event()

    def guarded(worker: Callable[[threading.Event], Any]) -> Any:
        try:
            return worker(stop)
        except BaseException:
            stop.set()
            raise

    with ThreadPoolExecutor(len(workers)) as pool:
        futures = [pool.submit(guarded, worker) for worker in workers]
        stop.wait(seconds)
        stop.set()
        return [future.result() for future in futures]
