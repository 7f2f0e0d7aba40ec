"""Compares every row of a database of items with its checksums, without stopping at the first that is wrong."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedserve.errors import InvalidInput
from embedserve.store.local.records.facets import Facets, FacetValue
from embedserve.store.local.records.row import Row
from embedserve.store.local.records.view import media_crc
from embedserve.types import check_metadata

_QUERY = """
    SELECT item.rid, CAST(id AS BLOB), sha, CAST(meta AS BLOB), vec, item.crc, media.type, media.data, media.crc
    FROM item LEFT JOIN media USING (rid)
    WHERE item.rid > ? ORDER BY item.rid LIMIT ?
"""
_FACET = "SELECT 1 FROM facet WHERE key = ? AND value = ? AND rid = ?"
_SURPLUS = """
    SELECT facet.key, facet.value, facet.rid, CAST(item.id AS BLOB), CAST(item.meta AS BLOB)
    FROM facet LEFT JOIN item ON item.rid = facet.rid
    WHERE (facet.key, facet.value, facet.rid) > (?, ?, ?)
    ORDER BY facet.key, facet.value, facet.rid LIMIT ?
"""
_MOST_BYTES = 16 << 20
_FACETS = 256
"""Looked up between two checks: some milliseconds."""
_NORM_ERROR = 1e-3
"""Allowed deviation of the norm of a stored vector from 1; rounding leaves it within 1e-6."""

FacetRow = tuple[int, FacetValue, int]
FIRST_FACET: FacetRow = (-(2**63), 0, 0)
"""Sorts before all rows of the table of facets."""


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
    connection: sqlite3.Connection, dimension: int, after: int, limit: int, check: Callable[[], None]
) -> VerifiedRows | None:
    """Verify the next rows after a row number, with their images; None if there are no more.

    At most ``limit`` rows, or fewer with more than 16 MiB; one image at a time is held in memory. ``check`` is called
    for every row.

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
            problem = _problem(row, columns, dimension)
            if problem:
                name = repr(row.id.decode(errors="replace")) if isinstance(row.id, bytes) else f"in row {last}"
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


def _problem(row: Row, columns: tuple[Any, ...], dimension: int) -> str:
    """What is wrong with a row or its image; empty if nothing is."""
    *_, crc, media_type, data, data_crc = columns
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
        check_metadata(row.metadata)
    except (ValueError, RecursionError, AttributeError):
        return "its id or metadata cannot be read"
    except InvalidInput as error:
        return error.message
    # The negation also catches NaN.
    if not abs(float(np.linalg.norm(row.vector)) - 1) <= _NORM_ERROR:
        return "its vector does not have norm 1"
    return ""
