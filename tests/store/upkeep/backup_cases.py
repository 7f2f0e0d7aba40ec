"""Collections to back up, and backups that were changed."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from embedserve.errors import InvalidInput
from embedserve.store.local.store import LocalStore
from embedserve.store.local.upkeep.backup import last_line
from embedserve.types import Item, Keep, Media
from tests.store.store_cases import (
    EVERYTHING,
    random_units,
)

DIMENSION = 16


def item(number: int, version: int = 0) -> Item:
    metadata: dict[str, Any] = {
        "number": number,
        "half": number / 2,
        "text": f"Übung \x00 {number % 3}",
        "tags": ["a", str(number)],
    }
    return Item(
        id=f"item-{number:03}",
        vector=random_units(1, DIMENSION, seed=number + 1000 * version)[0],
        metadata={**metadata, "even": number % 2 == 0, "version": version},
        content_sha256=bytes([number % 256] * 32),
        media=Media(data=f"picture {number}".encode() * 20, media_type="image/png") if number % 4 == 0 else None,
    )


def filled(store: LocalStore, name: str = "filled", count: int = 40) -> None:
    store.create_collection(
        name,
        fingerprint="ab" * 32,
        encoder_name="small/encoder",
        dimension=DIMENSION,
        keep=Keep.ORIGINALS,
        target_recall=0.9,
        filter_keys=["text", "number"],
    )
    store.upsert(name, [item(number) for number in range(count)])
    # Some rows are removed, and some have new numbers.
    store.delete_items(name, [f"item-{number:03}" for number in range(0, count, 7)])
    store.upsert(name, [item(number, version=1) for number in range(1, count, 5)])


def backup_of(store: LocalStore, name: str = "filled") -> bytes:
    with store.backup_collection(name) as file:
        return file.read()


def chunks(content: bytes, size: int = 4096) -> Iterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


def vector_bytes(item: Item) -> bytes:
    assert item.vector is not None
    return item.vector.tobytes()


def everything(store: LocalStore, name: str) -> list[tuple[object, ...]]:
    page = store.list_items(name, page_size=1000, page_token="", filter=None, include=EVERYTHING)
    assert not page.next_page_token
    return [
        (
            each.id,
            each.metadata,
            None if each.vector is None else each.vector.tobytes(),
            each.content_sha256,
            each.media,
        )
        for each in page.items
    ]


def sealed(database: bytes) -> bytes:
    """A backup of these bytes with a valid last line, as an attacker may write it."""
    return database + last_line(hashlib.sha256(database).hexdigest())


def database_of(backup: bytes) -> bytes:
    return backup[: backup.rindex(b"embedserve backup, sha256 ")]


def changed(backup: bytes, path: Path, *statements: str) -> bytes:
    path.write_bytes(database_of(backup))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        for statement in statements:
            connection.execute(statement)
    return sealed(path.read_bytes())


def first_version(backup: bytes, path: Path) -> bytes:
    """The same in the first version of the database, which had no filter keys."""
    return changed(
        backup,
        path,
        "DROP TABLE facet",
        "DROP TABLE facet_key",
        "UPDATE backup SET document = json_set(document, '$.filter_keys', json('[]'))",
        "PRAGMA user_version = 1",
    )


@pytest.fixture
def backup(store: LocalStore) -> bytes:
    """Backup of the collection "filled"."""
    filled(store)
    return backup_of(store)


def refused(store: LocalStore, data: Path, content: bytes, size: int = 4096) -> str:
    """The error of a restore of these bytes, which must leave everything unchanged."""
    before = sorted(data.rglob("*")), store.list_collections()
    with pytest.raises(InvalidInput) as caught:
        store.restore_collection("restored", chunks(content, size))
    assert (sorted(data.rglob("*")), store.list_collections()) == before
    return caught.value.message
