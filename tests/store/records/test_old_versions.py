"""Data directories of earlier releases open with all their content, and are upgraded."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from embedserve.errors import StoreError
from embedserve.store.local.records import catalog
from embedserve.store.local.records.catalog import Catalog
from embedserve.store.local.records.row import Row
from embedserve.store.local.store import LocalStore
from embedserve.types import EXTERNAL, Eq, Include, Item, Keep
from tests.store.store_cases import EVERYTHING, all_ids, new_collection, unit

UID = "0123456789abcdef0123456789abcdef"
CATALOG_1 = """
    CREATE TABLE collection (
        name TEXT PRIMARY KEY,
        uid TEXT NOT NULL UNIQUE,
        fingerprint TEXT NOT NULL,
        encoder_name TEXT NOT NULL,
        dimension INTEGER NOT NULL,
        keep TEXT NOT NULL,
        created_unix_s REAL NOT NULL
    );
    CREATE TABLE alias (
        name TEXT PRIMARY KEY,
        collection TEXT NOT NULL REFERENCES collection (name) ON DELETE CASCADE
    );
    PRAGMA user_version = 1;
"""
ITEMS_1 = """
    PRAGMA page_size = 8192;
    CREATE TABLE item (
        rid INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE COLLATE BINARY,
        seq INTEGER NOT NULL,
        crc INTEGER NOT NULL,
        sha BLOB NOT NULL,
        meta TEXT NOT NULL,
        vec BLOB NOT NULL
    );
    CREATE TABLE media (
        rid INTEGER PRIMARY KEY REFERENCES item (rid) ON DELETE CASCADE,
        type TEXT NOT NULL,
        crc INTEGER NOT NULL,
        data BLOB NOT NULL
    );
    CREATE TABLE state (seq INTEGER NOT NULL);
    INSERT INTO state (seq) VALUES (3);
    PRAGMA user_version = 1;
"""
ITEMS = [Item(id=f"item-{n}", vector=unit(1, n, 0, 0), metadata={"n": n}, content_sha256=b"s" * 32) for n in range(3)]


@pytest.fixture
def old(data: Path) -> Path:
    """A data directory as the first release wrote it, with three items."""
    directory = data / "collections" / UID
    directory.mkdir(parents=True)
    with closing(sqlite3.connect(data / "catalog.sqlite")) as connection, connection:
        connection.executescript(CATALOG_1)
        collection = ("photos", UID, EXTERNAL, "", 4, "originals", 1.5)
        connection.execute("INSERT INTO collection VALUES (?, ?, ?, ?, ?, ?, ?)", collection)
        connection.execute("INSERT INTO alias VALUES ('pictures', 'photos')")
    with closing(sqlite3.connect(directory / "items.sqlite")) as connection, connection:
        connection.executescript(ITEMS_1)
        for rid, item in enumerate(ITEMS, 1):
            row = Row.of(item, 4)
            columns = (rid, row.text_id, rid, row.crc, row.sha, row.meta.decode(), row.vec)
            connection.execute("INSERT INTO item VALUES (?, ?, ?, ?, ?, ?, ?)", columns)
    return data


def schema(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as connection:
        return {" ".join(str(sql).split()) for (sql,) in connection.execute("SELECT sql FROM sqlite_master")}


def test_a_directory_of_the_first_release_opens_with_all_its_content(old: Path) -> None:
    for _ in range(2):
        with LocalStore.open(old) as store:
            info = store.get_collection("pictures")
            assert (info.name, info.keep, info.created_unix_s, info.items) == ("photos", Keep.ORIGINALS, 1.5, 3)
            assert (info.index_spec, info.target_recall, info.filter_keys) == ("auto", 0.95, ())
            for found, item in zip(
                store.get_items("photos", [item.id for item in ITEMS], EVERYTHING), ITEMS, strict=True
            ):
                assert found is not None
                assert (found.metadata, found.content_sha256) == (item.metadata, item.content_sha256)
            page = store.list_items("photos", page_size=9, page_token="", filter=Eq("n", 1), include=Include())
            assert [item.id for item in page.items] == ["item-1"]


def test_a_directory_of_the_first_release_takes_writes_and_new_collections(old: Path) -> None:
    with LocalStore.open(old) as store:
        store.upsert("photos", [Item(id="new", vector=unit(0, 0, 1, 0), metadata={"n": 1})])
        assert store.delete_items("photos", ["item-0"]) == 1
        new_collection(store, "others")
    with LocalStore.open(old) as store:
        assert all_ids(store) == ["item-1", "item-2", "new"]
        assert [info.name for info in store.list_collections()] == ["others", "photos"]


@pytest.mark.parametrize("name", ["catalog.sqlite", "items.sqlite"])
def test_an_upgraded_file_has_the_same_tables_as_a_new_one(old: Path, tmp_path: Path, name: str) -> None:
    LocalStore.open(old).close()
    with LocalStore.open(tmp_path / "new") as store:
        new_collection(store)
    (ours,), (fresh,) = old.rglob(name), (tmp_path / "new").rglob(name)
    assert schema(ours) == schema(fresh)


def test_a_failed_upgrade_leaves_the_old_file_unchanged(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = schema(old / "catalog.sqlite")
    with monkeypatch.context() as patch:
        versions = catalog._VERSIONS
        patch.setattr("embedserve.store.local.records.catalog._VERSIONS", (versions[0], (*versions[1], "no SQL")))
        with pytest.raises(StoreError, match="syntax error"):
            LocalStore.open(old)
    assert schema(old / "catalog.sqlite") == before
    with LocalStore.open(old) as store:
        assert store.get_collection("photos").items == 3


def test_a_restart_keeps_the_settings_of_a_collection(data: Path) -> None:
    keys = ("tenant", "ключ", "two words")
    with LocalStore.open(data) as store:
        store.create_collection(
            "photos",
            fingerprint=EXTERNAL,
            encoder_name="",
            dimension=4,
            keep=Keep.NONE,
            index="exact",
            target_recall=0.9,
            filter_keys=[*keys, "tenant"],
        )
    with LocalStore.open(data) as store:
        info = store.get_collection("photos")
        assert (info.index_spec, info.target_recall, info.filter_keys) == ("exact", 0.9, keys)


def test_a_catalog_with_keys_that_are_not_json_is_damaged(data: Path) -> None:
    with LocalStore.open(data) as store:
        new_collection(store)
    with closing(sqlite3.connect(data / "catalog.sqlite")) as connection, connection:
        connection.execute("UPDATE collection SET filter_keys = '[\"a'")
    with (
        closing(Catalog(data / "catalog.sqlite", create=False)) as opened,
        pytest.raises(StoreError, match=r"catalog\.sqlite is damaged: collection 'photos'"),
    ):
        opened.entries()
