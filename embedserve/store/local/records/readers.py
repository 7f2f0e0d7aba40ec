"""A pool of connections for reading."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

from embedserve.store.local.records.database import connect, translate_errors
from embedserve.store.local.records.open_files import ConnectionCount
from embedserve.wanted import ALWAYS, Wanted

_KEPT = 16
"""Maximum number of idle connections; each takes two descriptors and a page cache of about 2 MB."""
_STEPS = 100_000
"""Instructions of SQLite's virtual machine, about 10 ms, after which a statement is ended that began at the moment at
which it was interrupted. Each look needs the interpreter lock, so there are few."""


class Readers:
    """Read transactions on one database; readers and the writer never wait for each other.

    Args:
        path: of the database.
        count: of the connections of its collection.
    """

    def __init__(self, path: Path, count: ConnectionCount) -> None:
        self._path = path
        self._count = count
        self._idle: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._closed = False

    @contextmanager
    def transaction(self, wanted: Wanted = ALWAYS) -> Iterator[sqlite3.Connection]:
        """A connection that sees the database as of its first read, whatever is written meanwhile.

        Its statements are interrupted as soon as they are not wanted any more.

        Raises:
            StoreError: the file cannot be read.
            Unwanted, DeadlineExceeded: the work is not wanted any more.
        """
        with translate_errors(self._path):
            connection = self._take()
            healthy = False
            try:
                if wanted is not ALWAYS:
                    wanted.begin(connection.interrupt)
                    connection.set_progress_handler(wanted.is_over, _STEPS)
                try:
                    connection.execute("BEGIN")
                    try:
                        yield connection
                    finally:
                        connection.execute("ROLLBACK")
                except sqlite3.OperationalError:
                    wanted.check()  # it was interrupted
                    raise
                finally:
                    if wanted is not ALWAYS:
                        connection.set_progress_handler(None, 0)
                        wanted.end(connection.interrupt)
                healthy = True
            finally:
                self._give_back(connection, healthy=healthy)

    def close(self) -> None:
        """Close idle connections now, and those in use when they are returned."""
        self._closed = True
        self.close_idle()

    def close_idle(self) -> int:
        """Close the connections that are not in use; how many there were."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
            self._count.closed()
        return len(idle)

    def _take(self) -> sqlite3.Connection:
        self._count.used_s = monotonic()
        with self._lock:
            if self._idle:
                return self._idle.pop()
        self._count.opening()
        try:
            connection = connect(self._path)
            connection.execute("PRAGMA query_only = ON")
        except BaseException:
            self._count.closed()
            raise
        return connection

    def _give_back(self, connection: sqlite3.Connection, *, healthy: bool) -> None:
        with self._lock:
            if healthy and not self._closed and len(self._idle) < _KEPT:
                self._idle.append(connection)
                return
        connection.close()
        self._count.closed()
