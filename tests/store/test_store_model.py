"""Any sequence of writes, searches, seals, restarts and restores, against dictionaries."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from numpy.typing import NDArray

from embedserve.changes import MetadataChange
from embedserve.errors import AlreadyExists, CollectionNotFound
from embedserve.store.local.store import LocalStore
from embedserve.types import (
    And,
    Eq,
    Exists,
    Filter,
    Hit,
    In,
    Item,
    Metadata,
    MetadataValue,
    Not,
    Or,
    Range,
    SearchOptions,
)
from tests.store.index_damage import DAMAGE, do_damage
from tests.store.store_cases import EVERYTHING, all_ids, holds, new_collection, random_units, slow_search, unit

# Few different vectors, so that many scores are equal.
VECTORS = [unit(*numbers) for numbers in ((1, 0, 0, 0), (0, 1, 0, 0), (1, 1, 0, 0), (-1, 0, 0, 0), (1, 2, 3, 4))]
MANY_VECTORS = random_units(300, 4)
IDS = [f"{prefix}{n}" for prefix in ("a", "B", "é") for n in range(12)]
COLLECTIONS = ("photos", "others")
ALIASES = ("live", "older")
METADATA = st.fixed_dictionaries(
    {}, optional={"n": st.integers(0, 3) | st.just(1.0) | st.booleans(), "tags": st.lists(st.sampled_from("xy"))}
)
ITEMS = st.builds(
    Item,
    id=st.sampled_from(IDS),
    vector=st.sampled_from(VECTORS),
    metadata=METADATA,
)
CHANGES = st.builds(
    MetadataChange,
    id=st.sampled_from([*IDS, *(f"m{n}" for n in range(6))]),
    set=METADATA,
    remove=st.sampled_from([(), (), ("n",), ("tags", "other")]),
) | st.builds(MetadataChange, id=st.sampled_from(IDS), set=METADATA, replace=st.just(True))
LIMITS = st.sampled_from([1000, 1000, 12])
"""Bytes of metadata that a change may leave."""
CONDITIONS: st.SearchStrategy[Filter] = st.sampled_from(
    [
        Eq("n", 1),
        Eq("tags", "x"),
        Not(Eq("tags", "x")),
        In("n", (True, 2)),
        Range("n", gte=1, lt=3),
        Range("tags", gt="x"),
        Exists("tags"),
        And((Eq("tags", "x"), Range("n", gte=1))),
        Or((Eq("n", 2), Exists("tags"))),
    ]
)
FILTERS = st.none() | CONDITIONS
COUNTS = st.sampled_from([0, 60, 100])
"""Numbers of items that are written together."""


@dataclass
class Expected:
    """What a collection must contain."""

    index: str
    items: dict[str, Item]


class StoreMachine(RuleBasedStateMachine):
    """A store, and the dictionaries that it must equal."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.expected: dict[str, Expected] = {}
        self.aliases: dict[str, str] = {}
        # Even a few rows are sealed, and searched in graphs and lists.
        self.small = [
            mock.patch(f"embedserve.index.{name}", value)
            for name, value in {
                "delta._BYTES": 0,
                "delta._ROWS": 4,
                "compaction._FEW_BYTES": 1,
                "spec.POINTS_PER_LIST": 8,
                "segment._FEW": 8,
            }.items()
        ]
        self.small.append(mock.patch("embedserve.store.local.collection.collection._BATCH", 7))
        for patch in self.small:
            patch.start()

    @initialize(indexes=st.permutations(["exact", "hnsw:m=8", "ivf"]), counts=st.tuples(COUNTS, COUNTS))
    def create(self, indexes: Sequence[str], counts: tuple[int, int]) -> None:
        self.open()
        for name, index, filter_keys in zip(COLLECTIONS, indexes, (["n"], ["tags", "n"]), strict=False):
            new_collection(self.store, name, index=index, filter_keys=filter_keys)
            self.expected[name] = Expected(index, {})
        self.store.set_alias("live", "photos")
        self.aliases["live"] = "photos"
        for name, count in zip(COLLECTIONS, counts, strict=True):
            self.upsert_many(name, 0, count)
        self.maintain()

    def open(self) -> None:
        self.store = LocalStore.open(self.directory / "data", background=False)

    def of(self, name: str) -> Expected | None:
        """What must be found under a name or alias."""
        return self.expected.get(self.aliases.get(name, name))

    # --- Writes ---------------------------------------------------------------------

    @rule(name=st.sampled_from([*COLLECTIONS, *ALIASES]), items=st.lists(ITEMS, max_size=12))
    def upsert(self, name: str, items: list[Item]) -> None:
        expected = self.of(name)
        if expected is None:
            with pytest.raises(CollectionNotFound):
                self.store.upsert(name, items)
        else:
            self.store.upsert(name, items)
            expected.items |= {item.id: item for item in items}

    @rule(name=st.sampled_from(COLLECTIONS), first=st.integers(0, 200), count=COUNTS)
    def upsert_many(self, name: str, first: int, count: int) -> None:
        items = [
            Item(id=f"m{n % 150}", vector=MANY_VECTORS[n], metadata={"n": n % 3, "tags": ["x"][: n % 2]})
            for n in range(first, first + count)
        ]
        self.store.upsert(name, items)
        self.expected[name].items |= {item.id: item for item in items}

    @rule(name=st.sampled_from(COLLECTIONS), ids=st.lists(st.sampled_from(IDS), max_size=12))
    def delete(self, name: str, ids: list[str]) -> None:
        items = self.expected[name].items
        assert self.store.delete_items(name, ids) == len(set(ids) & items.keys())
        for id in ids:
            items.pop(id, None)

    @rule(name=st.sampled_from(COLLECTIONS), every=st.integers(1, 4))
    def delete_many(self, name: str, every: int) -> None:
        items = self.expected[name].items
        ids = sorted(items)[::every]
        assert self.store.delete_items(name, ids) == len(ids)
        for id in ids:
            del items[id]
        self.check_searches()

    @rule(name=st.sampled_from([*COLLECTIONS, *ALIASES]), changes=st.lists(CHANGES, max_size=8), most=LIMITS)
    def update_metadata(self, name: str, changes: list[MetadataChange], most: int) -> None:
        expected = self.of(name)
        if expected is None:
            with pytest.raises(CollectionNotFound):
                self.store.update_metadata(name, changes, most)
            return
        sizes: list[int | None] = []
        for change in changes:
            item = expected.items.get(change.id)
            metadata = None if item is None else changed(item.metadata, change)
            sizes.append(None if metadata is None else len(json.dumps(metadata, ensure_ascii=False).encode()))
            if item is not None and metadata is not None and (sizes[-1] or 0) <= most:
                expected.items[change.id] = replace(item, metadata=metadata)
        assert self.store.update_metadata(name, changes, most) == sizes

    @rule(name=st.sampled_from(COLLECTIONS), every=st.integers(1, 3), n=st.integers(0, 3))
    def update_many(self, name: str, every: int, n: int) -> None:
        items = self.expected[name].items
        changes = [MetadataChange(id=id, set={"n": n}, remove=("tags",)) for id in sorted(items)[::every]]
        assert None not in self.store.update_metadata(name, changes, 1000)
        for change in changes:
            items[change.id] = replace(items[change.id], metadata=changed(items[change.id].metadata, change))
        self.check_searches()

    @rule(name=st.sampled_from([*COLLECTIONS, *ALIASES]), condition=CONDITIONS)
    def delete_matching(self, name: str, condition: Filter) -> None:
        expected = self.of(name)
        if expected is None:
            with pytest.raises(CollectionNotFound):
                next(self.store.delete_matching(name, condition))
            return
        gone = [id for id, item in expected.items.items() if holds(condition, item.metadata)]
        assert sum(self.store.delete_matching(name, condition)) == len(gone)
        for id in gone:
            del expected.items[id]

    # --- Names ----------------------------------------------------------------------

    @rule(alias=st.sampled_from(ALIASES), pointed_at=st.sampled_from([*COLLECTIONS, *ALIASES]))
    def set_alias(self, alias: str, pointed_at: str) -> None:
        if self.of(pointed_at) is None:
            with pytest.raises(CollectionNotFound):
                self.store.set_alias(alias, pointed_at)
        else:
            self.store.set_alias(alias, pointed_at)
            self.aliases[alias] = self.aliases.get(pointed_at, pointed_at)

    @rule(alias=st.sampled_from(ALIASES))
    def remove_alias(self, alias: str) -> None:
        if alias in self.aliases:
            self.store.set_alias(alias, "")
            del self.aliases[alias]
        else:
            with pytest.raises(CollectionNotFound):
                self.store.set_alias(alias, "")

    # --- The index is built, lost and rebuilt -----------------------------------------

    @rule()
    def maintain(self) -> None:
        self.store.maintain()
        for name in COLLECTIONS:
            info = self.store.get_collection(name)
            assert info.unsealed == 0
            assert not info.building
            assert (info.segments > 0) >= (info.items > 0)
            assert info.deleted <= info.items
        self.check_searches()

    @rule(damage=st.sampled_from(DAMAGE), where=st.integers(0, 10**6))
    def restart(self, damage: str, where: int) -> None:
        before = [(info.unsealed, info.segments, info.items) for info in map(self.store.get_collection, COLLECTIONS)]
        self.store.close()
        damaged = do_damage(self.directory, damage, where)
        self.open()
        after = [(info.unsealed, info.segments, info.items) for info in map(self.store.get_collection, COLLECTIONS)]
        if damaged:
            assert [numbers[2] for numbers in after] == [numbers[2] for numbers in before]
            assert [numbers[1] for numbers in after] != [numbers[1] for numbers in before]
        else:
            assert after == before
        self.check_searches()

    @rule()
    def crash(self) -> None:
        # What another process would find on disk if this one stopped now.
        shutil.copytree(self.directory / "data", self.directory / "left")
        self.store.close()
        shutil.rmtree(self.directory / "data")
        (self.directory / "left").rename(self.directory / "data")
        self.open()
        self.check_searches()

    @rule(name=st.sampled_from(COLLECTIONS), stays=st.booleans())
    def back_up_and_restore(self, name: str, stays: bool) -> None:
        with self.store.backup_collection(name) as file:
            content = file.read()
        with pytest.raises(AlreadyExists):
            self.store.restore_collection(name, [content])
        restored = self.store.restore_collection("restored", [content[:1000], content[1000:]])
        original = self.store.get_collection(name)
        assert (restored.index_spec, restored.filter_keys) == (original.index_spec, original.filter_keys)
        self.check_listing("restored", self.expected[name].items, None, 50)
        self.store.delete_collection("restored")
        if not stays:
            # The restored collection replaces the original.
            self.store.delete_collection(name)
            self.store.restore_collection(name, [content])
            self.aliases = {alias: target for alias, target in self.aliases.items() if target != name}

    # --- Answers --------------------------------------------------------------------

    @rule(
        name=st.sampled_from([*COLLECTIONS, *ALIASES]),
        queries=st.lists(st.sampled_from([*VECTORS, *MANY_VECTORS[:5]]), min_size=1, max_size=3),
        k=st.integers(1, 8) | st.integers(1, 200),
        condition=FILTERS,
        group_by=st.sampled_from(["", "", "n", "tags"]),
        min_score=st.sampled_from([None, None, 0.0, 0.5, 1.0]),
        exclude=st.none() | st.sampled_from([*IDS, "m0", "m1"]),
        include=st.tuples(st.booleans(), st.booleans()),
    )
    def search(
        self,
        name: str,
        queries: list[NDArray[np.float32]],
        k: int,
        condition: Filter | None,
        group_by: str,
        min_score: float | None,
        exclude: str | None,
        include: tuple[bool, bool],
    ) -> None:
        options = SearchOptions(
            k=k,
            filter=condition,
            group_by=group_by,
            min_score=min_score,
            include_metadata=include[0],
            include_vectors=include[1],
        )
        expected = self.of(name)
        if expected is None:
            with pytest.raises(CollectionNotFound):
                self.store.search(name, np.stack(queries), options, [exclude] * len(queries))
        else:
            self.check_search(name, expected, queries, options, exclude)

    def check_search(
        self,
        name: str,
        expected: Expected,
        queries: list[NDArray[np.float32]],
        options: SearchOptions,
        exclude: str | None = None,
    ) -> None:
        for exact in (False, True):
            options = replace(options, exact=exact)
            answers = self.store.search(name, np.stack(queries), options, [exclude] * len(queries))
            for query, hits in zip(queries, answers, strict=True):
                check_parts(hits, expected.items, options)
                answer = [(hit.id, hit.score) for hit in hits]
                if exact or expected.index == "exact":
                    assert answer == slow_search(expected.items, query, options, exclude)
                else:
                    check_approximate(answer, expected.items, query, options, exclude)

    def check_searches(self) -> None:
        """Some that go through graphs and lists where there are enough items."""
        for name, expected in self.expected.items():
            for condition in (None, Range("n", lt=2), Not(Eq("tags", "x"))):
                options = SearchOptions(k=3, filter=condition, include_metadata=condition is not None)
                self.check_search(name, expected, [MANY_VECTORS[0], VECTORS[4]], options)
            self.check_search(name, expected, [MANY_VECTORS[1]], SearchOptions(k=2, group_by="n"))

    @rule(name=st.sampled_from(COLLECTIONS), page_size=st.integers(1, 9) | st.just(200), condition=FILTERS)
    def page(self, name: str, page_size: int, condition: Filter | None) -> None:
        self.check_listing(name, self.expected[name].items, condition, page_size)

    def check_listing(self, name: str, items: dict[str, Item], condition: Filter | None, page_size: int) -> None:
        listed: list[Item] = []
        token = ""
        while True:
            page = self.store.list_items(
                name, page_size=page_size, page_token=token, filter=condition, include=EVERYTHING
            )
            listed += page.items
            token = page.next_page_token
            if not token:
                break
        expected = [item for item in items.values() if condition is None or holds(condition, item.metadata)]
        assert [_parts(item) for item in listed] == sorted(map(_parts, expected), key=lambda parts: parts[0].encode())

    @rule(name=st.sampled_from([*COLLECTIONS, *ALIASES]), condition=FILTERS)
    def count(self, name: str, condition: Filter | None) -> None:
        expected = self.of(name)
        if expected is None:
            with pytest.raises(CollectionNotFound):
                self.store.count_items(name, condition)
        else:
            matching = [
                id for id, item in expected.items.items() if condition is None or holds(condition, item.metadata)
            ]
            assert self.store.count_items(name, condition) == len(matching)

    @rule(name=st.sampled_from(COLLECTIONS), ids=st.lists(st.sampled_from(IDS), max_size=9))
    def get(self, name: str, ids: list[str]) -> None:
        items = self.expected[name].items
        got = self.store.get_items(name, ids, EVERYTHING)
        assert [item and _parts(item) for item in got] == [_parts(items[id]) if id in items else None for id in ids]

    @invariant()
    def counts_and_names(self) -> None:
        infos = self.store.list_collections()
        assert {info.name: info.items for info in infos} == {
            name: len(expected.items) for name, expected in self.expected.items()
        }
        assert {alias: info.name for info in infos for alias in info.aliases} == self.aliases

    def teardown(self) -> None:
        for name, expected in self.expected.items():
            assert set(all_ids(self.store, name, 1000)) == expected.items.keys()
        self.store.close()
        for patch in self.small:
            patch.stop()
        shutil.rmtree(self.directory)


def changed(metadata: Metadata, change: MetadataChange) -> dict[str, MetadataValue]:
    """What a change leaves of metadata."""
    left: dict[str, MetadataValue] = {} if change.replace else dict(metadata)
    for key in change.remove:
        if key not in change.set:
            left.pop(key, None)
    left.update(change.set)
    return left


def check_parts(hits: list[Hit], items: dict[str, Item], options: SearchOptions) -> None:
    """Metadata and vectors are those of the items."""
    for hit in hits:
        item = items[hit.id]
        assert item.vector is not None
        if options.include_metadata:
            assert _parts(Item(id=hit.id, metadata=hit.metadata, vector=item.vector)) == _parts(item)
        else:
            assert hit.metadata == {}
        assert (hit.vector is not None) == options.include_vectors
        assert hit.vector is None or hit.vector.tobytes() == item.vector.tobytes()


def check_approximate(
    answer: list[tuple[str, float]],
    items: dict[str, Item],
    query: NDArray[np.float32],
    options: SearchOptions,
    exclude: str | None,
) -> None:
    """min(k, matches) hits, each of them a match with its score, in order; perhaps not the nearest."""
    of_groups = slow_search(items, query, replace(options, k=10**6), exclude)
    possible = dict(slow_search(items, query, replace(options, k=10**6, group_by=""), exclude))
    assert answer == sorted(answer, key=lambda pair: (-pair[1], pair[0].encode()))
    assert len({id for id, _ in answer}) == len(answer)
    assert all(possible.get(id) == score for id, score in answer)
    if options.group_by:
        groups = [_group(items[id], options.group_by) for id, _ in answer if options.group_by in items[id].metadata]
        assert len(set(groups)) == len(groups)
    if options.min_score is None:
        assert len(answer) == min(options.k, len(of_groups))
    else:
        assert len(answer) <= min(options.k, len(of_groups))


def _group(item: Item, key: str) -> str:
    value = item.metadata[key]
    return repr(float(value)) if isinstance(value, int) and not isinstance(value, bool) else repr(value)


def _parts(item: Item) -> tuple[str, str, bytes]:
    assert item.vector is not None
    return item.id, repr(sorted(item.metadata.items())), item.vector.tobytes()


StoreMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestStoreEqualsDictionaries = pytest.mark.slow(StoreMachine.TestCase)
