"""Lines of the log on their way to standard error: a bounded queue, and a thread that writes.

Code that logs never waits for the reader of standard error, such as a stopped terminal or a pipe that nobody reads.
What does not fit the queue is dropped, counted, and reported once there is room again.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

MAX_LINES = 10_000
MAX_CHARS = 8 << 20
_BATCH_CHARS = 1 << 16


class LogLines:
    """Writes lines to a descriptor, in order, from a thread of its own.

    Args:
        descriptor: written to, and never closed here.
        dropped_line: the line that says how many were dropped.
    """

    def __init__(self, descriptor: int, dropped_line: Callable[[int], str]) -> None:
        self._descriptor = descriptor
        self._dropped_line = dropped_line
        self._lines: deque[str] = deque()
        self._chars = 0
        self._unreported = 0
        self._is_writing = False
        self._is_closed = False
        self._tick: tuple[float, Callable[[], None]] | None = None
        self._changed = threading.Condition()  # reentrant: a finalizer may log in the middle of this
        self.dropped = 0
        """Lines that did not fit, since the start."""
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def put(self, line: str) -> None:
        """Write a line soon; never waits. A line that does not fit is counted instead."""
        with self._changed:
            if self._is_closed:
                return
            if len(self._lines) >= MAX_LINES or self._chars + len(line) > MAX_CHARS:
                self.dropped += 1
                self._unreported += 1
                return
            self._lines.append(line)
            self._chars += len(line)
            self._changed.notify_all()

    def call_after(self, seconds: float, action: Callable[[], None]) -> None:
        """Have the thread call ``action`` once, after this time; the last wish counts."""
        with self._changed:
            self._tick = (time.monotonic() + seconds, action)
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything has been written; False if that took longer."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._lines and not self._is_writing, timeout_s)

    def close(self, timeout_s: float) -> None:
        """Write what is queued, but for no longer than this, and end the thread."""
        is_written = self.flush(timeout_s)
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if is_written:
            self._thread.join()

    def _run(self) -> None:
        while True:
            action = None
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
                while not ((action := self._due()) or self._lines or self._is_closed):
                    self._changed.wait(None if self._tick is None else max(0.0, self._tick[0] - time.monotonic()))
                if self._is_closed and not self._lines:
                    return
                text = self._take()
                self._is_writing = bool(text)
            if action is not None:
                action()
            if text:
                with suppress(OSError):  # nobody reads it any more, which changes nothing else
                    self._write(text.encode("utf-8", "backslashreplace"))

    def _due(self) -> Callable[[], None] | None:
        if self._tick is None or time.monotonic() < self._tick[0]:
            return None
        action, self._tick = self._tick[1], None
        return action

    def _take(self) -> str:
        taken: list[str] = []
        chars = 0
        while self._lines and chars < _BATCH_CHARS:
            taken.append(self._lines.popleft())
            chars += len(taken[-1])
        self._chars -= chars
        if self._unreported:
            taken.append(self._dropped_line(self._unreported))
            self._unreported = 0
        return "".join(f"{line}\n" for line in taken)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                written = os.write(self._descriptor, view)
            except BlockingIOError:  # who started us made it non-blocking
                select.select([], [self._descriptor], [])
            else:
                view = view[written:]
