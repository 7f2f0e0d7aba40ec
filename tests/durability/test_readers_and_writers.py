"""Readers and writers on one collection while its graphs are constantly built and merged.

Every call is recorded with the times of its begin and end, and compared with all writes after the run. CRASH_SECONDS is
the duration of the run.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from math import ceil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from embedserve.changes import MetadataChange
from embedserve.store.local.store import LocalStore
from embedserve.store.local.upkeep import sealing
from embedserve.types import Filter, Hit, Include, Item, Range, SearchOptions
from tests.durability.history import History, Version, Writer, now
from tests.sizes import small_seals
from tests.store.store_cases import all_ids, collection_of, new_collection
from tests.store.worker_threads import run_threads

SECONDS = float(os.environ.get("CRASH_SECONDS", "8"))
ROWS = 8_000 if SECONDS < 30 else 30_000
WRITERS, DIMENSION, LATENT, CLUSTERS = 3, 64, 24, 100
SHARES: dict[str, tuple[Filter | None, int]] = {
    "all": (None, 1000),
    "half": (Range("drawn", lt=500), 500),
    "half, undeclared": (Range("undeclared", lt=500), 500),
    "tenth": (Range("drawn", lt=100), 100),
    "few": (Range("drawn", lt=2), 2),
}
"""Filters, and the number from 0 to 1000 below which that of a matching id is."""
IN_GRAPHS = ("all", "half", "half, undeclared")
"""Filters that are searched in graphs; fewer matches are compared one by one."""
WAITING = 1000
"""Number of rows that are sealed; few, so that it happens often."""
KEPT = 3
"""Two in this many ids are replaced again and again but never deleted."""
FLOOR = 0.9
"""Minimum of recall@10, at any time."""
TOGETHER = 20
"""Minimum number of searches over which recall is averaged."""


def drawn(id: str) -> int:
    """A number from 0 to 999, which depends only on the id."""
    return int(id) * 7919 % 1000


def is_kept(id: str) -> bool:
    return int(id) // WRITERS % KEPT != 0


ALWAYS = sorted(str(n) for n in range(ROWS) if is_kept(str(n)))
"""Ids of items that always exist."""
ALWAYS_OF = {share: {id for id in ALWAYS if drawn(id) < below} for share, (_, below) in SHARES.items()}
"""Those of them that match a filter."""


class Mixture:
    """Clusters like those of encoders, with their own random generator."""

    def __init__(self, seed: int) -> None:
        fixed = np.random.default_rng(0)
        self._centres = fixed.standard_normal((CLUSTERS, LATENT))
        self._layer = 1.2 * fixed.standard_normal((LATENT, DIMENSION)) / np.sqrt(LATENT)
        self.random = np.random.default_rng(seed)

    def vectors(self, count: int) -> NDArray[np.float32]:
        """float32 [count, D], unit norm."""
        latent = self._centres[self.random.integers(0, CLUSTERS, count)]
        latent = latent + 0.6 * self.random.standard_normal((count, LATENT))
        vectors = np.tanh(latent @ self._layer) + 0.05 * self.random.standard_normal((count, DIMENSION))
        scaled: NDArray[np.float64] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return scaled.astype(np.float32)


@dataclass(frozen=True)
class Search:
    """A search and its answer."""

    start: float
    end: float
    query: NDArray[np.float32]
    options: SearchOptions
    share: str
    hits: list[Hit]


@dataclass(frozen=True)
class Reading:
    """Items read by id, or listed from one id to another."""

    start: float
    end: float
    ids: list[str]
    """The requested ids; for a listing those that were returned."""
    items: list[Item | None]
    between: tuple[str, str] | None = None
    """For a listing the first and the last id, inclusive."""


@dataclass(frozen=True)
class Build:
    """A build of a segment, or of none where no row was live."""

    start: float
    end: float
    rows: int


class Run:
    """The threads, and what they recorded."""

    def __init__(self, store: LocalStore) -> None:
        self.store = store
        self.writers = [Writer() for _ in range(WRITERS)]

    def fill(self) -> None:
        for number, writer in enumerate(self.writers):
            ids = [str(n) for n in range(number, ROWS, WRITERS)]
            vectors = Mixture(number).vectors(len(ids))
            for start in range(0, len(ids), 2000):
                self._put(writer, ids[start : start + 2000], vectors[start : start + 2000])
        self.store.maintain()

    def _put(self, writer: Writer, ids: list[str], vectors: NDArray[np.float32]) -> None:
        with writer.putting(ids, vectors) as versions:
            self.store.upsert("photos", [_item(version) for version in versions])

    def _update(self, writer: Writer, ids: list[str]) -> None:
        """Change only the metadata of items."""
        vectors = np.stack([writer.current[id].vector for id in ids])
        with writer.putting(ids, vectors) as versions:
            changes = [MetadataChange(version.id, {"version": version.number}) for version in versions]
            assert None not in self.store.update_metadata("photos", changes, 1000)

    def write(self, number: int) -> Callable[[threading.Event], int]:
        """Replace, change, delete and add items until told to stop."""

        def worker(stop: threading.Event) -> int:
            mixture, writer = Mixture(100 + number), self.writers[number]
            random = mixture.random
            mine = [str(n) for n in range(number, ROWS, WRITERS)]
            lost = [id for id in mine if not is_kept(id)]
            calls = 0
            while not stop.is_set():
                match random.integers(0, 5):
                    case 0 | 1:
                        some = random.choice(mine, 96, replace=False).tolist()
                        self._put(writer, some, mixture.vectors(96))
                    case 2:
                        self._put(writer, [mine[random.integers(len(mine))]], mixture.vectors(1))
                    case 3:
                        chosen = random.choice(mine, 96, replace=False).tolist()
                        self._update(writer, [id for id in chosen if id in writer.current])
                    case _:
                        some = random.choice(lost, 24, replace=False).tolist()
                        there = len(set(some) & writer.current.keys())
                        with writer.deleting(some):
                            assert self.store.delete_items("photos", some) == there
                calls += 1
            return calls

        return worker

    def search(self, number: int) -> Callable[[threading.Event], list[Search]]:
        """Search in every way."""

        def worker(stop: threading.Event) -> list[Search]:
            mixture = Mixture(200 + number)
            random = mixture.random
            searches: list[Search] = []
            names = ["all", *SHARES]
            while not stop.is_set():
                share = names[random.integers(len(names))]
                options = SearchOptions(
                    k=int(random.choice([1, 10, 10, 50])),
                    filter=SHARES[share][0],
                    exact=bool(random.random() < 0.15),
                    include_metadata=bool(random.random() < 0.3),
                    include_vectors=bool(random.random() < 0.3),
                )
                query = mixture.vectors(1)
                start = now()
                (hits,) = self.store.search("photos", query, options, [None])
                searches.append(Search(start, now(), query[0], options, share, hits))
            return searches

        return worker

    def read(self, stop: threading.Event) -> list[Reading]:
        """Read by id and by pages."""
        random = np.random.default_rng(300)
        include = Include(metadata=True, vectors=True)
        readings: list[Reading] = []
        token = ""
        while not stop.is_set():
            ids = [str(n) for n in random.integers(0, ROWS, 20)]
            start = now()
            items = self.store.get_items("photos", ids, include)
            readings.append(Reading(start, now(), ids, items))
            start = now()
            page = self.store.list_items("photos", page_size=200, page_token=token, filter=None, include=include)
            end = now()
            listed = [item.id for item in page.items]
            readings.append(Reading(start, end, listed, list(page.items), (listed[0], listed[-1])))
            token = page.next_page_token
        return readings

    def build(self, stop: threading.Event) -> list[Build]:
        """Seal and merge whenever a step is due."""
        builds: list[Build] = []
        while not stop.is_set():
            start = now()
            sealed = sealing.seal_next(collection_of(self.store), at_once=True)
            if sealed is None:
                stop.wait(0.005)
            else:
                builds.append(Build(start, now(), sealed.rows))
        return builds


def _item(version: Version) -> Item:
    metadata = {"drawn": drawn(version.id), "undeclared": drawn(version.id), "version": version.number}
    return Item(id=version.id, vector=version.vector, metadata=metadata)


@pytest.mark.slow
def test_every_answer_was_right_during_the_call_and_recall_stays_above_its_floor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With so few rows, filters that match half of them would not use the graphs.
    small_seals(monkeypatch, few_bytes=WAITING * DIMENSION * 4)
    monkeypatch.setattr("embedserve.index.segment._FEW", 500)
    with LocalStore.open(tmp_path / "data", background=False) as store:
        new_collection(store, dimension=DIMENSION, index="hnsw:m=16", filter_keys=["drawn"])
        run = Run(store)
        run.fill()
        writing = [run.write(number) for number in range(WRITERS)]
        searching = [run.search(number) for number in range(3)]
        *calls, readings, builds = run_threads(*writing, *searching, run.read, run.build, seconds=SECONDS)
        history = History(run.writers)
        searches: list[Search] = sorted(chain.from_iterable(calls[WRITERS:]), key=lambda search: search.start)
        assert min(calls[:WRITERS]) > SECONDS
        assert len(searches) > 20 * SECONDS
        assert len(readings) > SECONDS
        assert len(builds) > 1
        assert max(build.rows for build in builds) > ROWS / 2

        for search in searches:
            check_hits(history, search)
        for reading in readings:
            check_items(history, reading)
        check_recall(history, searches, builds)

        assert set(all_ids(store, page_size=1000)) == history.live().keys()
        store.maintain()
        check_end(store, history)
    with LocalStore.open(tmp_path / "data", background=False) as store:
        assert store.get_collection("photos").unsealed < WAITING
        check_end(store, history)


def check_hits(history: History, search: Search) -> None:
    """min(k, matches) hits, none twice, each in a state that it had at some moment of the call."""
    below = SHARES[search.share][1]
    assert len({hit.id for hit in search.hits}) == len(search.hits) <= search.options.k
    scores = [hit.score for hit in search.hits]
    assert scores == sorted(scores, reverse=True)
    for hit in search.hits:
        assert drawn(hit.id) < below
        number = int(str(hit.metadata["version"])) if search.options.include_metadata else None
        scored = search.query, hit.score
        history.seen(hit.id, search.start, search.end, number=number, vector=hit.vector, scored=scored)
    always = ALWAYS_OF[search.share]
    assert len(search.hits) >= min(search.options.k, len(always))
    if len(search.hits) < search.options.k:
        # Then these are all matches.
        assert always <= {hit.id for hit in search.hits}


def check_items(history: History, reading: Reading) -> None:
    """Every item had this state at some moment of the call, and none that always existed is missing."""
    for id, item in zip(reading.ids, reading.items, strict=True):
        if item is None:
            assert not is_kept(id)
            versions = history.by_id[id]
            assert not any(version.there <= reading.start and version.going >= reading.end for version in versions)
        else:
            number = int(str(item.metadata["version"]))
            history.seen(id, reading.start, reading.end, number=number, vector=item.vector, scored=None)
    if reading.between is not None:
        assert reading.ids == sorted(set(reading.ids))
        first, last = reading.between
        assert set(ALWAYS[bisect_left(ALWAYS, first) : bisect_right(ALWAYS, last)]) <= set(reading.ids)


def check_recall(history: History, searches: Iterable[Search], builds: list[Build]) -> None:
    """recall@10 over any 20 consecutive searches, and over those during a build, is above the minimum."""
    numbers = np.array([drawn(version.id) for version in history.versions])
    approximate: list[tuple[Search, float]] = []
    chosen = [search for search in searches if search.options.k >= 10 and search.share in IN_GRAPHS]
    for search in chosen[:: ceil(len(chosen) / (60 * SECONDS))]:
        there = history.stable(search.start, search.end) & (numbers < SHARES[search.share][1])
        best = np.sort(history.vectors[there] @ search.query)[::-1][:10]
        # Items added or removed during the call may be among the hits too, instead of others.
        found = sum(hit.score >= best[-1] - 2e-6 for hit in search.hits[:10])
        if search.options.exact:
            assert found >= len(best)
        else:
            approximate.append((search, found / len(best)))
    recalls = np.array([recall for _, recall in approximate])
    assert len(recalls) > 5 * TOGETHER
    windows = np.convolve(recalls, np.ones(TOGETHER) / TOGETHER, "valid")
    assert windows.min() >= FLOOR
    assert recalls.mean() >= 0.95
    for build in builds:
        during = [recall for search, recall in approximate if search.start < build.end and search.end > build.start]
        if len(during) >= TOGETHER:
            assert np.mean(during) >= FLOOR


def check_end(store: LocalStore, history: History) -> None:
    """After the last write, exact searches find exactly what exists."""
    live = list(history.live().values())
    vectors = np.stack([version.vector for version in live])
    queries = Mixture(400).vectors(20)
    answers = store.search("photos", queries, SearchOptions(k=10, exact=True), [None] * len(queries))
    for query, hits in zip(queries, answers, strict=True):
        scores = vectors.astype(np.float64) @ query.astype(np.float64)
        best = np.argsort(-scores)[:10]
        assert [hit.id for hit in hits] == [live[place].id for place in best]
        for hit, place in zip(hits, best.tolist(), strict=True):
            assert hit.metadata["version"] == live[place].number
    assert store.get_collection("photos").items == len(live)
