"""The items of a collection, the source of truth: one SQLite file, written by one thread at a time.

Row numbers are never reused, so the index can refer to them: replacing an item gives it a new one.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedserve.store.local.records import facets
from embedserve.store.local.records.database import (
    BUSY_MS,
    Writer,
    connect,
    damaged,
    open_database,
    schema_of,
    translate_errors,
)
from embedserve.store.local.records.facets import Facets
from embedserve.store.local.records.readers import Readers
from embedserve.store.local.records.row import Row
from embedserve.store.local.records.view import View, media_crc
from embedserve.types import Media
from embedserve.wanted import ALWAYS, Wanted

_VERSIONS = (
    (
        # The vector comes last: a filter reads only the columns before it.
        """
        CREATE TABLE item (
            rid INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE COLLATE BINARY,
            seq INTEGER NOT NULL,
            crc INTEGER NOT NULL,
            sha BLOB NOT NULL,
            meta TEXT NOT NULL,
            vec BLOB NOT NULL
        )
        """,
        # A separate table, so that reading all vectors does not read all images.
        """
        CREATE TABLE media (
            rid INTEGER PRIMARY KEY REFERENCES item (rid) ON DELETE CASCADE,
            type TEXT NOT NULL,
            crc INTEGER NOT NULL,
            data BLOB NOT NULL
        )
        """,
        "CREATE TABLE state (seq INTEGER NOT NULL)",
        "INSERT INTO state (seq) VALUES (0)",
    ),
    facets.TABLES,
)

VERSION = len(_VERSIONS)
"""Version of the schema; older files are upgraded when they are opened."""

FILE = "items.sqlite"
"""Name of the database in the directory of a collection."""

_IDS = 500
"""Maximum number of ids bound to one statement."""
_LOG_BYTES = 64 << 20
"""A larger write-ahead log is moved into the database and truncated; it grows while readers never pause."""
_TRIM_WAIT_MS = 50


def schema(version: int) -> frozenset[tuple[str, str, str, str]]:
    """What ``schema_of`` returns for a database of this version, at most VERSION."""
    with closing(connect(Path(":memory:"))) as connection:
        for statements in _VERSIONS[: max(version, 0)]:
            for statement in statements:
                connection.execute(statement)
        return schema_of(connection)


@dataclass(frozen=True, slots=True)
class Change:
    """The effect of a write on the rows."""

    seq: int
    """Sequence number of the write; higher for every later one."""
    removed: NDArray[np.int64]
    """Row numbers that were removed: int64 [R], in any order."""
    rids: NDArray[np.int64]
    """Row numbers that were added: int64 [N], ascending."""


class Records:
    """The items of one collection.

    Args:
        path: the SQLite file.
        dimension: D.
        create: create it.
        filter_keys: metadata keys whose values are kept as facets; the same as when the file was created.

    Raises:
        StoreError: the file cannot be used.
        DiskFull: the file cannot be created.
    """

    def __init__(self, path: Path, dimension: int, *, create: bool, filter_keys: Sequence[str] = ()) -> None:
        self._path = path
        self._dimension = dimension
        self._filter_keys = tuple(filter_keys)
        self._facets = Facets(filter_keys)
        # A page of a table should hold at least three rows: with 4 KiB pages and 512 numbers half of the file was
        # empty, and writing took twice as long.
        page_size = 8192 if dimension <= 512 else 16384
        connection = open_database(path, create=create, versions=_VERSIONS, page_size=page_size)
        self._writer = Writer(connection, path)
        try:
            with translate_errors(path):
                if create:
                    facets.declare(connection, self._filter_keys)
                facets.check_declared(connection, path, self._filter_keys)
        except BaseException:
            connection.close()
            raise
        self._readers = Readers(path)
        self._trim_above = _LOG_BYTES

    @contextmanager
    def reading(self, wanted: Wanted = ALWAYS) -> Iterator[View]:
        """The items as they are now, whatever is written meanwhile.

        Raises:
            StoreError: the file cannot be read, or what was read is damaged.
            Unwanted, DeadlineExceeded: the work is not wanted any more.
        """
        with self._readers.transaction(wanted) as connection:
            yield View(connection, self._path, self._dimension, self._filter_keys, wanted)

    @contextmanager
    def writing(self) -> Iterator[WriteTransaction]:
        """One transaction; see ``Writer.transaction``."""
        with self._writer.transaction() as connection:
            yield WriteTransaction(connection, self._path, self._facets)
        self._trim_log()

    def close(self) -> None:
        """Move the write-ahead log into the file and close it."""
        self._readers.close()
        self._writer.close()

    def _trim_log(self) -> None:
        log = self._path.with_name(self._path.name + "-wal")
        try:
            size = log.stat().st_size
            if size <= self._trim_above:
                return
            # A checkpoint waits for readers, which may never pause; writers should not notice.
            self._writer.connection.execute(f"PRAGMA busy_timeout = {_TRIM_WAIT_MS}")
            try:
                busy, _, _ = self._writer.connection.execute("PRAGMA wal_checkpoint (TRUNCATE)").fetchone()
            finally:
                self._writer.connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
        except (OSError, sqlite3.OperationalError):
            # The write itself is on disk; a later one tries again, and copies every page whose sync failed again.
            return
        self._trim_above = size * 2 if busy else _LOG_BYTES


class WriteTransaction:
    """The changes that one transaction can make."""

    def __init__(self, connection: sqlite3.Connection, path: Path, facets: Facets) -> None:
        self._connection = connection
        self._path = path
        self._facets = facets

    def upsert(self, rows: Sequence[tuple[Row, Media | None]]) -> Change:
        """Insert rows with distinct ids, replacing those with the same ids."""
        removed = self._remove([row.text_id for row, _ in rows])
        seq = self._next_seq()
        last = self._connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'item'").fetchone()
        first = last[0] + 1 if last else 1
        numbered = list(enumerate(rows, first))
        self._connection.executemany(
            "INSERT INTO item (rid, id, seq, crc, sha, meta, vec) VALUES (?, ?, ?, ?, ?, ?, ?)",
            ((rid, row.text_id, seq, row.crc, row.sha, row.meta.decode(), row.vec) for rid, (row, _) in numbered),
        )
        self._connection.executemany(
            "INSERT INTO media (rid, type, crc, data) VALUES (?, ?, ?, ?)",
            (
                (rid, media.media_type, media_crc(media.media_type, media.data), media.data)
                for rid, (_, media) in numbered
                if media is not None
            ),
        )
        if self._facets:
            self._connection.executemany(
                "INSERT INTO facet (key, value, rid) VALUES (?, ?, ?)",
                (facet for rid, (row, _) in numbered for facet in self._facets.rows(rid, row.meta)),
            )
        return Change(seq, removed, np.arange(first, first + len(rows), dtype=np.int64))

    def delete(self, ids: Sequence[str]) -> Change:
        """Remove the rows with these ids, as far as they exist."""
        return Change(self._next_seq(), self._remove(ids), np.empty(0, np.int64))

    def _next_seq(self) -> int:
        self._connection.execute("UPDATE state SET seq = seq + 1")
        row = self._connection.execute("SELECT seq FROM state").fetchone()
        if row is None:
            raise damaged(self._path, "the table state is empty")
        return int(row[0])

    def _remove(self, ids: Sequence[str]) -> NDArray[np.int64]:
        removed: list[tuple[int, bytes]] = []
        for start in range(0, len(ids), _IDS):
            some = ids[start : start + _IDS]
            columns = "rid, CAST(meta AS BLOB)" if self._facets else "rid, NULL"
            query = f"SELECT {columns} FROM item WHERE id IN ({', '.join('?' * len(some))})"
            removed += self._connection.execute(query, some)
        rids = [rid for rid, _ in removed]
        self._connection.executemany("DELETE FROM item WHERE rid = ?", ((rid,) for rid in rids))
        if self._facets:
            self._remove_facets(removed)
        return np.array(rids, np.int64)

    def _remove_facets(self, removed: Sequence[tuple[int, bytes]]) -> None:
        """``removed``: row numbers and metadata."""
        # The facets to remove follow from the metadata: an index over row numbers would double the table.
        try:
            expected = [facet for rid, meta in removed for facet in self._facets.rows(rid, meta)]
        except ValueError:
            expected = None
        if expected is not None:
            cursor = self._connection.executemany("DELETE FROM facet WHERE key = ? AND value = ? AND rid = ?", expected)
            if cursor.rowcount == len(expected) or not expected:
                return
        # The metadata is damaged: scan the whole table, so that none stays.
        rids = json.dumps([rid for rid, _ in removed])
        self._connection.execute("DELETE FROM facet WHERE rid IN (SELECT value FROM json_each(?))", (rids,))
