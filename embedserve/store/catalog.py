"""Which collections and aliases there are, and what each collection is bound to: DATA/catalog.sqlite.

Used by one thread at a time.
"""

from __future__ import annotations

import re
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from embedserve.errors import InvalidInput
from embedserve.store.database import open_database, reported, transaction
from embedserve.types import DEFAULT_TARGET_RECALL, Bound, Keep

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)

_VERSION = 1
_SCHEMA = (
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
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """What the catalog knows of a collection."""

    name: str
    uid: str
    """Name of its directory: 32 hexadecimal digits, never used twice."""
    fingerprint: str
    encoder_name: str
    dimension: int
    keep: Keep
    created_unix_s: float
    index: str = "auto"
    """How its index was asked for; ``index.spec`` reads it."""
    target_recall: float = DEFAULT_TARGET_RECALL
    filter_keys: tuple[str, ...] = ()
    """Metadata keys whose values are kept in an index of their own."""

    @property
    def bound(self) -> Bound:
        """What callers check their vectors with."""
        return Bound(
            name=self.name,
            uid=self.uid,
            fingerprint=self.fingerprint,
            encoder_name=self.encoder_name,
            dimension=self.dimension,
            keep=self.keep,
        )


def check_name(name: str) -> None:
    """A collection or alias has 1–64 characters: letters, digits, ".", "_" and "-", a letter or digit first.

    Raises:
        InvalidInput: with the offending name.
    """
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"the name {name[:80]!r} is not allowed",
            hint='names have 1–64 letters, digits, ".", "_" and "-", starting with a letter or digit',
        )


class Catalog:
    """Each change is on disk when its call returns.

    Args:
        path: the SQLite file.
        create: make it if it is not there.

    Raises:
        StoreError: the file cannot be used.
        DiskFull: nothing was changed.
    """

    def __init__(self, path: Path, *, create: bool) -> None:
        self._path = path
        self._connection = open_database(path, create=create, version=_VERSION, schema=_SCHEMA, page_size=4096)

    def entries(self) -> list[Entry]:
        """All collections."""
        query = "SELECT name, uid, fingerprint, encoder_name, dimension, keep, created_unix_s FROM collection"
        with reported(self._path), closing(self._connection.execute(query)) as rows:
            return [
                Entry(
                    name=name,
                    uid=uid,
                    fingerprint=fingerprint,
                    encoder_name=encoder_name,
                    dimension=dimension,
                    keep=Keep(keep),
                    created_unix_s=created_unix_s,
                )
                for name, uid, fingerprint, encoder_name, dimension, keep, created_unix_s in rows
            ]

    def aliases(self) -> dict[str, str]:
        """Names of collections by alias."""
        with reported(self._path), closing(self._connection.execute("SELECT name, collection FROM alias")) as rows:
            return dict(rows.fetchall())

    def add(self, entry: Entry) -> None:
        """Record a new collection."""
        self._write(
            "INSERT INTO collection (name, uid, fingerprint, encoder_name, dimension, keep, created_unix_s)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            entry.name,
            entry.uid,
            entry.fingerprint,
            entry.encoder_name,
            entry.dimension,
            entry.keep.value,
            entry.created_unix_s,
        )

    def remove(self, name: str) -> None:
        """Forget a collection and the aliases that point to it."""
        self._write("DELETE FROM collection WHERE name = ?", name)

    def set_alias(self, alias: str, collection: str) -> None:
        """Make or move an alias."""
        self._write("INSERT OR REPLACE INTO alias (name, collection) VALUES (?, ?)", alias, collection)

    def remove_alias(self, alias: str) -> None:
        """Forget an alias."""
        self._write("DELETE FROM alias WHERE name = ?", alias)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _write(self, statement: str, *values: str | int | float) -> None:
        with reported(self._path), transaction(self._connection):
            self._connection.execute(statement, values)
