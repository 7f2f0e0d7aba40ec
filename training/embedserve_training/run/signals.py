"""SIGINT and SIGTERM as a request to stop after the current step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def stop_on_signals(report: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Within the block the first SIGINT or SIGTERM requests a stop after the step; a second one acts as usual.

    Only the main thread may set signal handlers; in other threads no stop is ever requested.

    Args:
        report: called with a line of text when a stop is requested.

    Yields:
        A function that returns whether a stop is requested.
    """
    received: signal.Signals | None = None
    reported = False
    handlers: dict[int, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = signal.Signals(number)
        for signal_number, handler in handlers.items():
            signal.signal(signal_number, handler)

    def is_requested() -> bool:
        nonlocal reported
        # Reported here and not in the handler, which may interrupt another print.
        if received is not None and not reported:
            reported = True
            report(f"{received.name}: stopping after this step; the same command continues from there")
        return received is not None

    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield is_requested
    finally:
        for signal_number, handler in handlers.items():
            signal.signal(signal_number, handler)
