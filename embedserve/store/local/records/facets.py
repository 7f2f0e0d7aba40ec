"""Facets: the values of declared metadata keys in a separate table, so that filters on them need not read all metadata.

One row for each value of an item: a text, a number, a boolean, or an element of a list. The item's metadata is the
source of truth; its facets are written and removed with it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from embedserve.store.local.records.database import damaged, transaction

FacetValue = str | int | float | bytes

TABLES = (
    # The declared keys, by their number in the table below.
    "CREATE TABLE facet_key (number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE)",
    # A column without a type keeps the type of each value, so 5 and "5" stay different; SQLite compares integers and
    # reals exactly.
    """
    CREATE TABLE facet (
        key INTEGER NOT NULL,
        value NOT NULL,
        rid INTEGER NOT NULL,
        PRIMARY KEY (key, value, rid)
    ) WITHOUT ROWID
    """,
)

EMPTY_LIST = b""
"""Represents an empty list: equal to no value, but the key exists."""


def boolean(value: bool) -> bytes:
    """A boolean as the table holds it: different from every text and number."""
    return b"\x01" if value else b"\x00"


class Facets:
    """Computes the facets of items.

    Args:
        keys: the declared ones, in the order of their numbers.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._numbers = {key: number for number, key in enumerate(keys)}

    def __bool__(self) -> bool:
        """False if no keys are declared."""
        return bool(self._numbers)

    def rows(self, rid: int, meta: bytes) -> set[tuple[int, FacetValue, int]]:
        """The rows of an item in the table: number of the key, value, row number.

        Raises:
            ValueError: the metadata is damaged.
        """
        # Python parses numbers exactly; texts stay escaped, as they are in conditions.
        metadata = json.loads(meta)
        if not isinstance(metadata, dict):
            raise ValueError("the metadata is not a JSON object")
        return {
            (number, value, rid)
            for key, number in self._numbers.items()
            if key in metadata
            for value in _values(metadata[key])
        }


def _values(value: object) -> Sequence[FacetValue]:
    if isinstance(value, bool):
        return [boolean(value)]
    if isinstance(value, (str, int, float)):
        return [value]
    if isinstance(value, list) and all(isinstance(element, str) for element in value):
        return value or [EMPTY_LIST]
    raise ValueError(f"the metadata holds {value!r}")


def declare(connection: sqlite3.Connection, keys: Sequence[str]) -> None:
    """Number the keys; for a database without items."""
    with transaction(connection):
        connection.executemany("INSERT INTO facet_key (number, key) VALUES (?, ?)", enumerate(keys))


def check_declared(connection: sqlite3.Connection, path: Path, keys: Sequence[str]) -> None:
    """Check that the facets in a database are those of these keys.

    Raises:
        StoreError: they are not; names both.
    """
    found = connection.execute("SELECT number, key FROM facet_key ORDER BY number").fetchall()
    if found != list(enumerate(keys)):
        names = ", ".join(str(key) for _, key in found) or "none"  # NULL if damaged
        raise damaged(path, f"its filter keys are {names}; those of its collection are {', '.join(keys) or 'none'}")
