"""Collections share a bounded number of connections; the others open their files again when they are used."""

from __future__ import annotations

import os
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from embedserve.store.local import store as store_module
from embedserve.store.local.records.database import open_database
from embedserve.store.local.records.facets import declare
from embedserve.store.local.records.open_files import ConnectionCount, OpenFiles, most_connections
from embedserve.store.local.records.records import Records
from embedserve.store.local.store import LocalStore
from embedserve.types import Include, Item, SearchOptions
from tests.sizes import small_seals
from tests.store.store_cases import collection_of, found, new_collection, unit
from tests.waiting import wait_until

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="descriptors are counted in /proc")


class Idle:
    """A collection whose connections are never in use, or always."""

    def __init__(self, files: OpenFiles, *, in_use: bool = False) -> None:
        self.count = ConnectionCount(files, self.close_idle)
        self.in_use = in_use
        self.open = 0

    def take(self, at_s: float) -> None:
        self.count.used_s = at_s
        self.count.opening()
        self.open += 1

    def close_idle(self) -> int:
        if self.in_use:
            return 0
        closed, self.open = self.open, 0
        for _ in range(closed):
            self.count.closed()
        return closed


def test_a_new_connection_closes_those_that_were_used_least_recently() -> None:
    files = OpenFiles(3)
    first, second, third, fourth = (Idle(files) for _ in range(4))
    first.take(1.0)
    second.take(2.0)
    third.take(3.0)
    first.count.used_s = 4.0
    fourth.take(5.0)
    assert [one.open for one in (first, second, third, fourth)] == [1, 0, 1, 1]
    assert files.connections == 3


def test_connections_in_use_stay_open_beyond_the_limit_and_count_until_they_are_closed() -> None:
    files = OpenFiles(2)
    busy, other, idle = Idle(files, in_use=True), Idle(files, in_use=True), Idle(files)
    busy.take(1.0)
    other.take(2.0)
    idle.take(3.0)
    assert (busy.open, other.open, idle.open, files.connections) == (1, 1, 1, 3)
    busy.in_use = False
    other.take(4.0)
    assert (busy.open, other.open, idle.open, files.connections) == (0, 2, 0, 2)


@pytest.mark.parametrize(
    ("soft", "connections"), [(64, 16), (256, 32), (1024, 128), (1 << 20, 256), (sys.maxsize, 256)]
)
def test_a_quarter_of_the_descriptors_is_for_the_store(
    soft: int, connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (soft, soft))
    assert most_connections() == connections


def descriptors_below(path: Path) -> list[str]:
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            links.append(os.readlink(entry))  # noqa: PTH115
        except FileNotFoundError:  # that of the iteration itself
            continue
    return [link for link in links if link.startswith(str(path))]


@on_linux
def test_a_sealed_segment_holds_no_descriptor(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_seals(monkeypatch, few_bytes=1)
    with LocalStore.open(data, background=False) as store:
        new_collection(store, index="hnsw:m=4")
        store.upsert("photos", [Item(id=str(n), vector=unit(1, n, n * n, 0)) for n in range(100)])
        store.maintain()
        assert store.get_collection("photos").segments == 1
        assert [link for link in descriptors_below(data) if "segments" in link] == []
        assert len(found(store, unit(1, 5, 25, 0), SearchOptions(k=5))) == 5


@on_linux
def test_twenty_collections_with_room_for_two_keep_every_promise(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "most_connections", lambda: 4)
    small_seals(monkeypatch, few_bytes=1)
    names = [f"c{number}" for number in range(20)]
    with LocalStore.open(data) as store:
        for name in names:
            new_collection(store, name)
        written: dict[str, dict[str, int]] = {name: {} for name in names}
        locks = {name: threading.Lock() for name in names}

        def work(seed: int) -> None:
            chance = random.Random(seed)
            for step in range(60):
                name = chance.choice(names)
                with locks[name]:
                    id, value = f"{seed}", step
                    store.upsert(name, [Item(id=id, vector=unit(1, 2, 3, 4), metadata={"n": value})])
                    written[name][id] = value
                    (item,) = store.get_items(name, [id], Include(metadata=True))
                    assert item is not None
                    assert item.metadata == {"n": value}
                other = chance.choice(names)
                hits = store.search(other, unit(1, 2, 3, 4)[None], SearchOptions(k=9, include_metadata=True), [None])
                assert all("n" in hit.metadata for hit in hits[0])
                assert store.list_items(other, page_size=9, page_token="", filter=None, include=Include()) is not None

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
        # Two descriptors for each of four connections, two of the catalog, LOCK; more while more are in use at a time.
        assert len(descriptors_below(data)) <= 2 * (4 + 4) + 3
        assert collection_of(store, names[0])._records._count._open_files.connections <= 8
        wait_until(lambda: all(info.segments for info in store.list_collections() if info.items))
        for name in names:
            with store.backup_collection(name) as file:
                assert file.read(6) == b"SQLite"
    with LocalStore.open(data) as store:
        for name, values in written.items():
            items = store.get_items(name, list(values), Include(metadata=True))
            assert [item and item.metadata["n"] for item in items] == list(values.values())


def test_files_that_were_closed_while_a_reader_was_inside_serve_it_to_its_end(store: LocalStore) -> None:
    store.upsert("photos", [Item(id="a", vector=unit(1, 0, 0, 0), metadata={"n": 1})])
    records = collection_of(store)._records
    with records.reading() as view:
        assert view.count() == 1
        store.upsert("photos", [Item(id="b", vector=unit(0, 1, 0, 0))])
        assert records.close_idle() == 1  # the writer; the reader is in use
        store.upsert("photos", [Item(id="c", vector=unit(0, 0, 1, 0))])
        assert view.count() == 1, "the reader sees another moment than before"
    with records.reading() as view:
        assert view.count() == 3


def test_a_writer_whose_sync_failed_stays_open_and_refused(store: LocalStore) -> None:
    records = collection_of(store)._records
    records._writer._refused = "it takes no writes since a sync failed"
    records.close_idle()
    with pytest.raises(Exception, match="takes no writes since a sync failed"):
        store.upsert("photos", [Item(id="b", vector=unit(0, 1, 0, 0))])


@pytest.mark.parametrize("moment", ["before its first connection is open", "while its tables are made"])
def test_files_that_are_being_opened_are_not_taken_for_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Another collection that opens a connection may close those of any other at any moment."""
    files = OpenFiles(1)
    made: list[Records] = []
    name = "open_database" if moment.startswith("before") else "facets.declare"
    module = "embedserve.store.local.records.records"
    original: Any = open_database if name == "open_database" else declare

    def meanwhile(*given: Any, **named: Any) -> Any:
        if not made:
            made.append(None)  # type: ignore[arg-type]  # only for the first of the two
            thread = threading.Thread(
                target=lambda: made.append(Records(tmp_path / "other.sqlite", 4, create=True, open_files=files))
            )
            thread.start()
            thread.join(20)
        return original(*given, **named)

    monkeypatch.setattr(f"{module}.{name}", meanwhile)
    opened = Records(tmp_path / "one.sqlite", 4, create=True, filter_keys=["a"], open_files=files)
    assert len(made) == 2
    for one in (opened, made[1]):
        with one.writing() as writing:
            writing.delete([])
        one.close()
    assert files.connections == 0
