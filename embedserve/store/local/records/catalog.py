"""The collections and aliases, and the encoder that each collection is bound to: DATA/catalog.sqlite.

Used by one thread at a time.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedserve.errors import InvalidInput
from embedserve.store.local.records.database import Writer, damaged, open_database, translate_errors
from embedserve.types import DEFAULT_TARGET_RECALL, CollectionIdentity, Keep, check_metadata_key

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)

MAX_FILTER_KEYS = 64
"""Maximum number of declared keys of a collection; each takes a row for every item that has it."""

_VERSIONS = (
    (
        """
        CREATE TABLE collection (
            name TEXT PRIMARY KEY,
            uid TEXT NOT NULL UNIQUE,
            fingerprint TEXT NOT NULL,
            encoder_name TEXT NOT NULL,
            dimension INTEGER NOT NULL,
            keep TEXT NOT NULL,
            created_unix_s REAL NOT NULL
        )
        """,
        """
        CREATE TABLE alias (
            name TEXT PRIMARY KEY,
            collection TEXT NOT NULL REFERENCES collection (name) ON DELETE CASCADE
        )
        """,
    ),
    (
        "ALTER TABLE collection ADD COLUMN index_spec TEXT NOT NULL DEFAULT 'auto'",
        "ALTER TABLE collection ADD COLUMN target_recall REAL NOT NULL DEFAULT 0.95",
        # A list as JSON.
        "ALTER TABLE collection ADD COLUMN filter_keys TEXT NOT NULL DEFAULT '[]'",
    ),
)
_COLUMNS = (
    "name, uid, fingerprint, encoder_name, dimension, keep, created_unix_s, index_spec, target_recall, filter_keys"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """What the catalog says about a collection."""

    name: str
    uid: str
    """Name of its directory: 32 hexadecimal digits, never used again."""
    fingerprint: str
    encoder_name: str
    dimension: int
    keep: Keep
    created_unix_s: float
    index: str = "auto"
    """The index that was requested; ``index.spec`` parses it."""
    target_recall: float = DEFAULT_TARGET_RECALL
    filter_keys: tuple[str, ...] = ()
    """Metadata keys whose values have their own index."""

    @property
    def identity(self) -> CollectionIdentity:
        """What the vectors of a call are checked against."""
        return CollectionIdentity(
            name=self.name,
            uid=self.uid,
            fingerprint=self.fingerprint,
            encoder_name=self.encoder_name,
            dimension=self.dimension,
            keep=self.keep,
        )


def check_name(name: str) -> None:
    """Check a collection or alias name: 1–64 letters, digits, ".", "_" and "-", starting with a letter or digit.

    Raises:
        InvalidInput: names the offending name.
    """
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"the name {name[:80]!r} is not allowed",
            hint='names have 1–64 letters, digits, ".", "_" and "-", starting with a letter or digit',
        )


def check_filter_keys(keys: Sequence[str]) -> tuple[str, ...]:
    """The declared keys of a collection without duplicates, in the order given.

    Raises:
        InvalidInput: a key is not allowed, or there are more than 64.
    """
    for key in keys:
        check_metadata_key(key)
    different = tuple(dict.fromkeys(keys))
    if len(different) > MAX_FILTER_KEYS:
        raise InvalidInput(
            f"{len(different)} filter keys are declared; a collection has at most {MAX_FILTER_KEYS}",
            hint="declare the keys that most filters use; filters on other keys work too, and read all metadata",
        )
    return different


class Catalog:
    """The catalog of one data directory. Each change is on disk when its call returns.

    Args:
        path: the SQLite file.
        create: create it if it does not exist.

    Raises:
        StoreError: the file cannot be used.
        DiskFull: nothing was changed.
    """

    def __init__(self, path: Path, *, create: bool) -> None:
        self._path = path
        connection = open_database(path, create=create, versions=_VERSIONS, page_size=4096)
        self._writer = Writer(connection, path)

    def entries(self) -> list[Entry]:
        """The entries of all collections."""
        query = f"SELECT {_COLUMNS} FROM collection"
        with translate_errors(self._path), closing(self._writer.connection.execute(query)) as rows:
            return [self._entry(columns) for columns in rows]

    def aliases(self) -> dict[str, str]:
        """The names of collections by alias."""
        with (
            translate_errors(self._path),
            closing(self._writer.connection.execute("SELECT name, collection FROM alias")) as rows,
        ):
            return dict(rows.fetchall())

    def add(self, entry: Entry) -> None:
        """Add a new collection."""
        self._write(
            f"INSERT INTO collection ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            entry.name,
            entry.uid,
            entry.fingerprint,
            entry.encoder_name,
            entry.dimension,
            entry.keep.value,
            entry.created_unix_s,
            entry.index,
            entry.target_recall,
            json.dumps(entry.filter_keys, ensure_ascii=False),
        )

    def remove(self, name: str) -> None:
        """Remove a collection and the aliases that point to it."""
        self._write("DELETE FROM collection WHERE name = ?", name)

    def set_alias(self, alias: str, collection: str) -> None:
        """Create or move an alias."""
        self._write("INSERT OR REPLACE INTO alias (name, collection) VALUES (?, ?)", alias, collection)

    def remove_alias(self, alias: str) -> None:
        """Remove an alias."""
        self._write("DELETE FROM alias WHERE name = ?", alias)

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    def _entry(self, columns: tuple[Any, ...]) -> Entry:
        name, uid, fingerprint, encoder_name, dimension, keep, created_unix_s, index, target_recall, filter_keys = (
            columns
        )
        try:
            return Entry(
                name=name,
                uid=uid,
                fingerprint=fingerprint,
                encoder_name=encoder_name,
                dimension=dimension,
                keep=Keep(keep),
                created_unix_s=created_unix_s,
                index=index,
                target_recall=target_recall,
                filter_keys=tuple(json.loads(filter_keys)),
            )
        except ValueError as error:
            raise damaged(self._path, f"collection {name!r}: {error}") from error

    def _write(self, statement: str, *values: str | int | float) -> None:
        with self._writer.transaction() as connection:
            connection.execute(statement, values)
        # The log is moved into the database at once: damage in the log of a killed process loses the writes behind it,
        # and the next start removes the files of collections that the catalog does not know.
        with suppress(sqlite3.Error):  # the write itself is on disk; the next one tries again
            self._writer.connection.execute("PRAGMA wal_checkpoint (TRUNCATE)").fetchone()
