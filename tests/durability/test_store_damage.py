"""Flipped bytes are refused by name; a full disk loses nothing."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from embedserve.errors import DiskFull, StoreError
from embedserve.store.local.records.database import Writer
from embedserve.store.local.store import LocalStore
from embedserve.types import Include, Item, Media, SearchOptions
from tests.store.store_cases import (
    EVERYTHING,
    all_ids,
    collection_of,
    found,
    items_file,
    new_collection,
    random_units,
    unit,
)


def with_items(store: LocalStore) -> None:
    vectors = random_units(20, 4)
    media = Media(data=b"picture " * 10, media_type="image/png")
    store.upsert(
        "photos",
        [
            Item(
                id=f"item-{n:02}",
                vector=vectors[n],
                metadata={"text": f"text {n:02}"},
                content_sha256=bytes([n] * 32),
                media=media,
            )
            for n in range(20)
        ],
    )


def flip(path: Path, part: bytes) -> None:
    """Flip one bit of the only place in the file with these bytes."""
    content = bytearray(path.read_bytes())
    assert content.count(part) == 1
    content[content.index(part) + 3] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize(
    "part",
    [random_units(20, 4)[7].tobytes(), b'{"text":"text 07"}', bytes([7] * 32)],
    ids=["vector", "metadata", "hash"],
)
def test_a_start_refuses_a_flipped_bit_in_a_row_and_names_file_and_item(data: Path, part: bytes) -> None:
    with LocalStore.open(data) as store:
        new_collection(store)
        with_items(store)
    path = items_file(data)
    flip(path, part)
    with pytest.raises(StoreError) as caught:
        LocalStore.open(data)
    assert caught.value.message == f"{path} is damaged: item 'item-07': its row does not match its checksum"
    assert caught.value.hint == "restore the data directory from a backup"


READS: list[Callable[[LocalStore], object]] = [
    lambda store: store.get_items("photos", ["item-07"], Include()),
    lambda store: store.list_items("photos", page_size=20, page_token="", filter=None, include=Include()),
    lambda store: store.search("photos", unit(1, 0, 0, 0)[None], SearchOptions(k=20), [None]),
]


@pytest.mark.parametrize("read", READS, ids=["get", "list", "search"])
@pytest.mark.parametrize("change", ["meta = '{}'", "vec = zeroblob(16)", "vec = 5", "sha = x''"])
def test_a_row_that_is_damaged_while_the_store_is_open_is_never_returned(
    store: LocalStore, data: Path, read: Callable[[LocalStore], object], change: str
) -> None:
    with_items(store)
    with closing(sqlite3.connect(items_file(data))) as connection, connection:
        connection.execute(f"UPDATE item SET {change} WHERE id = 'item-07'")
    with pytest.raises(StoreError, match=r"items\.sqlite is damaged: item 'item-07'"):
        read(store)


def test_a_damaged_image_is_refused_but_not_the_rest_of_its_item(store: LocalStore, data: Path) -> None:
    with_items(store)
    with closing(sqlite3.connect(items_file(data))) as connection, connection:
        connection.execute("UPDATE media SET data = x'00' WHERE rid = 3")
    (item,) = store.get_items("photos", ["item-02"], Include(metadata=True))
    assert item is not None
    assert item.metadata == {"text": "text 02"}
    with pytest.raises(StoreError, match="'item-02': its image does not match"):
        store.get_items("photos", ["item-02"], EVERYTHING)


def test_a_truncated_file_is_named(data: Path) -> None:
    with LocalStore.open(data) as store:
        new_collection(store)
        store.upsert("photos", [Item(id=str(n), vector=unit(1, n, 0, 0)) for n in range(2000)])
    path = items_file(data)
    path.write_bytes(path.read_bytes()[: 8192 * 4])
    with pytest.raises(StoreError, match=r"items\.sqlite is damaged"):
        LocalStore.open(data)


# --- Full disks ----------------------------------------------------------------------------------------------------


def test_a_full_database_refuses_the_write_and_keeps_everything(store: LocalStore) -> None:
    with_items(store)
    writer = collection_of(store)._records._writer.connection
    pages = writer.execute("PRAGMA page_count").fetchone()[0]
    writer.execute(f"PRAGMA max_page_count = {pages + 2}")
    many = [Item(id=f"new-{n:03}", vector=unit(1, n, 0, 0), metadata={"x": "x" * 1000}) for n in range(500)]
    replaced = Item(id="item-00", vector=unit(0, 0, 0, 1))
    before = found(store, unit(0, 0, 0, 1), SearchOptions(k=100))
    with pytest.raises(DiskFull, match=r"no space left on the disk of .*items\.sqlite; nothing was written"):
        store.upsert("photos", [replaced, *many])
    assert all_ids(store) == [f"item-{n:02}" for n in range(20)]
    assert found(store, unit(0, 0, 0, 1), SearchOptions(k=100)) == before
    writer.execute("PRAGMA max_page_count = 1000000")
    store.upsert("photos", [replaced, *many])
    assert len(all_ids(store)) == 520
    assert found(store, unit(0, 0, 0, 1), SearchOptions(k=1)) == [("item-00", 1.0)]


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from embedserve.errors import DiskFull, StoreError
from embedserve.store.local.records.database import Writer
from embedserve.store.local.store import LocalStore
from embedserve.types import Item
vector = np.eye(1, 64, dtype=np.float32)[0]
with LocalStore.open(Path(sys.argv[1])) as store:
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, resource.RLIM_INFINITY))
    written = 0
    try:
        for n in range(10_000):
            store.upsert("photos", [Item(id=f"{n:05}-{m}", vector=vector) for m in range(10)])
            written = n + 1
    except (DiskFull, StoreError) as error:
        print(type(error).__name__, written, store.get_collection("photos").items)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    store.upsert("photos", [Item(id="after", vector=vector)])
"""


def test_a_file_that_cannot_grow_refuses_the_write_until_it_can(data: Path) -> None:
    with LocalStore.open(data) as store:
        new_collection(store, dimension=64)
    command = [sys.executable, "-W", "error", "-c", LIMITED, str(data)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    kind, written, items = done.stdout.split()
    assert kind in ("DiskFull", "StoreError")
    assert int(written) > 0
    assert int(items) == int(written) * 10
    with LocalStore.open(data) as store:
        assert all_ids(store) == [*(f"{n:05}-{m}" for n in range(int(written)) for m in range(10)), "after"]


WRITES: dict[str, tuple[Callable[[LocalStore], Writer], Callable[[LocalStore], object]]] = {
    "items": (lambda s: collection_of(s)._records._writer, lambda s: s.delete_items("photos", ["item-00"])),
    "catalog": (lambda s: s._catalog._writer, lambda s: s.set_alias("live", "photos")),
}


@pytest.mark.parametrize(("writer_of", "write"), WRITES.values(), ids=WRITES.keys())
def test_after_a_failed_sync_no_write_is_taken_until_a_restart(
    store: LocalStore,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    writer_of: Callable[[LocalStore], Writer],
    write: Callable[[LocalStore], object],
) -> None:
    writer = writer_of(store)
    with_items(store)

    class FailingSync(sqlite3.OperationalError):
        sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC

    class Connection:
        def __init__(self, inner: sqlite3.Connection) -> None:
            self._inner = inner

        def __getattr__(self, name: str) -> object:
            return getattr(self._inner, name)

        def execute(self, statement: str, *values: Any) -> object:
            if statement == "COMMIT":
                raise FailingSync("disk I/O error")
            return self._inner.execute(statement, *values)

    real = writer.connection
    monkeypatch.setattr(writer, "_connection", Connection(real))
    with pytest.raises(StoreError, match="cannot be read or written: disk I/O error"):
        write(store)
    monkeypatch.setattr(writer, "_connection", real)
    with pytest.raises(StoreError, match="takes no writes since a sync failed"):
        write(store)
    assert len(all_ids(store)) == len(found(store, unit(1, 0, 0, 0), SearchOptions(k=100))) == 20
    store.close()
    with LocalStore.open(data) as reopened:
        assert len(all_ids(reopened)) == 20
        assert reopened.get_collection("photos").aliases == ()
        write(reopened)
