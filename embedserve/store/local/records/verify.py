"""Compares every row of a database of items with its checksums, without stopping at the first that is wrong."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedserve.errors import InvalidInput, LimitExceeded
from embedserve.store.local.records.facets import Facets, FacetValue
from embedserve.store.local.records.row import Row
from embedserve.store.local.records.view import media_crc
from embedserve.types import Limits, check_metadata, metadata_bytes

_QUERY = """
    SELECT item.rid, CAST(id AS BLOB), sha, CAST(meta AS BLOB), vec,
        typeof(id) || typeof(sha) || typeof(meta) || typeof(vec) || typeof(seq) || typeof(type) || typeof(data),
        seq, item.crc, media.type, media.data, media.crc
    FROM item LEFT JOIN media USING (rid)
    WHERE item.rid > ? ORDER BY item.rid LIMIT ?
"""
_TYPES = {"textblobtextblobinteger" + media for media in ("nullnull", "textblob")}
_FACET = "SELECT 1 FROM facet WHERE key = ? AND value = ? AND rid = ?"
_SURPLUS = """
    SELECT facet.key, facet.value, facet.rid, CAST(item.id AS BLOB), CAST(item.meta AS BLOB)
    FROM facet LEFT JOIN item ON item.rid = facet.rid
    WHERE (facet.key, facet.value, facet.rid) > (?, ?, ?)
    ORDER BY facet.key, facet.value, facet.rid LIMIT ?
"""
_MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}/[a-z0-9][a-z0-9.+-]{0,63}", re.ASCII)
_MOST_BYTES = 16 << 20
_FACETS = 256
"""Looked up between two checks: some milliseconds."""
_NORM_ERROR = 1e-3
"""Allowed deviation of the norm of a stored vector from 1; rounding leaves it within 1e-6."""

_SHOWN = 80
"""Bytes of an id in a message."""

FacetRow = tuple[int, FacetValue, int]
FIRST_FACET: FacetRow = (-(2**63), 0, 0)
"""Sorts before all rows of the table of facets."""


@dataclass(frozen=True, slots=True)
class RowLimits:
    """What the rows of a database from outside are held to, as items that arrive in calls are."""

    limits: Limits
    """Those of the server."""
    last_seq: int
    """Sequence number of the last write."""

    def check(self, row: Row, seq: int, media_type: str | None, data: bytes | None) -> None:
        """Check an item, whose columns have the right types.

        Raises:
            InvalidInput: says what is not allowed.
        """
        self.limits.check("max_id_bytes", len(row.id), "bytes in its id")
        if len(row.sha) not in (0, 32):
            raise InvalidInput(f"the sha256 of its image has {len(row.sha)} bytes")
        if not 1 <= seq <= self.last_seq:
            raise InvalidInput(f"its sequence number is {seq}; the last write has {self.last_seq}")
        if data is not None and media_type is not None:
            self.limits.check("max_image_bytes", len(data), "bytes in its image")
            if not _MEDIA_TYPE.fullmatch(media_type):
                raise InvalidInput(f"the media type of its image is {media_type[:80]!r}")
        # Before it is parsed: as JSON with escapes it has at most six times the bytes.
        self.limits.check("max_metadata_bytes", len(row.meta) // 6, "bytes of metadata")
        names = [name for name, _ in json.loads(row.meta, object_pairs_hook=list)]
        if len(set(names)) < len(names):
            raise InvalidInput("its metadata has a key twice")
        check_metadata(row.metadata)
        self.limits.check("max_metadata_bytes", metadata_bytes(row.metadata), "bytes of metadata")


@dataclass(frozen=True, slots=True)
class VerifiedRows:
    """A batch of consecutive rows."""

    read: int
    """Number of rows, intact or not."""
    last_rid: int
    """Row number of the last one."""
    rids: NDArray[np.int64]
    """Row numbers of the intact rows, ascending: int64 [n]."""
    rows: list[Row]
    """The intact rows."""
    vectors: NDArray[np.float32]
    """Their vectors: float32 [n, D]."""
    problems: list[str]
    """One sentence about each of the other rows, which names the item."""


def verify_rows(
    connection: sqlite3.Connection,
    dimension: int,
    after: int,
    limit: int,
    check: Callable[[], None],
    held_to: RowLimits | None = None,
) -> VerifiedRows | None:
    """Verify the next rows after a row number, with their images; None if there are no more.

    At most ``limit`` rows, or fewer with more than 16 MiB; one image at a time is held in memory, and of what exceeds
    ``held_to`` one item. ``check`` is called for every row.

    Raises:
        sqlite3.Error: the file cannot be read, or its pages are inconsistent.
    """
    rids: list[int] = []
    rows: list[Row] = []
    problems: list[str] = []
    read, last, read_bytes = 0, after, 0
    with closing(connection.execute(_QUERY, (after, limit))) as cursor:
        for columns in cursor:
            check()
            read, last = read + 1, columns[0]
            row = Row(*columns[1:5])
            problem = _problem(row, columns, dimension, held_to)
            if problem:
                name = repr(row.id[:_SHOWN].decode(errors="replace")) if isinstance(row.id, bytes) else f"in row {last}"
                problems.append(f"item {name}: {problem}")
            else:
                rids.append(last)
                rows.append(row)
                read_bytes += len(row.vec) + len(row.meta)
            if read_bytes > _MOST_BYTES:
                break
    if not read:
        return None
    vectors = np.frombuffer(b"".join(row.vec for row in rows), "<f4").reshape(len(rows), dimension)
    return VerifiedRows(read, last, np.array(rids, np.int64), rows, vectors, problems)


def missing_facets(
    connection: sqlite3.Connection, facets: Facets, batch: VerifiedRows, check: Callable[[], None]
) -> tuple[int, list[str]]:
    """How many facets the intact rows have, and one sentence for each item of which the table lacks one.

    ``check`` is called for every row, and for every few facets of one with many.
    """
    expected, problems = 0, []
    for rid, row in zip(batch.rids.tolist(), batch.rows, strict=True):
        check()
        of_row = facets.rows(rid, row.meta)
        expected += len(of_row)
        for number, facet in enumerate(of_row, 1):
            if not number % _FACETS:
                check()
            if connection.execute(_FACET, facet).fetchone() is None:
                problems.append(f"item {row.text_id!r}: filters do not find it by its metadata")
                break
    return expected, problems


def surplus_facets(
    connection: sqlite3.Connection, facets: Facets, after: FacetRow, limit: int, check: Callable[[], None]
) -> tuple[FacetRow | None, list[str]]:
    """Find facets among the next rows of their table that no item has.

    Args:
        connection: to the database.
        facets: of the declared keys.
        after: the row before the next ones; FIRST_FACET at the beginning.
        limit: number of rows to read.
        check: called for every row.

    Returns:
        The last row that was read, None if there are no more, and one sentence for each facet that should not exist.
    """
    last, problems = None, []
    with closing(connection.execute(_SURPLUS, (*after, limit))) as cursor:
        for *row, id, meta in cursor:
            check()
            last = (row[0], row[1], row[2])
            if id is None:
                problems.append(f"row {last[2]}: filters find it, but there is no such item")
                continue
            try:
                expected = facets.rows(last[2], meta)
            except ValueError:
                continue  # the item itself is reported where it is read
            if last not in expected:
                problems.append(f"item {id.decode(errors='replace')!r}: filters find it by metadata that it lacks")
    return last, problems


def _problem(row: Row, columns: tuple[Any, ...], dimension: int, held_to: RowLimits | None) -> str:
    """What is wrong with a row or its image; empty if nothing is."""
    *_, types, seq, crc, media_type, data, data_crc = columns
    if types not in _TYPES:
        return "a column of its row or image has a wrong type"
    try:
        if row.crc != crc or len(row.vec) != 4 * dimension:
            return "its row does not match its checksum"
        if data_crc is not None and media_crc(media_type, data) != data_crc:
            return "its image does not match its checksum"
    except (TypeError, AttributeError):  # a column has another type than was written
        return "a column of its row or image has a wrong type"
    # The checksums match, so what follows was written like this: by other software, or by a bug of ours.
    try:
        if not row.text_id:
            return "its id is empty"
        if held_to is not None:
            held_to.check(row, seq, media_type, data)
        check_metadata(row.metadata)
    except (ValueError, RecursionError, AttributeError):
        return "its id or metadata cannot be read"
    except (InvalidInput, LimitExceeded) as error:
        return error.message
    # The negation also catches NaN.
    if not abs(float(np.linalg.norm(row.vector)) - 1) <= _NORM_ERROR:
        return "its vector does not have norm 1"
    return ""
