"""Concurrent readers and writers: every answer was right at some moment of the call."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from embedserve.errors import CollectionNotFound
from embedserve.index.current import CurrentSnapshot
from embedserve.store.local.store import LocalStore
from embedserve.types import Eq, Include, Item, SearchOptions
from tests.store.store_cases import EVERYTHING, all_ids, collection_of, new_collection, random_units, slow_search, unit
from tests.store.worker_threads import run_threads

SECONDS = 3.0


@pytest.mark.usefixtures("small_segments")
def test_every_hit_existed_no_deleted_item_reappears_and_no_write_is_seen_partially(store: LocalStore) -> None:
    vectors = random_units(64, 4)
    written: set[str] = set()
    acknowledged_deletions: set[str] = set()

    def write(name: str) -> Callable[[threading.Event], int]:
        def worker(stop: threading.Event) -> int:
            number = 0
            while not stop.is_set():
                twins = [f"{name}-{number}-{side}" for side in "lr"]
                written.update(twins)
                store.upsert(
                    "photos", [Item(id=id, vector=vectors[number % 64], metadata={"twin": id[:-2]}) for id in twins]
                )
                assert _hits(store, vectors[number % 64], twins[0][:-2]) == twins
                if number >= 20:
                    old = [f"{name}-{number - 20}-{side}" for side in "lr"]
                    assert store.delete_items("photos", old) == 2
                    acknowledged_deletions.update(old)
                number += 1
            return number

        return worker

    def read(stop: threading.Event) -> int:
        searches = 0
        while not stop.is_set():
            gone = acknowledged_deletions.copy()
            (hits,) = store.search("photos", vectors[searches % 64][None], SearchOptions(k=1000), [None])
            ids = {hit.id for hit in hits}
            assert len(ids) == len(hits)
            assert ids <= written
            assert not ids & gone
            assert all(hit.id[:-2] == hit.metadata["twin"] for hit in hits)
            assert {id[:-1] + "l" for id in ids} | {id[:-1] + "r" for id in ids} == ids
            page = store.list_items("photos", page_size=1000, page_token="", filter=None, include=Include())
            listed = {item.id for item in page.items}
            assert {id[:-1] + "l" for id in listed} | {id[:-1] + "r" for id in listed} == listed
            searches += 1
        return searches

    writes_a, writes_b, *searches = run_threads(write("a"), write("b"), read, read, read, seconds=SECONDS)
    assert min(writes_a, writes_b, *searches) > 5
    assert set(all_ids(store)) == written - acknowledged_deletions


def _hits(store: LocalStore, query: Any, twin: str) -> list[str]:
    (hits,) = store.search("photos", query[None], SearchOptions(k=3, filter=Eq("twin", twin)), [None])
    return [hit.id for hit in hits]


def test_collections_are_created_and_removed_during_searches_and_writes(store: LocalStore) -> None:
    items = {f"{n}": Item(id=f"{n}", vector=vector) for n, vector in enumerate(random_units(20, 4))}
    query = unit(1, 2, 3, 4)
    right = slow_search(items, query, SearchOptions(k=5))

    def come_and_go(stop: threading.Event) -> int:
        rounds = 0
        while not stop.is_set():
            new_collection(store, "new")
            store.set_alias("live", "new")
            store.upsert("new", list(items.values()))
            store.delete_collection("new")
            rounds += 1
        return rounds

    def use(name: str) -> Callable[[threading.Event], dict[str, int]]:
        def worker(stop: threading.Event) -> dict[str, int]:
            seen = {"missing": 0, "empty": 0, "right": 0}
            while not stop.is_set():
                try:
                    (hits,) = store.search(name, query[None], SearchOptions(k=5), [None])
                    answer = [(hit.id, hit.score) for hit in hits]
                    assert answer in ([], right)
                    seen["right" if answer else "empty"] += 1
                    (item,) = store.get_items(name, ["3"], EVERYTHING)
                    assert item is None or item.vector is not None
                    assert store.get_collection(name).items in (0, 20)
                    store.upsert(name, [items["3"], *items.values()])
                except CollectionNotFound:
                    seen["missing"] += 1
                assert {info.name for info in store.list_collections()} <= {"photos", "new"}
            return seen

        return worker

    rounds, *seen = run_threads(come_and_go, use("new"), use("live"), seconds=SECONDS)
    assert rounds > 3
    for kind in ("missing", "right"):
        assert sum(counts[kind] for counts in seen) > 0


def test_closing_waits_for_calls_in_flight(store: LocalStore) -> None:
    inside, go_on = threading.Event(), threading.Event()
    collection = collection_of(store)

    def slow() -> bool:
        with collection.close_guard.entered() as admitted:
            inside.set()
            go_on.wait(10)
            store_is_open = collection._records._writer.connection.execute("SELECT 1").fetchone() == (1,)
            return admitted and store_is_open

    with ThreadPoolExecutor(2) as pool:
        call = pool.submit(slow)
        assert inside.wait(10)
        closing = pool.submit(store.close)
        assert not closing.done()
        go_on.set()
        assert call.result(10)
        closing.result(10)


def test_the_write_of_a_writer_that_was_interrupted_after_its_commit_is_found(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(index: CurrentSnapshot, snapshot: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(CurrentSnapshot, "publish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.upsert("photos", [Item(id="a", vector=unit(1, 0, 0, 0))])
    store.upsert("photos", [Item(id="b", vector=unit(1, 1, 0, 0))])
    (hits,) = store.search("photos", unit(1, 0, 0, 0)[None], SearchOptions(), [None])
    assert [hit.id for hit in hits] == ["a", "b"]


def test_a_search_after_an_interrupted_writer_sees_its_items(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(index: CurrentSnapshot, snapshot: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(CurrentSnapshot, "publish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.upsert("photos", [Item(id="a", vector=unit(1, 0, 0, 0))])
    (hits,) = store.search("photos", unit(1, 0, 0, 0)[None], SearchOptions(), [None])
    assert [hit.id for hit in hits] == ["a"]
