"""Counts the users of something, so that it is closed only after the last one has left."""

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
        """True as soon as ``close`` is called; long users check it now and then."""
        return self._closed

    @contextmanager
    def entered(self) -> Iterator[bool]:
        """Inside for the block if the guard is open; yields whether it is."""
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
        """Admit no more users, and wait until all have left."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: self._inside == 0)
