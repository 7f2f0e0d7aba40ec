"""SQLite files as the store needs them: durable on commit, with a schema version, and with errors of embedserve.

Nothing here depends on what is in the tables.
"""

from __future__ import annotations

import errno
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from embedserve.atomic_write import create_private
from embedserve.errors import DiskFull, InvalidInput, SetupError, StoreError

_OLDEST = (3, 38)
"""The first SQLite with the -> operator, which returns a number of a JSON document as it was written."""

BUSY_MS = 30_000
"""How long a connection waits for the lock of another; with one writer that happens at recovery only."""


def connect(path: Path) -> sqlite3.Connection:
    """A connection without implicit transactions, for use by one thread at a time.

    A new file is made readable for its owner only.
    """
    create_private(path)
    # The process owns the data directory, so SQLite locks its files for the whole process and holds the index of the
    # log in memory. That saves a third file for each database, for which a full disk has no room.
    uri = f"file://{quote(bytes(path.absolute()))}?vfs=unix-excl"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=BUSY_MS / 1000)
    # Numbers of metadata are compared as Python parses them: SQLite's own parser may be off by one unit in the last
    # place, which would break equality.
    connection.create_function("exact_real", 1, float, deterministic=True)
    return connection


def open_database(path: Path, *, create: bool, versions: Sequence[Sequence[str]], page_size: int) -> sqlite3.Connection:
    """A connection for writing to a database, which is upgraded to the newest version.

    Args:
        path: the file.
        create: create it if it is missing or empty.
        versions: the statements that create version 1, those that upgrade it to version 2, and so on. An older file is
            upgraded in one transaction.
        page_size: of a new file, in bytes.

    Raises:
        StoreError: the file cannot be opened, is missing or damaged, or was written by a newer release.
        SetupError: Python's SQLite is too old.
    """
    if sqlite3.sqlite_version_info < _OLDEST:
        raise SetupError(
            f"Python uses SQLite {sqlite3.sqlite_version}; 3.38 or newer is needed",
            hint="use a newer Python or operating system",
        )
    if not create and not path.exists():
        raise damaged(path, "it is missing")
    with translate_errors(path):
        connection = connect(path)
    try:
        with translate_errors(path):
            connection.execute(f"PRAGMA page_size = {page_size:d}")
            connection.execute("PRAGMA journal_mode = WAL")
            # FULL syncs on every commit. NORMAL lost acknowledged rows at 576 of 972 simulated power cuts, FULL at
            # none of 1,054.
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            found = connection.execute("PRAGMA user_version").fetchone()[0]
            if found > len(versions):
                raise StoreError(
                    f"{path} has format {found}; this release reads up to {len(versions)}",
                    hint="upgrade embedserve, or open an older copy of the data",
                )
            if found == 0 and not create:
                raise damaged(path, "it is empty")
            if found < len(versions):
                with transaction(connection):
                    for statements in versions[found:]:
                        for statement in statements:
                            connection.execute(statement)
                    connection.execute(f"PRAGMA user_version = {len(versions):d}")
    except BaseException:
        connection.close()
        raise
    return connection


def schema_of(connection: sqlite3.Connection) -> frozenset[tuple[str, str, str, str]]:
    """Kind, name, table and statement of every table, index, view and trigger, with normalized white space."""
    found = connection.execute("SELECT type, name, tbl_name, coalesce(sql, '') FROM sqlite_schema")
    return frozenset((kind, name, table, " ".join(sql.split())) for kind, name, table, sql in found)


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """A transaction: all or nothing, on disk when the block ends."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # SQLite itself ends the transaction on some errors, such as a full disk.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


class Writer:
    """Transactions on a connection for writing, until a sync fails.

    After a failed sync it is unknown what is on disk: the system may drop what it could not write and report success
    for the next sync. So no write is acknowledged until the file is opened again.

    Args:
        connection: from ``open_database``; None until ``take_over``.
        path: of the database, for messages.
        open_again: opens another connection after ``close_idle``.
    """

    def __init__(
        self,
        connection: sqlite3.Connection | None,
        path: Path,
        open_again: Callable[[], sqlite3.Connection] | None = None,
    ) -> None:
        self.lock = threading.RLock()
        """A holder keeps the connection open."""
        self._connection = connection
        self._path = path
        self._open_again = open_again
        self._refused = ""

    def take_over(self, connection: sqlite3.Connection) -> sqlite3.Connection:
        """The same connection, which is the writer's from now on; for one that was made without."""
        self._connection = connection
        return connection

    @property
    def connection(self) -> sqlite3.Connection:
        """The connection, which is opened if it was closed. Needs ``lock`` unless ``close_idle`` is never called."""
        if self._connection is None:
            if self._open_again is None:
                raise StoreError(f"{self._path} is closed")
            self._connection = self._open_again()
        return self._connection

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all or nothing, on disk when the block ends. One thread at a time.

        Raises:
            DiskFull: nothing was written.
            StoreError: the file cannot be written, or a sync has failed.
        """
        if self._refused:
            raise StoreError(self._refused, hint="check the disk, then restart the server")
        with translate_errors(self._path), self.lock:
            try:
                if (connection := self._connection) is None:
                    connection = self.connection
                with transaction(connection):
                    yield connection
            except sqlite3.OperationalError as error:
                if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_IOERR_FSYNC:
                    self._refused = f"{self._path} takes no writes since a sync failed: {error}"
                raise

    def close(self) -> bool:
        """Close the connection for good; whether it was open."""
        with self.lock:
            self._open_again = None
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()
            return connection is not None

    def close_idle(self) -> bool:
        """Close the connection until the next transaction, unless it is in use; whether it was closed."""
        if not self.lock.acquire(blocking=False):
            return False
        try:
            # After a failed sync nothing may move the log into the database.
            if self._connection is None or self._refused:
                return False
            self._connection.close()
            self._connection = None
            return True
        finally:
            self.lock.release()


@contextmanager
def translate_errors(path: Path) -> Iterator[None]:
    """Turn errors of SQLite and of the file system inside the block into errors of embedserve that name the file.

    Raises:
        DiskFull: no space is left.
        InvalidInput: a text is not valid Unicode.
        StoreError: any other error.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise _of_sqlite(path, error) from error
    except UnicodeEncodeError as error:
        raise InvalidInput(f"the text {error.object!r} is not valid Unicode") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(path) from error
        raise StoreError(
            f"{error.filename or path} cannot be used: {error.strerror}",
            hint="the data directory must be on a working disk and writable by this user",
        ) from error


def _of_sqlite(path: Path, error: sqlite3.Error) -> DiskFull | StoreError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return _full(path)
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or "malformed JSON" in str(error):
        return damaged(path, str(error))
    if code == sqlite3.SQLITE_IOERR:
        return StoreError(f"{path} cannot be read or written: {error}", hint="check the disk, then restart the server")
    return StoreError(f"{path} cannot be used: {error}", hint="check that the file exists and is writable by this user")


def _full(path: Path) -> DiskFull:
    return DiskFull(f"no space left on the disk of {path}; nothing was written", hint="free some space and try again")


def damaged(path: Path, what: str) -> StoreError:
    """The error for a file with inconsistent content."""
    return StoreError(f"{path} is damaged: {what}", hint="restore the data directory from a backup")
