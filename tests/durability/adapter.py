"""APSW with the interface of ``sqlite3`` that the store uses, so that SQLite writes through our own VFS."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import apsw

_OPERATIONAL = {
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_ABORT,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_SCHEMA,
}


def path_of(database: str | Path) -> str:
    """The path of a database that the store opens by its URI."""
    text = str(database)
    return unquote(urlsplit(text).path) if text.startswith("file:") else text


_CHECKPOINT_SETTING = re.compile(r"\s*PRAGMA\s+wal_autocheckpoint\s*=\s*(\d+)", re.IGNORECASE)

Values = Sequence[Any] | Mapping[str, Any]


@contextmanager
def _translated() -> Iterator[None]:
    """Raise the errors that sqlite3 raises for the codes of SQLite."""
    try:
        yield
    except apsw.Error as error:
        extended = getattr(error, "extendedresult", 0) or getattr(error, "result", 0)
        code = extended & 0xFF
        kind: type[sqlite3.Error] = sqlite3.DatabaseError
        if code in _OPERATIONAL:
            kind = sqlite3.OperationalError
        elif code in (sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH):
            kind = sqlite3.IntegrityError
        made = kind(str(error) or f"SQLite error {extended}")
        made.sqlite_errorcode = extended
        raise made from error


class Cursor:
    def __init__(self, inner: apsw.Cursor) -> None:
        self._inner = inner
        self.arraysize = 1
        self.rowcount = -1

    def fetchone(self) -> Any:
        with _translated():
            return self._inner.fetchone()

    def fetchall(self) -> list[Any]:
        with _translated():
            return self._inner.fetchall()

    def fetchmany(self, size: int = 1) -> list[Any]:
        rows: list[Any] = []
        while len(rows) < size and (row := self.fetchone()) is not None:
            rows.append(row)
        return rows

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        with _translated():
            return next(self._inner)

    def close(self) -> None:
        with _translated():
            self._inner.close(True)


class Connection:
    """The methods of a connection that the store uses.

    Args:
        path: of the database.
        files: name of the VFS.
        checkpoint_pages: pages in the log at which a commit moves them into the database; SQLite's default is 1000.
        pragmas: replacements in statements, for tests that weaken the store.
    """

    def __init__(
        self, path: Path | str, files: str, *, checkpoint_pages: int, replaced: Callable[[str], str] = str
    ) -> None:
        self._replaced = replaced
        self._checkpoint_pages = checkpoint_pages
        self._committed = False
        with _translated():
            self._inner = apsw.Connection(str(path), vfs=files)
            self._inner.set_busy_timeout(30_000)
            self._inner.set_wal_hook(self._after_commit)

    @property
    def in_transaction(self) -> bool:
        return bool(self._inner.in_transaction)

    @property
    def total_changes(self) -> int:
        return self._inner.total_changes()

    def create_function(self, name: str, arguments: int, function: Callable[..., Any], *, deterministic: bool) -> None:
        self._inner.create_scalar_function(name, function, arguments, deterministic=deterministic)

    def execute(self, statement: str, values: Values = ()) -> Cursor:
        if found := _CHECKPOINT_SETTING.match(statement):
            self._checkpoint_pages = int(found[1])
            return Cursor(self._inner.cursor())
        with _translated():
            return Cursor(self._inner.cursor().execute(self._replaced(statement), values))

    def executemany(self, statement: str, values: Iterable[Values]) -> Cursor:
        with _translated():
            return Cursor(self._inner.cursor().executemany(statement, values))

    def cursor(self) -> Cursor:
        return Cursor(self._inner.cursor())

    def set_progress_handler(self, handler: Callable[[], bool] | None, steps: int) -> None:
        self._inner.set_progress_handler(handler, steps)

    def interrupt(self) -> None:
        self._inner.interrupt()

    def commit(self) -> None:
        if self.in_transaction:
            self.execute("COMMIT")

    def rollback(self) -> None:
        if self.in_transaction:
            self.execute("ROLLBACK")

    def close(self) -> None:
        try:
            self._inner.close(True)
        except apsw.Error:
            # As in sqlite3: if the checkpoint of the last connection fails, the log stays.
            return

    def _after_commit(self, connection: apsw.Connection, database: str, pages: int) -> int:
        # Like SQLite's own hook, it runs after the commit, so its errors do not fail the commit.
        if pages >= self._checkpoint_pages:
            try:
                connection.wal_checkpoint(database, apsw.SQLITE_CHECKPOINT_PASSIVE)
            except apsw.Error:
                return apsw.SQLITE_OK
        return apsw.SQLITE_OK
