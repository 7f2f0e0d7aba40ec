"""The items of a collection, the source of truth: one SQLite file, written by one thread at a time.

Row numbers are never reused, so the index can refer to them: replacing an item gives it a new one. Only its metadata
may change in place, which the index does not know.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic

import numpy as np
from numpy.typing import NDArray

from embedserve.changes import MetadataChange
from embedserve.errors import StoreError
from embedserve.store.local.records import facets
from embedserve.store.local.records.database import (
    BUSY_MS,
    Writer,
    damaged,
    open_database,
    schema_of,
    translate_errors,
)
from embedserve.store.local.records.facets import Facets
from embedserve.store.local.records.open_files import ConnectionCount, OpenFiles, most_connections
from embedserve.store.local.records.readers import Readers
from embedserve.store.local.records.row import Row, to_json
from embedserve.store.local.records.view import View, media_crc
from embedserve.types import Filter, Media, metadata_bytes
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
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
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
    updated: NDArray[np.int64] | None = None
    """Row numbers whose metadata changed: int64 [U], ascending; None for none."""


class Records:
    """The items of one collection.

    Args:
        path: the SQLite file.
        dimension: D.
        create: create it.
        filter_keys: metadata keys whose values are kept as facets; the same as when the file was created.
        open_files: limits the connections of all collections.

    Raises:
        StoreError: the file cannot be used.
        DiskFull: the file cannot be created.
    """

    def __init__(
        self,
        path: Path,
        dimension: int,
        *,
        create: bool,
        filter_keys: Sequence[str] = (),
        open_files: OpenFiles | None = None,
    ) -> None:
        self._path = path
        self._dimension = dimension
        self._filter_keys = tuple(filter_keys)
        self._facets = Facets(filter_keys)
        # A page of a table should hold at least three rows: with 4 KiB pages and 512 numbers half of the file was
        # empty, and writing took twice as long.
        self._page_size = 8192 if dimension <= 512 else 16384
        if open_files is None:
            open_files = OpenFiles(most_connections())
        self._count = ConnectionCount(open_files, self.close_idle)
        self._readers = Readers(path, self._count)
        self._trim_above = _LOG_BYTES
        self._writer = Writer(None, path, self._open)
        # From the first connection on, a thread that opens one may close those of this collection that nobody holds.
        with self._writer.lock:
            connection = self._writer.take_over(self._open(create=create))
            try:
                with translate_errors(path):
                    if create:
                        facets.declare(connection, self._filter_keys)
                    facets.check_declared(connection, path, self._filter_keys)
            except BaseException:
                self._close_writer()
                raise

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
        self._count.used_s = monotonic()
        with self._writer.lock:
            with self._writer.transaction() as connection:
                yield WriteTransaction(connection, self._path, self._facets, self._dimension)
            self._trim_log()

    def reuse_log(self) -> None:
        """Move the write-ahead log into the file, as far as disk and readers let it; the next write takes its space."""
        with self._writer.lock, suppress(StoreError, sqlite3.Error):
            self._checkpoint("RESTART")

    def close(self) -> None:
        """Move the write-ahead log into the file and close it."""
        self._readers.close()
        self._close_writer()

    def close_idle(self) -> int:
        """Close the connections that nobody uses now, until they are needed again; how many there were."""
        closed = self._readers.close_idle()
        if self._writer.close_idle():
            self._count.closed()
            closed += 1
        return closed

    def _open(self, *, create: bool = False) -> sqlite3.Connection:
        self._count.opening()
        try:
            return open_database(self._path, create=create, versions=_VERSIONS, page_size=self._page_size)
        except BaseException:
            self._count.closed()
            raise

    def _close_writer(self) -> None:
        if self._writer.close():
            self._count.closed()

    def _trim_log(self) -> None:
        log = self._path.with_name(self._path.name + "-wal")
        try:
            size = log.stat().st_size
            if size <= self._trim_above:
                return
            busy = self._checkpoint("TRUNCATE")
        except (OSError, sqlite3.OperationalError):
            # The write itself is on disk; a later one tries again, and copies every page whose sync failed again.
            return
        self._trim_above = size * 2 if busy else _LOG_BYTES

    def _checkpoint(self, kind: str) -> bool:
        """Whether readers prevented a part of it. Needs the lock of the writer."""
        # A checkpoint waits for readers, which may never pause; writers should not notice.
        connection = self._writer.connection
        connection.execute(f"PRAGMA busy_timeout = {_TRIM_WAIT_MS}")
        try:
            return bool(connection.execute(f"PRAGMA wal_checkpoint ({kind})").fetchone()[0])
        finally:
            connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")


class WriteTransaction:
    """The changes that one transaction can make."""

    def __init__(self, connection: sqlite3.Connection, path: Path, facets: Facets, dimension: int) -> None:
        self._connection = connection
        self._path = path
        self._facets = facets
        self._dimension = dimension

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
            self._add_facets([(rid, row.meta) for rid, (row, _) in numbered])
        return Change(seq, removed, np.arange(first, first + len(rows), dtype=np.int64))

    def delete(self, ids: Sequence[str]) -> Change:
        """Remove the rows with these ids, as far as they exist."""
        return Change(self._next_seq(), self._remove(ids), np.empty(0, np.int64))

    def delete_matching(self, rids: Sequence[int], filter: Filter) -> Change:
        """Remove those of the given rows that exist and match a filter now."""
        view = View(self._connection, self._path, self._dimension)
        ids = view.ids(view.matching_among(filter, rids).tolist())
        return self.delete([id.decode() for id in ids.values()])

    def update_metadata(
        self, changes: Sequence[MetadataChange], max_metadata_bytes: int
    ) -> tuple[Change, list[int | None]]:
        """Change metadata in place, one item after the other.

        Returns:
            The change, and for each item the size of the metadata that comes of it, in bytes as JSON, None if there is
            no such item. Larger ones than ``max_metadata_bytes`` are not written.

        Raises:
            StoreError: a row is damaged; names the item. A new checksum would hide the damage.
        """
        seq, view = self._next_seq(), View(self._connection, self._path, self._dimension)
        sizes: list[int | None] = []
        updated: set[int] = set()
        for change in changes:
            found = view.row(change.id)
            if found is None:
                sizes.append(None)
                continue
            rid, row = found
            metadata = change.of(row.metadata)
            size = metadata_bytes(metadata)
            sizes.append(size)
            new = replace(row, meta=to_json(metadata).encode())
            if size <= max_metadata_bytes and new.meta != row.meta:
                self._set_metadata(rid, row, new, seq)
                updated.add(rid)
        none = np.empty(0, np.int64)
        return Change(seq, none, none, np.array(sorted(updated), np.int64)), sizes

    def _set_metadata(self, rid: int, old: Row, new: Row, seq: int) -> None:
        self._connection.execute(
            "UPDATE item SET seq = ?, crc = ?, meta = ? WHERE rid = ?", (seq, new.crc, new.meta.decode(), rid)
        )
        # Numbers that are equal, as 1 and 1.0 are, are equal facets too.
        if self._facets and self._facets.rows(rid, old.meta) != self._facets.rows(rid, new.meta):
            self._remove_facets([(rid, old.meta)])
            self._add_facets([(rid, new.meta)])

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

    def _add_facets(self, added: Sequence[tuple[int, bytes]]) -> None:
        """``added``: row numbers and metadata."""
        # One that is there already, where the table is damaged, is as it should be.
        self._connection.executemany(
            "INSERT OR IGNORE INTO facet (key, value, rid) VALUES (?, ?, ?)",
            (facet for rid, meta in added for facet in self._facets.rows(rid, meta)),
        )

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
