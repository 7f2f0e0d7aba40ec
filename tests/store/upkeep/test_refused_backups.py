"""A backup that is incomplete, damaged or forged is refused, and leaves nothing behind."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from embedserve.errors import AlreadyExists, InvalidInput, StoreError
from embedserve.store.local.store import LocalStore
from embedserve.types import Item, Media
from tests.store.store_cases import (
    all_ids,
    collection_of,
    items_file,
    new_collection,
    unit,
)
from tests.store.upkeep.backup_cases import (
    backup_of,
    changed,
    chunks,
    database_of,
    everything,
    filled,
    refused,
    sealed,
)


@pytest.mark.parametrize("content", [b"", b"x", b"text " * 5000, b"SQLite format 3", bytes(100_000)])
def test_bytes_that_are_not_a_database_are_refused(store: LocalStore, data: Path, content: bytes) -> None:
    assert refused(store, data, content) == "this is not a backup of a collection"


def test_the_rest_of_a_file_that_is_not_a_database_is_not_read(store: LocalStore) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"no database "

    with pytest.raises(InvalidInput, match="this is not a backup of a collection"):
        store.restore_collection("restored", endless())


def test_another_database_is_refused(store: LocalStore, data: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "other.sqlite")) as connection:
        connection.execute("CREATE TABLE item (id TEXT)")
    content = (tmp_path / "other.sqlite").read_bytes()
    assert refused(store, data, content) == "this is not a backup of a collection, or its end is missing"
    assert refused(store, data, sealed(content)) == "the database is not a backup of a collection"
    filled(store)
    collection_of(store, "filled")._records._writer.connection.execute("PRAGMA wal_checkpoint (TRUNCATE)")
    (path,) = (path for path in data.rglob("items.sqlite") if path.parent.name == store.get_collection("filled").uid)
    assert "its end is missing" in refused(store, data, path.read_bytes())


def test_a_truncated_backup_is_refused(store: LocalStore, data: Path, backup: bytes) -> None:
    places = random.Random(0)
    lengths = [
        *range(0, 200, 13),
        *(places.randrange(len(backup)) for _ in range(60)),
        *range(len(backup) - 90, len(backup)),
    ]
    for length in lengths:
        assert refused(store, data, backup[:length]).startswith("this is not a backup of a collection")
    assert "its end is missing" in refused(store, data, backup + b"\n")


def test_a_backup_with_any_bit_flipped_is_refused(store: LocalStore, data: Path, backup: bytes) -> None:
    places = random.Random(1)
    for place in [*(places.randrange(len(backup)) for _ in range(300)), *range(len(backup) - 90, len(backup), 3)]:
        content = bytearray(backup)
        content[place] ^= 1 << places.randrange(8)
        refused(store, data, bytes(content))


def test_a_backup_with_a_zeroed_page_or_two_swapped_pages_is_refused(
    store: LocalStore, data: Path, backup: bytes
) -> None:
    size = 8192
    pages = [backup[start : start + size] for start in range(0, len(backup), size)]
    for place in range(1, len(pages) - 1):
        zeroed = [*pages[:place], bytes(size), *pages[place + 1 :]]
        exchanged = [*pages[:place], pages[place + 1], pages[place], *pages[place + 2 :]]
        for wrong in (zeroed, exchanged[:-1] + pages[-1:]):
            if wrong != pages:
                assert "do not match its sha256" in refused(store, data, b"".join(wrong))
                # With a new hash, only the rows and the structure of the file can reveal the damage.
                message = refused(store, data, sealed(database_of(b"".join(wrong))))
                assert message.startswith("the backup is damaged: ")


def test_a_flipped_bit_under_a_new_hash_is_refused_or_does_no_harm(store: LocalStore, data: Path) -> None:
    filled(store, count=200)
    database, places = database_of(backup_of(store)), random.Random(2)
    expected = everything(store, "filled")
    refusals = 0
    for _ in range(150):
        content = bytearray(database)
        content[places.randrange(len(content))] ^= 1 << places.randrange(8)
        try:
            store.restore_collection("restored", [sealed(bytes(content))])
        except InvalidInput:
            refusals += 1
        else:
            assert everything(store, "restored") == expected
            store.delete_collection("restored")
        assert len(list((data / "collections").iterdir())) == 2
    # The rest hit unused bytes.
    assert refusals > 50


CHANGES = {
    "deleted": ("DELETE FROM item WHERE id = 'item-002'", "DELETE FROM media WHERE rid NOT IN (SELECT rid FROM item)"),
    "doubled": ("INSERT INTO item SELECT 10000, 'copy', seq, crc, sha, meta, vec FROM item WHERE id = 'item-002'",),
    "exchanged": (
        "UPDATE item SET vec = (SELECT vec FROM item AS other WHERE other.id = 'item-004') WHERE id = 'item-002'",
    ),
    "metadata": ("UPDATE item SET meta = '{}' WHERE id = 'item-002'",),
    "image": ("UPDATE media SET data = x'00' WHERE rid = (SELECT rid FROM item WHERE id = 'item-004')",),
    "orphan": ("INSERT INTO media SELECT 5000, type, crc, data FROM media LIMIT 1",),
    "seq": ("UPDATE state SET seq = seq + 1",),
    "no state": ("DELETE FROM state",),
    "two states": ("INSERT INTO state SELECT seq FROM state",),
    "numbers": ("UPDATE sqlite_sequence SET seq = 1",),
    "numbers as text": ("UPDATE sqlite_sequence SET seq = 'many'",),
    "numbers of nothing": ("DELETE FROM sqlite_sequence",),
    "dimension": ("UPDATE backup SET document = json_set(document, '$.dimension', 8)",),
    "huge dimension": ("UPDATE backup SET document = json_set(document, '$.dimension', 1000000000)",),
    "items": ("UPDATE backup SET document = json_set(document, '$.items', 34)",),
    "facet missing": ("DELETE FROM facet WHERE key = 1 AND rid = 5",),
    "facet too many": ("INSERT INTO facet VALUES (1, 999, 5)",),
    "facet exchanged": ("UPDATE facet SET value = 'other' WHERE key = 0 AND rid = 5",),
    "other filter key": ("UPDATE facet_key SET key = 'half' WHERE number = 1",),
    "keep": ("UPDATE backup SET document = json_set(document, '$.keep', 'much')",),
    "key": ("UPDATE backup SET document = json_set(document, '$.filter_keys[0]', '\"')",),
    "missing part": ("UPDATE backup SET document = json_remove(document, '$.fingerprint')",),
    "no format": ("UPDATE backup SET document = json_set(document, '$.format', 'x')",),
    "list": ("UPDATE backup SET document = '[]'",),
    "no JSON": ("UPDATE backup SET document = '{'",),
    "no document": ("DELETE FROM backup",),
    "trigger": ("CREATE TRIGGER t AFTER INSERT ON item BEGIN DELETE FROM item; END",),
    "view": ("CREATE VIEW v AS SELECT * FROM item",),
    "index": ("CREATE INDEX i ON item (seq)",),
    "table": ("CREATE TABLE t (x)",),
    "column": ("ALTER TABLE item ADD COLUMN more TEXT",),
    "missing table": ("DROP TABLE media",),
    "version": ("PRAGMA user_version = 0",),
    "filter keys of the first version": (
        "DROP TABLE facet",
        "DROP TABLE facet_key",
        "PRAGMA user_version = 1",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_backup_that_was_changed_by_hand_is_refused_even_under_a_new_hash(
    store: LocalStore, data: Path, backup: bytes, tmp_path: Path, change: str
) -> None:
    content = changed(backup, tmp_path / "forged", *CHANGES[change])
    message = refused(store, data, content)
    assert message.startswith("the backup is damaged: ")
    if change in ("exchanged", "metadata"):
        assert message == "the backup is damaged: item 'item-002': its row does not match its checksum"


@pytest.mark.parametrize(
    "statement",
    ["PRAGMA user_version = 99", "UPDATE backup SET document = json_set(document, '$.format', 2)"],
    ids=["database", "document"],
)
def test_a_backup_of_a_newer_release_is_refused(
    store: LocalStore, data: Path, backup: bytes, tmp_path: Path, statement: str
) -> None:
    message = refused(store, data, changed(backup, tmp_path / "newer", statement))
    assert message == "the backup was made by a newer release of embedserve, which this one cannot read"


def test_a_name_that_is_taken_or_not_allowed_is_refused(store: LocalStore, data: Path, backup: bytes) -> None:
    store.set_alias("current", "filled")
    before = sorted(data.rglob("*"))
    for name in ("photos", "current"):
        with pytest.raises(AlreadyExists, match=name):
            store.restore_collection(name, chunks(backup))
    with pytest.raises(InvalidInput, match="is not allowed"):
        store.restore_collection("../x", chunks(backup))
    assert sorted(data.rglob("*")) == before


def test_a_name_that_is_taken_while_a_backup_is_received_stays_with_the_other(
    store: LocalStore, data: Path, backup: bytes
) -> None:
    def slow() -> Iterator[bytes]:
        yield backup[:5000]
        new_collection(store, "restored")
        yield backup[5000:]

    with pytest.raises(AlreadyExists):
        store.restore_collection("restored", slow())
    assert all_ids(store, "restored") == []
    assert len(list((data / "collections").iterdir())) == 3


def test_a_sender_that_fails_leaves_nothing(store: LocalStore, data: Path, backup: bytes) -> None:
    def broken() -> Iterator[bytes]:
        yield backup[:50_000]
        raise ConnectionResetError("the sender is gone")

    before = sorted(data.rglob("*"))
    with pytest.raises(StoreError):
        store.restore_collection("restored", broken())
    assert sorted(data.rglob("*")) == before


@pytest.mark.parametrize("change", ["UPDATE item SET meta = '{}' WHERE id = 'a'", "UPDATE media SET data = x'00'"])
def test_damage_is_found_while_the_backup_is_made(store: LocalStore, data: Path, change: str) -> None:
    media = Media(data=b"picture", media_type="image/png")
    store.upsert("photos", [Item(id="a", vector=unit(1, 0, 0, 0), metadata={"x": 1}, media=media)])
    path = items_file(data)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(change)
    before = sorted((data / "collections").iterdir())
    with pytest.raises(StoreError) as caught, store.backup_collection("photos"):
        pass
    assert caught.value.message.startswith(f"{path} is damaged: item 'a': its ")
    assert sorted((data / "collections").iterdir()) == before
