"""Every row of a database of items beside its checksums, without stopping at the first that is wrong."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedserve.errors import InvalidInput
from embedserve.store.facets import Facets
from embedserve.store.rows import Row
from embedserve.store.view import media_crc
from embedserve.types import check_metadata

_QUERY = """
    SELECT item.rid, CAST(id AS BLOB), sha, CAST(meta AS BLOB), vec, item.crc, media.type, media.data, media.crc
    FROM item LEFT JOIN media USING (rid)
    WHERE item.rid > ? ORDER BY item.rid LIMIT ?
"""
_FACET = "SELECT 1 FROM facet WHERE key = ? AND value = ? AND rid = ?"
_NORM_ERROR = 1e-3
"""How far the norm of a stored vector may be from 1; rounding leaves it within 1e-6."""


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


def facet_problems(connection: sqlite3.Connection, facets: Facets, batch: Examined) -> tuple[int, list[str]]:
    """How many facets the items without a problem have, and which items miss one in the table of facets."""
    expected, problems = 0, []
    for rid, row in zip(batch.rids.tolist(), batch.rows, strict=True):
        of_row = facets.rows(rid, row.meta)
        expected += len(of_row)
        if any(connection.execute(_FACET, facet).fetchone() is None for facet in of_row):
            problems.append(f"item {row.text_id!r}: filters do not find it by its metadata")
    return expected, problems


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
