"""Filtered searches in graphs and inverted lists: what they find of the nearest, however few items a filter holds for,
wherever these lie, and whatever was deleted."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from embedserve.store.local.store import LocalStore
from embedserve.types import Filter, In, Item, Range, SearchOptions
from tests.store.store_cases import new_collection

ITEMS, DIMENSION, LATENT, CLUSTERS, QUERIES = 45_000, 64, 24, 200, 60
"""Half of the items are more than the 20,000 that are compared one by one in any case."""
INDEXES = {"hnsw": "hnsw:m=16", "ivf": "ivf"}
K = 10


@dataclass(frozen=True)
class Data:
    """Clusters with sizes by Zipf's law, some dimensions through a tanh layer, and noise."""

    vectors: NDArray[np.float32]
    """float32 [N, D], unit norm."""
    clusters: NDArray[np.int64]
    """int64 [N]: which cluster each is in."""
    drawn: NDArray[np.int64]
    """int64 [N]: a number from 0 to 999 for each, drawn without a look at the vector."""
    queries: NDArray[np.float32]
    """float32 [Q, D], unit norm."""
    query_clusters: NDArray[np.int64]
    """int64 [Q]."""
    scores: NDArray[np.float64]
    """float64 [Q, N]."""


@pytest.fixture(scope="module")
def data() -> Data:
    random = np.random.default_rng(5)
    centres = random.standard_normal((CLUSTERS, LATENT))
    layer = 1.2 * random.standard_normal((LATENT, DIMENSION)) / np.sqrt(LATENT)
    sizes = 1 / np.arange(1, CLUSTERS + 1) ** 0.8

    def of_clusters(clusters: NDArray[np.int64]) -> NDArray[np.float32]:
        latent = centres[clusters] + 0.6 * random.standard_normal((len(clusters), LATENT))
        vectors = np.tanh(latent @ layer) + 0.05 * random.standard_normal((len(clusters), DIMENSION))
        scaled: NDArray[np.float64] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return scaled.astype(np.float32)

    clusters = random.choice(CLUSTERS, ITEMS, p=sizes / sizes.sum())
    query_clusters = random.choice(CLUSTERS, QUERIES, p=sizes / sizes.sum())
    drawn = random.integers(0, 1000, ITEMS)
    vectors, queries = of_clusters(clusters), of_clusters(query_clusters)
    scores = queries.astype(np.float64) @ vectors.astype(np.float64).T
    return Data(vectors, clusters, drawn, queries, query_clusters, scores)


@dataclass(frozen=True)
class Sealed:
    """A store whose collections "hnsw" and "ivf" hold the same items, in one segment each."""

    store: LocalStore
    data: Data
    live: NDArray[np.bool_]
    """bool [N]."""


@pytest.fixture(scope="module")
def full_directory(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("full") / "data"
    items = [
        Item(
            id=f"{n}",
            vector=data.vectors[n],
            metadata={
                name: int(value)
                for key, value in (("drawn", data.drawn[n]), ("cluster", data.clusters[n]))
                for name in (key, f"undeclared {key}")
            },
        )
        for n in range(ITEMS)
    ]
    with LocalStore.open(directory, background=False) as store:
        for name, index in INDEXES.items():
            new_collection(store, name, DIMENSION, index=index, filter_keys=["drawn", "cluster"])
            for start in range(0, ITEMS, 5000):
                store.upsert(name, items[start : start + 5000])
        store.maintain()
    return directory


@pytest.fixture(scope="module")
def full(data: Data, full_directory: Path) -> Iterator[Sealed]:
    with LocalStore.open(full_directory, background=False) as store:
        yield Sealed(store, data, np.ones(ITEMS, np.bool_))


@pytest.fixture(scope="module")
def thinned(data: Data, full_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sealed]:
    """Without 30 % of the items: half of those are whole clusters, so that some queries are left with nothing near."""
    gone = np.random.default_rng(6).random(ITEMS) < 0.15
    for cluster in range(3, CLUSTERS, 3):
        if gone.mean() >= 0.3:
            break
        gone |= data.clusters == cluster
    directory = tmp_path_factory.mktemp("thinned") / "data"
    shutil.copytree(full_directory, directory, ignore=shutil.ignore_patterns("LOCK"))
    with LocalStore.open(directory, background=False) as store:
        for name in INDEXES:
            assert store.delete_items(name, [f"{n}" for n in np.flatnonzero(gone)]) == gone.sum()
            info = store.get_collection(name)
            assert (info.segments, info.unsealed, info.deleted) == (1, 0, gone.sum())
        yield Sealed(store, data, ~gone)


@pytest.fixture(params=["full", "thinned"])
def sealed(request: pytest.FixtureRequest) -> Sealed:
    chosen: Sealed = request.getfixturevalue(request.param)
    return chosen


def check(
    sealed: Sealed, name: str, filter: Filter | None, matching: NDArray[np.bool_], asked: NDArray[np.int64]
) -> None:
    """Every search gives all hits there can be, none that should not be there, and on average 95 % of the nearest."""
    assert sealed.store.get_collection(name).index.startswith(name)
    matches = np.flatnonzero(matching & sealed.live)
    for k, some in ((K, asked), (100, asked[:10])):
        options = SearchOptions(k=k, filter=filter, include_metadata=False)
        answers = sealed.store.search(name, sealed.data.queries[some], options, [None] * len(some))
        shared, wanted = 0, min(k, len(matches))
        for query, hits in zip(some, answers, strict=True):
            found, scores = [int(hit.id) for hit in hits], np.array([hit.score for hit in hits])
            assert len(set(found)) == len(found) == wanted
            assert np.isin(found, matches).all()
            exact = sealed.data.scores[query]
            assert np.abs(exact[found] - scores).max() <= 1e-6
            shared += int((scores >= np.partition(exact[matches], -wanted)[-wanted] - 1e-6).sum())
        if k == K:
            assert shared >= 0.95 * wanted * len(some)


@pytest.mark.parametrize("name", INDEXES)
def test_without_a_filter_095_of_the_nearest_are_found(sealed: Sealed, name: str) -> None:
    check(sealed, name, None, np.ones(ITEMS, np.bool_), np.arange(QUERIES))


@pytest.mark.parametrize("key", ["drawn", "undeclared drawn"])
@pytest.mark.parametrize("per_mille", [1000, 700, 500, 100, 10, 1])
@pytest.mark.parametrize("name", INDEXES)
def test_at_every_selectivity_095_of_the_nearest_are_found(sealed: Sealed, name: str, per_mille: int, key: str) -> None:
    matching = sealed.data.drawn < per_mille
    check(sealed, name, Range(key, lt=per_mille), matching, np.arange(QUERIES))


@pytest.mark.parametrize("key", ["cluster", "undeclared cluster"])
@pytest.mark.parametrize("share", [0.7, 0.5, 0.01])
@pytest.mark.parametrize("name", INDEXES)
def test_095_of_the_nearest_are_found_where_no_match_is_near_the_query(
    sealed: Sealed, name: str, share: float, key: str
) -> None:
    data = sealed.data
    order = np.random.default_rng(7).permutation(CLUSTERS)
    sizes = np.cumsum(np.bincount(data.clusters, minlength=CLUSTERS)[order])
    chosen = order[: int(np.searchsorted(sizes, share * ITEMS)) + 1]
    asked = np.flatnonzero(~np.isin(data.query_clusters, chosen))
    assert len(asked) > 10
    check(sealed, name, In(key, tuple(chosen.tolist())), np.isin(data.clusters, chosen), asked)
