"""Work that nobody waits for any more ends: what is done between two looks is counted, not timed."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from embedserve.answer_size import AnswerSize
from embedserve.errors import DeadlineExceeded, LimitExceeded
from embedserve.index import kernels, ranking, rows
from embedserve.index.structures import Hnsw
from embedserve.store.local.records.view import View
from embedserve.store.local.store import LocalStore
from embedserve.types import Eq, Exists, Include, Item, Not, Range, SearchOptions
from embedserve.wanted import Unwanted, Wanted
from tests.store.store_cases import collection_of, new_collection, random_units

D = 16
COUNT = 4000
STEP = 1 << 14
ROWS = 4096
"""Rows of SQLite that are read between two looks, at most."""


class Counting(Wanted):
    """Notes the work between two looks, and may end after some of them."""

    def __init__(self, looks: int = 1 << 60) -> None:
        super().__init__()
        self.numbers, self.most, self.looks, self.left = 0, 0, 0, looks

    def check(self) -> None:
        self.most, self.numbers = max(self.most, self.numbers), 0
        self.looks += 1
        if self.looks > self.left:
            raise Unwanted


@pytest.fixture
def many(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> LocalStore:
    """A collection of several parts, some rows deleted, some equal."""
    monkeypatch.setattr(kernels, "STEP_NUMBERS", STEP)
    monkeypatch.setattr(kernels, "_LEAST_ROWS", 8)
    new_collection(store, "many", D, filter_keys=["declared"])
    vectors = random_units(COUNT, D)
    vectors[::10] = vectors[0]
    for start in range(0, COUNT, 500):
        store.upsert("many", [
            Item(id=f"{n:05}", vector=vectors[n], metadata={"one": "value", "n": n, "declared": n % 7})
            for n in range(start, start + 500)
        ])  # fmt: skip
    store.maintain()
    store.delete_items("many", [f"{n:05}" for n in range(5, COUNT, 9)])
    return store


def counted(monkeypatch: pytest.MonkeyPatch, wanted: Counting) -> None:
    """Count queries × rows × dimension of everything that multiplies vectors."""
    nearest, one, at, search = kernels.nearest, kernels.inner_products, kernels.inner_products_at, Hnsw.search

    def count(numbers: int) -> None:
        wanted.numbers += numbers

    def counted_nearest(queries: Any, vectors: Any, *more: Any) -> Any:
        count(len(queries) * len(vectors) * D)
        return nearest(queries, vectors, *more)

    def counted_one(query: Any, vectors: Any) -> Any:
        count(len(vectors) * D)
        return one(query, vectors)

    def counted_at(query: Any, vectors: Any, positions: Any) -> Any:
        count(len(positions) * D)
        return at(query, vectors, positions)

    def counted_search(self: Hnsw, queries: Any, k: int, param: int) -> Any:
        count(len(queries) * min(32 * max(param, k), len(self.vectors)) * D)
        return search(self, queries, k, param)

    monkeypatch.setattr(kernels, "nearest", counted_nearest)
    monkeypatch.setattr(kernels, "inner_products", counted_one)
    monkeypatch.setattr(kernels, "inner_products_at", counted_at)
    monkeypatch.setattr(Hnsw, "search", counted_search)


SEARCHES = {
    "exact": SearchOptions(exact=True),
    "all": SearchOptions(k=COUNT // 3, include_metadata=False),
    "grouped": SearchOptions(group_by="one"),
    "filtered": SearchOptions(filter=Not(Eq("n", -1))),
    "filtered by a declared key": SearchOptions(filter=Range("declared", lt=3)),
    "filtered and grouped": SearchOptions(filter=Exists("n"), group_by="one", exact=True),
}


@pytest.mark.parametrize("kind", SEARCHES)
def test_little_is_multiplied_between_two_looks(many: LocalStore, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    wanted = Counting()
    counted(monkeypatch, wanted)
    queries = random_units(32, D, seed=3)
    options = SEARCHES[kind]
    found = many.search("many", queries, options, [None] * 32, wanted=wanted)
    wanted.check()
    assert min(map(len, found)) >= 1
    # A step has at least four rows for each that is kept.
    assert wanted.most <= max(STEP, 4 * (options.k + rows._SPARE) * D * 2)
    assert wanted.looks >= 10


@pytest.mark.parametrize("kind", SEARCHES)
@pytest.mark.parametrize("looks", [0, 1, 5, 9])
def test_a_search_ends_at_the_look_at_which_its_caller_has_left(many: LocalStore, kind: str, looks: int) -> None:
    wanted = Counting(looks)
    with pytest.raises(Unwanted):
        many.search("many", random_units(32, D, seed=3), SEARCHES[kind], [None] * 32, wanted=wanted)
    assert wanted.looks == looks + 1
    collection = collection_of(many, "many")
    assert len(collection._records._readers._idle) <= 1  # it is given back or closed
    assert len(many.search("many", random_units(1, D), SEARCHES[kind], [None])[0]) >= 1


def test_steps_do_not_change_what_is_found(many: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = random_units(32, D, seed=3)
    queries[0] = random_units(1, D)[0]
    stepped = {kind: many.search("many", queries, options, [None] * 32) for kind, options in SEARCHES.items()}
    monkeypatch.undo()
    for kind, options in SEARCHES.items():
        assert many.search("many", queries, options, [None] * 32) == stepped[kind]


def test_a_statement_that_runs_for_ever_is_interrupted_when_the_caller_leaves(store: LocalStore) -> None:
    wanted, begun = Wanted(), threading.Event()

    def note() -> int:
        begun.set()
        return 1

    def leave() -> None:
        assert begun.wait(20)
        wanted.cancel()

    def count_for_ever() -> None:
        with collection_of(store)._records.reading(wanted) as view:
            view.connection.create_function("noted", 0, note)
            view.connection.execute(
                "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + noted() FROM c) SELECT COUNT(*) FROM c"
            ).fetchone()

    leaving = threading.Thread(target=leave)
    leaving.start()
    with pytest.raises(Unwanted):
        count_for_ever()
    leaving.join()
    assert store.list_items("photos", page_size=1, page_token="", filter=None, include=Include()).items == ()


def test_a_statement_ends_when_the_deadline_passes(store: LocalStore) -> None:
    wanted = Wanted(deadline=0.0)
    for_ever = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT COUNT(*) FROM c"
    with pytest.raises(DeadlineExceeded), collection_of(store)._records._readers.transaction(Late()) as connection:
        connection.execute(for_ever).fetchone()
    with pytest.raises(DeadlineExceeded):
        store.get_items("photos", ["a"], Include(), wanted=wanted)


class Late(Wanted):
    """Its deadline passes after the first look."""

    def begin(self, interrupt: Any) -> None:
        super().begin(interrupt)
        self._deadline = 0.0


# --- Size ---------------------------------------------------------------------------------------------------------


def large(store: LocalStore, count: int = 600) -> None:
    store.upsert("photos", [
        Item(id=f"{n:04}", vector=vector, metadata={"text": "x" * 1000})
        for n, vector in enumerate(random_units(count, 4))
    ])  # fmt: skip


def rows_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    read: list[int] = []
    row = View._row

    def counted_row(self: View, columns: Any) -> Any:
        read.append(columns[0])
        return row(self, columns)

    monkeypatch.setattr(View, "_row", counted_row)
    return read


def test_a_search_stops_reading_where_its_answer_is_too_large(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    large(store)
    read = rows_read(monkeypatch)
    sizes = [AnswerSize(100_000, "ask for less")] * 64
    with pytest.raises(LimitExceeded, match="max_message_bytes is 100000"):
        store.search("photos", random_units(64, 4, seed=1), SearchOptions(k=100), [None] * 64, sizes=sizes)
    assert len(read) <= 600  # of one step; there would be 6,400 hits


def test_each_row_is_read_once_for_all_queries_and_its_metadata_shared(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    large(store)
    read = rows_read(monkeypatch)
    size = AnswerSize(1 << 30)
    answers = store.search("photos", random_units(16, 4, seed=1), SearchOptions(k=600), [None] * 16, sizes=[size] * 16)
    assert sorted(read) == sorted(set(read))
    assert len(read) == 600
    assert len({id(hit.metadata) for hits in answers for hit in hits}) == 600
    assert all(hit.metadata == {"text": "x" * 1000} for hits in answers for hit in hits)
    assert 16 * 600 * 1000 <= size.bytes <= 16 * 600 * 1100


def test_items_count_as_often_as_they_are_asked_for(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    large(store, 20)
    read = rows_read(monkeypatch)
    with pytest.raises(LimitExceeded):
        store.get_items("photos", ["0001"] * 100, Include(metadata=True), size=AnswerSize(50_000))
    assert len(read) == 1
    found = store.get_items("photos", ["0001", "no", "0001"], Include(metadata=True), size=AnswerSize(50_000))
    assert [None if item is None else item.id for item in found] == ["0001", None, "0001"]


def test_a_page_ends_before_it_is_too_large_and_has_at_least_one_item(store: LocalStore) -> None:
    large(store, 30)
    seen: list[str] = []
    token, pages = "", 0
    while True:
        page = store.list_items(
            "photos", page_size=20, page_token=token, filter=None, include=Include(metadata=True), page_bytes=5_000
        )
        assert len(page.items) <= 4
        seen += [item.id for item in page.items]
        token, pages = page.next_page_token, pages + 1
        if not token:
            break
    assert seen == [f"{n:04}" for n in range(30)]
    assert pages == 8
    page = store.list_items(
        "photos", page_size=20, page_token="", filter=None, include=Include(metadata=True), page_bytes=1
    )
    assert [item.id for item in page.items] == ["0000"]


def test_a_million_equal_vectors_are_not_all_ranked_in_memory_for_every_query(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 3000
    vector = random_units(1, 4)[0]
    store.upsert("photos", [Item(id=f"{n:05}", vector=vector) for n in range(count)])
    ranked: list[int] = []
    rank = ranking.rank

    def counted_rank(of: int, *arrays: Any) -> Any:
        ranked.append(len(arrays[0]))
        return rank(of, *arrays)

    monkeypatch.setattr("embedserve.index.snapshot.rank", counted_rank)
    found = store.search("photos", np.stack([vector] * 16), SearchOptions(include_metadata=False), [None] * 16)
    assert [[hit.id for hit in hits] for hits in found] == [[f"{n:05}" for n in range(10)]] * 16
    assert max(ranked) == count  # of one query at a time
