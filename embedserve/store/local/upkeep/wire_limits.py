"""The limits that the wire sets to a collection, held against a backup, which anyone may have written.

What breaks them could be stored and could not be answered: SQLite takes years and ids that no message holds.
"""

from __future__ import annotations

import re
import sqlite3
from typing import Any

from embedserve.errors import EmbedserveError
from embedserve.index import spec
from embedserve.store.local.records.catalog import Entry
from embedserve.types import EXTERNAL

_FINGERPRINT = re.compile(r"[0-9a-f]{64}", re.ASCII)
_LONGEST_NAME = 1024
_MAX_DIMENSION = 1 << 16
_END_S = 253_402_300_800
"""The first second after the year 9999, the last that a time on the wire may have."""
_LAST_NUMBER = 1 << 62
"""Largest sequence and row number: as many writes again are left."""


def check_entry(entry: Entry) -> None:
    """Check what a backup says about its collection; its name and filter keys are checked where they are made.

    Raises:
        ValueError: a value is not allowed; names it.
    """
    if entry.fingerprint != EXTERNAL and not _FINGERPRINT.fullmatch(entry.fingerprint):
        found = entry.fingerprint[:80]
        raise ValueError(f"its fingerprint is {found!r}, neither 64 hexadecimal digits nor {EXTERNAL!r}")
    if len(entry.encoder_name) > _LONGEST_NAME:
        raise ValueError(
            f"its encoder name has {len(entry.encoder_name)} characters; at most {_LONGEST_NAME} are allowed"
        )
    check_text("encoder name", entry.encoder_name)
    for key in entry.filter_keys:
        check_text("filter key", key)
    if not 1 <= entry.dimension <= _MAX_DIMENSION:
        raise ValueError(f"its dimension is {entry.dimension}; 1–{_MAX_DIMENSION} are allowed")
    if not 0 < entry.target_recall <= 1:
        raise ValueError(f"its target_recall is {entry.target_recall}; it must be above 0 and at most 1")
    check_time("created_unix_s", entry.created_unix_s)
    try:
        spec.parse(entry.index)
    except EmbedserveError as error:
        raise ValueError(error.message[:200]) from error


def check_text(what: str, text: str) -> None:
    """Check that a text can be written in UTF-8.

    Raises:
        ValueError: it holds half of a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"its {what} is {text[:80]!r}, which cannot be written in UTF-8") from None


def check_time(what: str, unix_s: float) -> None:
    """Check that a time is in the years 1970 to 9999.

    Raises:
        ValueError: it is not, or is not finite.
    """
    if not 0 <= unix_s < _END_S:  # false for NaN
        raise ValueError(f"its {what} is {unix_s:g}; it must lie in the years 1970 to 9999")


def number(what: str, value: Any) -> int:
    """A sequence number or a count.

    Raises:
        ValueError: it is no integer, negative, or too large to go on from.
    """
    if type(value) is not int or not 0 <= value <= _LAST_NUMBER:
        raise ValueError(f"its {what} is {str(value)[:80]!r}; integers from 0 to 2^62 are allowed")
    return value


def database_problem(connection: sqlite3.Connection) -> str:
    """What of the numbers in a database of items does not fit the wire, or hides rows; empty if all do."""
    (encoding,) = connection.execute("PRAGMA encoding").fetchone()
    if encoding != "UTF-8":
        return f"its texts are in {encoding}"
    try:
        for (seq,) in connection.execute("SELECT seq FROM state LIMIT 2"):
            number("sequence number", seq)
        for (last,) in connection.execute("SELECT seq FROM sqlite_sequence LIMIT 2"):
            number("last row number", last)
    except ValueError as error:
        return str(error)
    found = connection.execute("SELECT rid FROM item WHERE rid < 1 LIMIT 1").fetchone()
    return "" if found is None else f"an item has the row number {found[0]}; they begin with 1"
