"""Every row of a database of items beside its checksums, without stopping at the first that is wrong."""

from __future__ import annotations

import sqlite3
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
_NORM_ERROR = 1e-3
"""How far the norm of a stored vector may be from 1; rounding leaves it within 1e-6."""

FacetRow = tuple[int, FacetValue, int]
FIRST_FACET: FacetRow = (-(2**63), 0, 0)
"""Before all rows of the table of facets."""


@dataclass(frozen=True, slots=True)
class Examined:
    """Some rows that follow each other."""

    read: int
    """How many there were."""
    last_rid: int
    """Row number of the last of them."""
    rids: NDArray[np.int64]
    """Of those without a problem, ascending: int64 [n]."""
    rows: list[Row]
    """They themselves."""
    vectors: NDArray[np.float32]
    """Theirs: float32 [n, D]."""
    problems: list[str]
    """What is wrong with the others, by item."""


def examined(connection: sqlite3.Connection, dimension: int, after: int, limit: int) -> Examined | None:
    """The next ``limit`` rows after a row number, with their images; None if there are no more.

    One image at a time is in memory.

    Raises:
        sqlite3.Error: the file cannot be read, or its pages do not agree with each other.
    """
    rids: list[int] = []
    rows: list[Row] = []
    problems: list[str] = []
    read, last = 0, after
    with closing(connection.execute(_QUERY, (after, limit))) as cursor:
        for columns in cursor:
            read, last = read + 1, columns[0]
            row = Row(*columns[1:5])
            problem = _problem(row, columns, dimension)
            if problem:
                name = repr(row.id.decode(errors="replace")) if isinstance(row.id, bytes) else f"in row {last}"
                problems.append(f"item {name}: {problem}")
            else:
                rids.append(last)
                rows.append(row)
    if not read:
        return None
    vectors = np.frombuffer(b"".join(row.vec for row in rows), "<f4").reshape(len(rows), dimension)
    return Examined(read, last, np.array(rids, np.int64), rows, vectors, problems)


def missing_facets(connection: sqlite3.Connection, facets: Facets, batch: Examined) -> tuple[int, list[str]]:
    """How many facets the items without a problem have, and which items miss one in the table of facets."""
    expected, problems = 0, []
    for rid, row in zip(batch.rids.tolist(), batch.rows, strict=True):
        of_row = facets.rows(rid, row.meta)
        expected += len(of_row)
        if any(connection.execute(_FACET, facet).fetchone() is None for facet in of_row):
            problems.append(f"item {row.text_id!r}: filters do not find it by its metadata")
    return expected, problems


def surplus_facets(
    connection: sqlite3.Connection, facets: Facets, after: FacetRow, limit: int
) -> tuple[FacetRow | None, list[str]]:
    """Which of the next rows of the table of facets no item has.

    Args:
        connection: to the database.
        facets: of the declared keys.
        after: the row before them; FIRST_FACET at the beginning.
        limit: how many rows.

    Returns:
        The last of them, None if there are no more, and one sentence for each that should not be there.
    """
    last, problems = None, []
    with closing(connection.execute(_SURPLUS, (*after, limit))) as cursor:
        for *row, id, meta in cursor:
            last = (row[0], row[1], row[2])
            if id is None:
                problems.append(f"row {last[2]}: filters find it, and there is no such item")
                continue
            try:
                expected = facets.rows(last[2], meta)
            except ValueError:
                continue  # the item itself is named where it is read
            if last not in expected:
                problems.append(f"item {id.decode(errors='replace')!r}: filters find it by metadata that it has not")
    return last, problems


def _problem(row: Row, columns: tuple[Any, ...], dimension: int) -> str:
    """What is wrong with a row or its image; empty if nothing is."""
    *_, crc, media_type, data, data_crc = columns
    try:
        if row.crc != crc or len(row.vec) != 4 * dimension:
            return "its row does not agree with its checksum"
        if data_crc is not None and media_crc(media_type, data) != data_crc:
            return "its image does not agree with its checksum"
    except (TypeError, AttributeError):  # a column of another type than was written
        return "a column of its row or image has a wrong type"
    # The checksums hold, so what follows was written so: by other software, or by a defect of ours.
    try:
        if not row.text_id:
            return "its id is empty"
        check_metadata(row.metadata)
    except (ValueError, RecursionError, AttributeError):
        return "its id or metadata cannot be read"
    except InvalidInput as error:
        return error.message
    # Not a number is no norm near 1 either.
    if not abs(float(np.linalg.norm(row.vector)) - 1) <= _NORM_ERROR:
        return "its vector has not norm 1"
    return ""
