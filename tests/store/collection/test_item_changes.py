"""Metadata that changes in place, counts, and deletions by filter."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from embedserve.changes import MetadataChange
from embedserve.errors import CollectionNotFound, StoreError
from embedserve.store.local.collection import hits, metadata_log
from embedserve.store.local.store import LocalStore
from embedserve.types import Eq, Exists, Filter, Include, Item, Media, Metadata, Not, Range, SearchOptions
from tests.sizes import small_seals
from tests.store import store_cases
from tests.store.store_cases import EVERYTHING, all_ids, collection_of, new_collection, random_units, slow_search
from tests.store.worker_threads import run_threads

ON = Eq("on", True)


@pytest.fixture(params=[(), ("on", "n", "tags")], ids=["read from the metadata", "looked up"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalStore]:
    """120 items, most of them in a segment, whose metadata say which they are."""
    small_seals(monkeypatch, few_bytes=1)
    with LocalStore.open(tmp_path / "data", background=False) as opened:
        new_collection(opened, filter_keys=request.param)
        fill(opened, range(100))
        opened.maintain()
        fill(opened, range(100, 120))
        yield opened


def fill(store: LocalStore, numbers: Sequence[int]) -> None:
    vectors = random_units(200, 4)
    items = [
        Item(
            id=f"{n:03}",
            vector=vectors[n],
            metadata={"n": n, "tags": ["x", "y"][: n % 3]},
            content_sha256=bytes([n]) * 32,
            media=Media(data=b"image", media_type="image/png"),
        )
        for n in numbers
    ]
    store.upsert("photos", items)


def change(store: LocalStore, *changes: MetadataChange, most: int = 1000) -> list[int | None]:
    return store.update_metadata("photos", changes, most)


def metadata_of(store: LocalStore, id: str) -> Metadata:
    [item] = store.get_items("photos", [id], EVERYTHING)
    assert item is not None
    return item.metadata


def found(store: LocalStore, condition: Filter) -> set[str]:
    """Ids of the items that match, which search, list and count agree on."""
    query = random_units(1, 4)
    for options in (SearchOptions(k=1000, filter=condition), SearchOptions(k=1000, filter=condition, exact=True)):
        (hits,) = store.search("photos", query, options, [None])
    page = store.list_items("photos", page_size=1000, page_token="", filter=condition, include=Include())
    ids = {hit.id for hit in hits}
    assert ids == {item.id for item in page.items}
    assert store.count_items("photos", condition) == len(ids)
    return ids


def no_problems(store: LocalStore) -> bool:
    return store.check_collection("photos", lambda _: None).problems == ()


# --- Metadata ---


def test_a_change_sets_some_keys_removes_others_and_keeps_the_rest_of_the_item(store: LocalStore) -> None:
    [before] = store.get_items("photos", ["002"], EVERYTHING)
    built = store.get_collection("photos")
    assert change(store, MetadataChange("002", {"on": True, "price": 2.5}, remove=["tags", "none"])) == [
        len('{"n": 2, "on": true, "price": 2.5}')
    ]
    [after] = store.get_items("photos", ["002"], EVERYTHING)
    assert before is not None
    assert after is not None
    assert dict(after.metadata) == {"n": 2, "on": True, "price": 2.5}
    assert after.vector is not None
    assert before.vector is not None
    assert after.vector.tobytes() == before.vector.tobytes()
    assert (after.content_sha256, after.media) == (before.content_sha256, before.media)
    now = store.get_collection("photos")
    assert (now.unsealed, now.deleted, now.segments) == (built.unsealed, built.deleted, built.segments)
    assert no_problems(store)


def test_a_change_that_replaces_leaves_what_it_sets(store: LocalStore) -> None:
    change(store, MetadataChange("002", {"on": False}, replace=True), MetadataChange("003", replace=True))
    assert metadata_of(store, "002") == {"on": False}
    assert metadata_of(store, "003") == {}


def test_filters_that_were_asked_before_know_the_new_values(store: LocalStore) -> None:
    assert found(store, ON) == set()
    assert found(store, Range("n", lt=3)) == {"000", "001", "002"}
    change(store, *(MetadataChange(f"{n:03}", {"on": True, "n": 1000 + n}) for n in (1, 50, 110)))
    assert found(store, ON) == {"001", "050", "110"}
    assert found(store, Range("n", lt=3)) == {"000", "002"}
    assert found(store, Range("n", gte=1000)) == {"001", "050", "110"}
    change(store, MetadataChange("050", remove=["on"]), MetadataChange("110", {"on": False}))
    assert found(store, ON) == {"001"}
    assert found(store, Not(Exists("on"))) == {f"{n:03}" for n in range(120)} - {"001", "110"}


@pytest.mark.parametrize("remembered", [1 << 14, 3], ids=["few changes", "more than are remembered"])
def test_groups_that_were_asked_before_know_the_new_values(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, remembered: int
) -> None:
    monkeypatch.setattr(metadata_log, "_MAX_ROWS", remembered)
    monkeypatch.setattr(hits, "_SHALLOW", 1000)  # so that every row is looked at
    chance = np.random.default_rng(2)
    query = random_units(1, 4)
    change(store, *(MetadataChange(f"{n:03}", {"on": n % 3 == 0}) for n in range(120)))
    for _ in range(10):
        page = store.list_items("photos", page_size=1000, page_token="", filter=None, include=EVERYTHING)
        items = {item.id: item for item in page.items}
        for condition in (None, ON):
            options = SearchOptions(k=20, group_by="on", filter=condition)
            assert store_cases.found(store, query[0], options) == slow_search(items, query[0], options)
        ids = chance.permutation(120)[:10]
        change(store, *(MetadataChange(f"{n:03}", {"on": bool(chance.integers(2))}) for n in ids[:9]))
        change(store, *(MetadataChange(f"{n:03}", remove=["on"]) for n in ids[9:]))
        store.delete_items("photos", [f"{ids[0]:03}"])


def test_changes_of_one_item_are_made_in_order_and_what_is_too_large_or_missing_is_not(store: LocalStore) -> None:
    sizes = change(
        store,
        MetadataChange("007", {"text": "x" * 20}),
        MetadataChange("007", {"more": "y" * 40}),
        MetadataChange("gone", {"a": 1}),
        MetadataChange("007", {"a": 1}, remove=["text"]),
        most=60,
    )
    assert sizes[2] is None
    assert [size is not None and size <= 60 for size in sizes] == [True, False, False, True]
    assert dict(metadata_of(store, "007")) == {"n": 7, "tags": ["x"], "a": 1}
    assert no_problems(store)


def test_a_restart_and_a_restored_backup_have_the_new_values(store: LocalStore, tmp_path: Path) -> None:
    change(store, *(MetadataChange(f"{n:03}", {"on": n % 2 == 0}) for n in range(0, 120, 3)))
    expected = {f"{n:03}" for n in range(0, 120, 6)}
    with store.backup_collection("photos") as file:
        store.restore_collection("restored", [file.read()])
    assert store.count_items("restored", ON) == len(expected)
    assert store.check_collection("restored", lambda _: None).problems == ()
    store.close()
    with LocalStore.open(tmp_path / "data", background=False) as again:
        assert found(again, ON) == expected
        assert no_problems(again)


def test_a_damaged_item_is_not_given_a_new_checksum(store: LocalStore) -> None:
    with closing(sqlite3.connect(collection_of(store).path)) as connection, connection:
        connection.execute("UPDATE item SET sha = x'00' WHERE id = '001'")
    with pytest.raises(StoreError, match="item '001': its row does not match its checksum"):
        change(store, MetadataChange("000", {"a": 1}), MetadataChange("001", {"a": 1}))
    assert "a" not in metadata_of(store, "000")


def test_a_value_that_stands_already_writes_no_row(store: LocalStore) -> None:
    change(store, MetadataChange("001", {"on": True}))
    with closing(sqlite3.connect(collection_of(store).path)) as connection:
        before = connection.execute("SELECT seq FROM item WHERE id = '001'").fetchone()
        change(store, MetadataChange("001", {"on": True}, remove=["none"]))
        assert connection.execute("SELECT seq FROM item WHERE id = '001'").fetchone() == before


def test_readers_never_see_half_of_a_change(store: LocalStore) -> None:
    """Each transaction moves a mark from one item to another: every reader sees exactly one marked item."""
    change(store, MetadataChange("000", {"on": True}))
    query = random_units(1, 4)

    def move(stop: threading.Event) -> int:
        moves = 0
        while not stop.is_set():
            old, new = f"{moves * 7 % 120:03}", f"{(moves + 1) * 7 % 120:03}"
            change(store, MetadataChange(old, remove=["on"]), MetadataChange(new, {"on": True}))
            moves += 1
        return moves

    def look(stop: threading.Event) -> list[tuple[int, list[object]]]:
        seen: list[tuple[int, list[object]]] = []
        while not stop.is_set():
            (hits,) = store.search("photos", query, SearchOptions(k=9, filter=ON), [None])
            seen.append((store.count_items("photos", ON), [hit.metadata.get("on") for hit in hits]))
        return seen

    moves, *looks = run_threads(move, look, look, seconds=1.0)
    assert moves > 1
    assert all(seen and all(one == (1, [True]) for one in seen) for seen in looks)


def test_more_changes_than_are_remembered_are_read_again(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedserve.store.local.collection.metadata_log._MAX_ROWS", 3)
    assert found(store, ON) == set()
    for n in range(0, 100, 10):
        change(store, MetadataChange(f"{n:03}", {"on": True}))
    assert found(store, ON) == {f"{n:03}" for n in range(0, 100, 10)}


# --- Deletion by filter ---


def test_items_that_match_are_deleted_some_in_each_transaction(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedserve.store.local.collection.collection._BATCH", 8)
    monkeypatch.setattr("embedserve.store.local.collection.collection._WINDOW", 32)
    counts = list(store.delete_matching("photos", Range("n", gte=90)))
    assert sum(counts) == 30
    assert max(counts) <= 8
    assert all_ids(store) == [f"{n:03}" for n in range(90)]
    assert store.count_items("photos") == 90
    assert no_problems(store)
    assert list(store.delete_matching("photos", Range("n", gte=90))) == [0]


def test_a_caller_that_stops_keeps_the_rest(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedserve.store.local.collection.collection._BATCH", 10)
    deleting = store.delete_matching("photos", Range("n", lt=100))
    assert (next(deleting), next(deleting), next(deleting)) == (0, 10, 10)
    assert store.count_items("photos") == 100


def test_an_item_that_matches_no_more_when_its_turn_comes_stays(store: LocalStore) -> None:
    deleting = store.delete_matching("photos", Range("n", lt=10))
    next(deleting)
    change(store, MetadataChange("003", {"n": 1000}))
    fill(store, [4])  # a new row that matches, which nobody looked for
    store.upsert("photos", [Item(id="005", vector=random_units(1, 4)[0], metadata={"n": 1000})])
    assert sum(deleting) == 7
    assert {"003", "004", "005"} <= set(all_ids(store))
    assert no_problems(store)


def test_a_collection_that_is_deleted_meanwhile_ends_the_deletion(store: LocalStore) -> None:
    deleting = store.delete_matching("photos", Range("n", lt=10))
    next(deleting)
    store.delete_collection("photos")
    new_collection(store)
    fill(store, range(5))
    with pytest.raises(CollectionNotFound):
        next(deleting)
    assert store.count_items("photos") == 5


class Gone(Exception):
    """Raised by a caller that does not wait any more."""


def test_looking_for_items_ends_when_the_caller_has_gone(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedserve.store.local.records.interruption._STEPS", 50)
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Gone

    for work in (
        lambda: store.count_items("photos", Eq("other", "x"), check),
        lambda: next(store.delete_matching("photos", Eq("other", "y"), check)),
    ):
        calls = 0
        with pytest.raises(Gone):
            work()
        assert calls == 3
    assert store.count_items("photos", Not(Eq("other", "x"))) == 120


def test_after_many_changes_filters_find_what_the_items_say(store: LocalStore) -> None:
    chance = np.random.default_rng(1)
    for _ in range(20):
        ids = chance.integers(0, 120, 10)
        change(store, *(MetadataChange(f"{n:03}", {"on": bool(chance.integers(2)), "n": int(n) % 7}) for n in ids))
        page = store.list_items("photos", page_size=1000, page_token="", filter=None, include=EVERYTHING)
        assert found(store, ON) == {item.id for item in page.items if item.metadata.get("on") is True}
        assert found(store, Eq("n", 3)) == {item.id for item in page.items if item.metadata["n"] == 3}
    assert no_problems(store)
