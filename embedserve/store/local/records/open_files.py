"""Limits how many connections to SQLite files the collections of a store hold open together.

A connection takes two descriptors, of the database and its log. For a new one the idle connections of the collection
that was used least recently are closed; it opens its files again when it is used. Connections in use stay open.
"""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Callable

_MOST = 256
"""Maximum number of connections, whatever the limit on descriptors: each has a page cache of up to 2 MB."""
_LEAST = 16
_SHARE = 8
"""The store takes a quarter of the descriptors, two for each connection; the rest is for callers and segments."""


def most_connections() -> int:
    """How many connections a store holds, by the soft limit on the descriptors of this process."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST if soft == resource.RLIM_INFINITY else max(_LEAST, min(_MOST, soft // _SHARE))


class OpenFiles:
    """The connections of all collections of a store.

    Args:
        most: maximum number of connections; more are open only while more are in use at the same time.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: dict[ConnectionCount, int] = {}
        """Number of open connections of each collection that has any."""
        self._lock = threading.Lock()

    @property
    def connections(self) -> int:
        """Number of open connections."""
        return sum(self._open.values())

    def add(self, count: ConnectionCount) -> None:
        """One more connection is about to be opened; idle ones of other collections make room for it."""
        with self._lock:
            self._open[count] = self._open.get(count, 0) + 1
            excess = self.connections - self._most
            if excess <= 0:
                return
            others = sorted((other for other in self._open if other is not count), key=lambda other: other.used_s)
        for other in others:
            excess -= other.close_idle()
            if excess <= 0:
                return

    def remove(self, count: ConnectionCount) -> None:
        """A connection was closed."""
        with self._lock:
            self._open[count] -= 1
            if not self._open[count]:
                del self._open[count]


class ConnectionCount:
    """The connections of one collection.

    Args:
        open_files: of the store.
        close_idle: closes those that are not in use, and returns how many; called while another collection is used.
    """

    def __init__(self, open_files: OpenFiles, close_idle: Callable[[], int]) -> None:
        self._open_files = open_files
        self.close_idle = close_idle
        self.used_s = time.monotonic()
        """When a connection was last taken; monotonic. Set by those that take one."""

    def opening(self) -> None:
        """Count a connection, before it is opened."""
        self._open_files.add(self)

    def closed(self) -> None:
        """Count one less, after it was closed or could not be opened."""
        self._open_files.remove(self)
