"""Counts who is using something, so that it is closed when the last one has left."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class CloseGuard:
    """Open until ``close``."""

    def __init__(self) -> None:
        self._inside = 0
        self._closed = False
        self._changed = threading.Condition()

    @property
    def closed(self) -> bool:
        """True from the moment that ``close`` is called; who takes long inside looks at it now and then."""
        return self._closed

    @contextmanager
    def entered(self) -> Iterator[bool]:
        """Inside for the block if the gate is open; the block is told whether it is."""
        with self._changed:
            admitted = not self._closed
            self._inside += admitted
        try:
            yield admitted
        finally:
            with self._changed:
                self._inside -= admitted
                self._changed.notify_all()

    def close(self) -> None:
        """Admit nobody from now on, and wait until everybody has left."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: self._inside == 0)
