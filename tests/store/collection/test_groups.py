"""One hit per group, against the slow model, and how often it looks at a row."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedserve.index import kernels
from embedserve.store.local.collection import groups, hits
from embedserve.store.local.store import LocalStore
from embedserve.types import Exists, Item, Metadata, MetadataValue, SearchOptions
from tests.sizes import small_delta
from tests.store.store_cases import collection_of, found, new_collection, random_units, slow_search

NUMBERS = itertools.count()
VALUES: list[MetadataValue | None] = [
    *(None, "a", "b", 'a"b\\c', 5, 5.0, True, 1, "1", ["a"], [], ["a", "b"], -0.0, 0, 2**53 + 1, 2.0**53)
]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.usefixtures("small_segments")
def test_hits_of_groups_equal_the_slow_model(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    monkeypatch.setattr(hits, "_SHALLOW", 1000)  # so that a few rows are many
    monkeypatch.setattr(hits, "_TIES", 3)
    monkeypatch.setattr(groups, "_ROWS", 7)
    monkeypatch.setattr(groups, "_SORTED", 16)
    name = f"c{next(NUMBERS)}"
    count, few = data.draw(st.integers(1, 120)), data.draw(st.integers(1, len(VALUES)))
    new_collection(store, name, 4)
    seed = data.draw(st.integers(0, 5))
    vectors = random_units(count, 4, seed)[np.random.default_rng(seed).integers(0, count, count)]  # some are equal
    values = data.draw(st.lists(st.sampled_from(VALUES[:few]), min_size=count, max_size=count))
    items = {}
    for n, value in enumerate(values):
        metadata: Metadata = {"n": n} if value is None else {"key": value, "n": n}
        items[f"{n * 7919 % 1000:03}-{n}"] = Item(id=f"{n * 7919 % 1000:03}-{n}", vector=vectors[n], metadata=metadata)
    for start in range(0, count, 40):
        store.upsert(name, list(items.values())[start : start + 40])
    if data.draw(st.booleans()):
        store.maintain()
    removed = list(items)[:: data.draw(st.integers(2, 9))]
    store.delete_items(name, removed)
    items = {id: item for id, item in items.items() if id not in set(removed)}
    for k in (1, 3, 200):
        options = SearchOptions(
            k=k,
            group_by="key",
            min_score=data.draw(st.sampled_from([None, 0.0, 0.7])),
            filter=data.draw(st.sampled_from([None, Exists("key"), Exists("n")])),
            exact=data.draw(st.booleans()),
        )
        exclude = data.draw(st.sampled_from([None, *list(items)[:3]]))
        for query in random_units(2, 4, seed=77):
            assert found(store, query, options, exclude, name) == slow_search(items, query, options, exclude)


def test_a_key_with_one_value_is_answered_by_one_look_at_every_row(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, queries = 20_000, 8
    new_collection(store, "many", 16)
    vectors = random_units(count, 16)
    for start in range(0, count, 1000):
        store.upsert("many", [
            Item(id=f"{n}", vector=vectors[n], metadata={"one": "value"}) for n in range(start, start + 1000)
        ])  # fmt: skip
    compared = 0

    def counting(function: Any) -> Any:
        def counted(query: Any, rows: Any, *more: Any) -> Any:
            nonlocal compared
            compared += (len(query) if query.ndim > 1 else 1) * len(more[0] if function is at else rows)
            return function(query, rows, *more)

        return counted

    at = kernels.inner_products_at
    for name in ("nearest", "inner_products", "inner_products_at"):
        monkeypatch.setattr(kernels, name, counting(getattr(kernels, name)))
    options = SearchOptions(group_by="one")
    answers = store.search("many", random_units(queries, 16, seed=5), options, [None] * queries)
    assert [len(hits) for hits in answers] == [1] * queries
    # The nearest 40 are ranked first, and deeper for the first query only; then every row once.
    assert compared <= count * (2 * queries + 3)


def test_groups_of_a_part_are_read_once_and_kept_within_their_bound(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_delta(monkeypatch, rows=50)
    monkeypatch.setattr(hits, "_SHALLOW", 1000)
    new_collection(store, "many", 4)
    vectors = random_units(200, 4)
    for start in range(0, 200, 50):
        store.upsert("many", [
            Item(id=f"{n}", vector=vectors[n], metadata={"one": n % 2, "two": n % 3}) for n in range(start, start + 50)
        ])  # fmt: skip
    kept = collection_of(store, "many")._groups
    options = SearchOptions(k=10, group_by="one")
    first = found(store, vectors[0], options, name="many")
    assert len(first) == 2
    assert len(kept._kept) == 3  # every part but the delta
    entries = list(kept._kept.values())
    assert found(store, vectors[0], options, name="many") == first
    assert list(kept._kept.values()) == entries
    assert kept._bytes == sum(of_part.bytes for _, of_part in entries)
    kept._max_bytes = entries[0][1].bytes + 100
    found(store, vectors[0], SearchOptions(k=10, group_by="two", exact=True), name="many")
    assert kept._bytes <= kept._max_bytes
