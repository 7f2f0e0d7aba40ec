"""Snapshots against a slow model: any sequence of changes, many small segments, planted ties."""

from __future__ import annotations

import threading

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from embedserve.index import kernels
from embedserve.index.current import CurrentSnapshot
from embedserve.index.delta import Delta
from embedserve.index.rows import Rows
from embedserve.index.snapshot import Snapshot
from tests.sizes import small_delta

D = 8
NOTHING = np.empty(0, np.int64)
NO_VECTORS = np.empty((0, D), np.float32)


@pytest.fixture
def tiny_delta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start a new delta after every four rows."""
    small_delta(monkeypatch, rows=4)


def units(count: int, seed: int = 0, dimension: int = D) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((count, dimension))
    scaled: NDArray[np.float64] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled.astype(np.float32)


def empty(dimension: int = D) -> Snapshot:
    return Snapshot.of(0, dimension, [])


def ids_of(rids: NDArray[np.int64]) -> list[bytes]:
    return [str(rid).encode() for rid in rids]


def of_rows(rids: NDArray[np.int64], vectors: NDArray[np.float32]) -> Snapshot:
    return Snapshot.of(1, vectors.shape[1], [Rows(vectors, rids, ids_of(rids), None, len(rids))])


def changed(
    snapshot: Snapshot, seq: int, removed: NDArray[np.int64], rids: NDArray[np.int64], vectors: NDArray[np.float32]
) -> Snapshot:
    return snapshot.changed(seq, removed=removed, rids=rids, ids=ids_of(rids), vectors=vectors)


def added(snapshot: Snapshot, first: int, vectors: NDArray[np.float32]) -> Snapshot:
    rids = np.arange(first, first + len(vectors), dtype=np.int64)
    return changed(snapshot, snapshot.seq + 1, NOTHING, rids, vectors)


def removed(snapshot: Snapshot, *rids: int) -> Snapshot:
    return changed(snapshot, snapshot.seq + 1, np.array(rids, np.int64), NOTHING, NO_VECTORS)


def slow_nearest(rows: dict[int, NDArray[np.float32]], query: NDArray[np.float32], k: int) -> list[tuple[int, float]]:
    """All rows by score and number; the best k and all that tie with the last of them."""
    wide = query.astype(np.float64)
    scores = {rid: round(float(np.clip(vector.astype(np.float64) @ wide, -1, 1)), 6) for rid, vector in rows.items()}
    ordered = sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))
    return [pair for pair in ordered if len(ordered) <= k or pair[1] >= ordered[k - 1][1]]


def nearest(
    snapshot: Snapshot, query: NDArray[np.float32], k: int, among: list[int] | None = None
) -> list[tuple[int, float]]:
    chosen = None if among is None else [np.isin(part.rids, among) for part in snapshot.parts]
    (ranking,) = snapshot.nearest(query[None], k, among=chosen)
    return list(zip(ranking.rids.tolist(), ranking.scores.tolist(), strict=True))


CHANGES = st.lists(st.tuples(st.integers(0, 9), st.lists(st.integers(0, 10**6), max_size=6)), min_size=1, max_size=30)


@pytest.mark.usefixtures("tiny_delta")
@settings(max_examples=60, deadline=None)
@given(CHANGES, st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_any_sequence_of_changes_searches_like_the_slow_model(
    changes: list[tuple[int, list[int]]], k: int, seed: int
) -> None:
    # Few different vectors, so that most scores are shared by several rows.
    pool = units(6, seed)
    snapshot, rows, next_rid = empty(), dict[int, NDArray[np.float32]](), 1
    for count, picks in changes:
        gone = {sorted(rows)[pick % len(rows)] for pick in picks} if rows else set()
        rids = np.arange(next_rid, next_rid + count, dtype=np.int64)
        vectors = pool[rids % 6]
        snapshot = changed(snapshot, snapshot.seq + 1, np.array([*gone][::-1], np.int64), rids, vectors)
        for rid in gone:
            del rows[rid]
        rows.update(zip(rids.tolist(), vectors, strict=True))
        next_rid += count
        assert snapshot.items == len(rows)
    for query in (pool[0], units(1, seed + 1)[0]):
        assert nearest(snapshot, query, k) == slow_nearest(rows, query, k)
        some = sorted(rows)[::2]
        assert nearest(snapshot, query, k, some) == slow_nearest({rid: rows[rid] for rid in some}, query, k)


@pytest.mark.parametrize("dimension", [1, 7, 64, 1000])
def test_scores_and_ties_do_not_depend_on_the_dimension(dimension: int) -> None:
    vectors = units(400, 3, dimension)
    vectors[200:] = vectors[:200]
    rids = np.arange(1, 401, dtype=np.int64)
    snapshot = of_rows(rids, vectors)
    rows = dict(zip(rids.tolist(), vectors, strict=True))
    for k in (1, 2, 9, 60):
        assert nearest(snapshot, vectors[5], k) == slow_nearest(rows, vectors[5], k)


def test_a_tie_far_larger_than_k_is_returned_completely() -> None:
    vectors = np.repeat(units(3), 1000, axis=0)
    snapshot = of_rows(np.arange(3000, dtype=np.int64), vectors)
    assert [rid for rid, _ in nearest(snapshot, vectors[1500], 5)] == list(range(1000, 2000))


def test_an_empty_snapshot_finds_nothing() -> None:
    assert nearest(empty(), units(1)[0], 5) == []
    assert nearest(added(empty(), 1, units(3)), units(1)[0], 5, among=[]) == []


@pytest.mark.usefixtures("tiny_delta")
def test_later_writes_do_not_change_a_snapshot() -> None:
    vectors = units(500)
    snapshot, kept = empty(), []
    for rid in range(1, 400):
        snapshot = added(snapshot, rid, vectors[rid : rid + 1])
        if rid % 3 == 0:
            snapshot = removed(snapshot, rid // 2)
        if rid % 40 == 0:
            kept.append((snapshot, nearest(snapshot, vectors[0], 1000)))
    for old, answer in kept:
        assert nearest(old, vectors[0], 1000) == answer


def test_a_discarded_change_leaves_no_trace() -> None:
    vectors = units(10)
    base = added(empty(), 1, vectors[:2])
    added(base, 3, vectors[2:5])
    kept = added(base, 3, vectors[5:6])
    assert nearest(kept, vectors[0], 10) == slow_nearest({1: vectors[0], 2: vectors[1], 3: vectors[5]}, vectors[0], 10)


@pytest.mark.usefixtures("tiny_delta")
def test_parts_in_memory_without_a_live_row_are_dropped() -> None:
    snapshot, vectors = empty(), units(1)
    for rid in range(1, 3000):
        # The same item is written over and over.
        snapshot = changed(snapshot, rid, np.array([rid - 1]), np.array([rid]), vectors)
    assert snapshot.items == 1
    assert sum(map(len, snapshot.parts)) <= 8


def test_buffers_grow_with_the_waiting_rows_so_that_deltas_stay_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedserve.index.delta._BYTES", 64 * D * 4)
    monkeypatch.setattr("embedserve.index.delta._MOST_BYTES", 10**6 * D * 4)
    snapshot, vectors = empty(), units(50)
    for rid in range(1, 50_000, 50):
        snapshot = added(snapshot, rid, vectors)
    assert snapshot.items == 50_000
    assert len(snapshot.parts) < 40


def test_the_delta_is_bounded_in_bytes() -> None:
    for dimension in (1, 256, 65536):
        buffer = Delta.empty(dimension).vectors_buffer
        assert buffer.nbytes <= max(4 << 20, 64 * 4 * dimension)
        assert len(buffer) >= 64


def test_every_search_runs_faiss_in_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = added(empty(), 1, units(50))
    seen: list[int] = []

    def search() -> None:
        snapshot.nearest(units(2), 3)
        seen.append(faiss.omp_get_max_threads())

    thread = threading.Thread(target=search)
    thread.start()
    thread.join()
    assert seen == [1]


def test_a_reader_waits_for_a_snapshot_that_is_not_published_yet() -> None:
    index = CurrentSnapshot(empty())
    following = added(index.current, 1, units(1))
    timer = threading.Timer(0.05, index.publish, [following])
    timer.start()
    assert index.wait_for(1, 10.0) is following
    timer.join()
    assert index.wait_for(2, 0.01) is following


@pytest.mark.parametrize("count", [0, 1, 3, 1000])
def test_the_kernels_compute_inner_products(count: int) -> None:
    vectors, query = units(count, 1, 33), units(1, 2, 33)[0]
    expected = vectors.astype(np.float64) @ query.astype(np.float64)
    assert np.abs(kernels.inner_products(query, vectors) - expected).sum() < 1e-6 * max(count, 1)
    some = np.arange(count, dtype=np.int64)[::-3].copy()
    assert np.abs(kernels.inner_products_at(query, vectors, some) - expected[some]).sum() < 1e-6 * max(count, 1)


@pytest.fixture(scope="module")
def large() -> Snapshot:
    """200,000 rows of 64 numbers, every tenth deleted."""
    snapshot = of_rows(np.arange(200_000, dtype=np.int64), units(200_000, 4, 64))
    return changed(snapshot, 2, np.arange(0, 200_000, 10), NOTHING, np.empty((0, 64), np.float32))


def test_replacing_one_of_200_000_rows_copies_no_vectors(large: Snapshot) -> None:
    after = changed(large, 3, np.array([11]), np.array([200_000]), units(1, 5, 64))
    assert np.shares_memory(large.fixed[0].vectors, after.fixed[0].vectors)
    assert len(after.delta.rids) == 1


def test_many_rows_some_of_them_deleted_are_searched_like_a_matrix_product(large: Snapshot) -> None:
    query = units(1, 6, 64)[0]
    scores = np.round(large.fixed[0].vectors.astype(np.float64) @ query.astype(np.float64), 6)
    scores[::10] = -2
    best = np.lexsort((np.arange(len(scores)), -scores))[:100]
    assert [rid for rid, _ in nearest(large, query, 100)][:100] == best.tolist()


def test_many_queries_at_once_get_the_same_answers_as_one_by_one(large: Snapshot) -> None:
    queries = units(40, 7, 64)
    together = large.nearest(queries, 10)
    for query, ranking in zip(queries, together, strict=True):
        assert list(zip(ranking.rids.tolist(), ranking.scores.tolist(), strict=True)) == nearest(large, query, 10)


def test_rankings_name_the_part_and_position_of_their_rows(large: Snapshot) -> None:
    snapshot = added(large, 200_000, units(3, 8, 64))
    (ranking,) = snapshot.nearest(units(3, 8, 64)[1:2], 3)
    assert snapshot.ids_of([ranking, ranking]) == [ids_of(ranking.rids)] * 2
    assert ids_of(ranking.rids)[0] == b"200001"
    assert np.array_equal(snapshot.vector_at(ranking, 0), units(3, 8, 64)[1])
