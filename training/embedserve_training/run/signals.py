"""Ctrl-C and SIGTERM as a wish to stop, which a run fulfils after the step that it is taking."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def stop_on_signals(report: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Within the block the first SIGINT or SIGTERM asks for a stop after the step; a second one acts as usual.

    Only the main thread may set signal handlers; elsewhere nothing asks for a stop.

    Args:
        report: takes a line for a person when a stop is asked for.

    Yields:
        Whether a stop is wanted.
    """
    wanted: signal.Signals | None = None
    said = False
    handlers: dict[int, Any] = {}

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal wanted
        wanted = signal.Signals(number)
        for signal_number, handler in handlers.items():
            signal.signal(signal_number, handler)

    def is_wanted() -> bool:
        nonlocal said
        # Said here and not in the handler, which may have interrupted another print.
        if wanted is not None and not said:
            said = True
            report(f"{wanted.name}: stopping after this step; the same line goes on from there")
        return wanted is not None

    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield is_wanted
    finally:
        for signal_number, handler in handlers.items():
            signal.signal(signal_number, handler)
