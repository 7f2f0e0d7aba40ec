"""Any sequence of writes, searches and restarts against a dictionary."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from store_cases import EVERYTHING, found, holds, new_collection, slow_search, unit

from embedserve.store.local import LocalStore
from embedserve.types import Eq, Exists, Filter, In, Item, Not, Range, SearchOptions

VECTORS = [unit(*numbers) for numbers in ((1, 0, 0, 0), (0, 1, 0, 0), (1, 1, 0, 0), (-1, 0, 0, 0), (1, 2, 3, 4))]
IDS = [f"{prefix}{n}" for prefix in ("a", "B", "é") for n in range(12)]
ITEMS = st.builds(
    Item,
    id=st.sampled_from(IDS),
    vector=st.sampled_from(VECTORS),
    metadata=st.fixed_dictionaries(
        {}, optional={"n": st.integers(0, 3) | st.just(1.0) | st.booleans(), "tags": st.lists(st.sampled_from("xy"))}
    ),
)
FILTERS: st.SearchStrategy[Filter | None] = st.none() | st.sampled_from(
    [Eq("n", 1), Eq("tags", "x"), Not(Eq("tags", "x")), In("n", (True, 2)), Range("n", gte=1, lt=3), Exists("tags")]
)


class StoreMachine(RuleBasedStateMachine):
    """A store beside the dictionary that it should be equal to."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.items: dict[str, Item] = {}
        # Segments of a few rows, so that they are sealed and merged.
        self.small = [mock.patch("embedserve.index.delta._BYTES", 0), mock.patch("embedserve.index.delta._ROWS", 4)]
        for patch in self.small:
            patch.start()

    @initialize()
    def create(self) -> None:
        self.store = LocalStore.open(self.directory)
        new_collection(self.store)
        self.store.set_alias("live", "photos")

    @rule(items=st.lists(ITEMS, max_size=12))
    def upsert(self, items: list[Item]) -> None:
        self.store.upsert("live", items)
        self.items |= {item.id: item for item in items}

    @rule(ids=st.lists(st.sampled_from(IDS), max_size=12))
    def delete(self, ids: list[str]) -> None:
        assert self.store.delete_items("photos", ids) == len(set(ids) & self.items.keys())
        for id in ids:
            self.items.pop(id, None)

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = LocalStore.open(self.directory)

    @rule(
        query=st.sampled_from(VECTORS),
        k=st.integers(1, 40),
        condition=FILTERS,
        group_by=st.sampled_from(["", "", "n", "tags"]),
        min_score=st.sampled_from([None, None, 0.0, 0.5, 1.0]),
        exclude=st.none() | st.sampled_from(IDS),
    )
    def search(
        self,
        query: np.ndarray,
        k: int,
        condition: Filter | None,
        group_by: str,
        min_score: float | None,
        exclude: str | None,
    ) -> None:
        options = SearchOptions(k=k, filter=condition, group_by=group_by, min_score=min_score)
        assert found(self.store, query, options, exclude) == slow_search(self.items, query, options, exclude)

    @rule(page_size=st.integers(1, 9), condition=FILTERS)
    def page(self, page_size: int, condition: Filter | None) -> None:
        listed: list[Item] = []
        token = ""
        while True:
            page = self.store.list_items(
                "photos", page_size=page_size, page_token=token, filter=condition, include=EVERYTHING
            )
            listed += page.items
            token = page.next_page_token
            if not token:
                break
        expected = [item for item in self.items.values() if condition is None or holds(condition, item.metadata)]
        assert [_parts(item) for item in listed] == sorted(map(_parts, expected), key=lambda parts: parts[0].encode())

    @rule(ids=st.lists(st.sampled_from(IDS), max_size=9))
    def get(self, ids: list[str]) -> None:
        got = self.store.get_items("photos", ids, EVERYTHING)
        assert [item and _parts(item) for item in got] == [
            _parts(self.items[id]) if id in self.items else None for id in ids
        ]

    @invariant()
    def counts(self) -> None:
        assert self.store.get_collection("live").items == len(self.items)

    def teardown(self) -> None:
        self.store.close()
        for patch in self.small:
            patch.stop()
        shutil.rmtree(self.directory)


def _parts(item: Item) -> tuple[str, str, bytes]:
    assert item.vector is not None
    return item.id, repr(sorted(item.metadata.items())), item.vector.tobytes()


StoreMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
TestStoreEqualsADictionary = StoreMachine.TestCase
