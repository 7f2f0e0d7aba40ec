"""Recall is measured with real queries, and corrects the search parameters."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from embedserve.index.ids import PackedIds
from embedserve.index.rows import Rows
from embedserve.index.search_params import SearchParams
from embedserve.index.segment import Segment
from embedserve.index.snapshot import Snapshot
from embedserve.index.spec import parse
from embedserve.index.structures import Stopped
from embedserve.index.tuning import OperatingPoint
from embedserve.store.local.collection.recall import Comparison, RecallMonitor
from tests.store.store_cases import random_units

D = 24


def never() -> bool:
    return False


def rows_of(vectors: NDArray[np.float32], first: int = 1) -> Rows:
    rids = np.arange(first, first + len(vectors), dtype=np.int64)
    return Rows(vectors, rids, PackedIds.of(b"%d" % rid for rid in rids), None, len(rids))


def graph(points: tuple[OperatingPoint, ...] | None = None, rows: int = 3000) -> Segment:
    """A graph over random rows, with these operating points."""
    segment = Segment.build("a", parse("hnsw:m=6"), [rows_of(random_units(rows, D))], D, never)
    if points is None:
        return segment
    return Segment(
        segment.vectors, segment.rids, segment.ids, None, rows, "a", segment.structure, points, segment.unreachable
    )


def of(*parts: Rows) -> Snapshot:
    return Snapshot.of(1, D, parts)


@pytest.fixture(scope="module")
def honest() -> Segment:
    return graph()


def test_nothing_is_measured_if_every_search_is_exact() -> None:
    monitor = RecallMonitor(0.95)
    exact = Segment.build("a", parse("exact"), [rows_of(random_units(50, D))], D, never)
    monitor.sample(random_units(3, D))
    assert monitor.measure(of(exact)) is None
    assert monitor.last is None
    assert monitor.measure(of()) is None


def test_a_measurement_is_outdated_after_a_query_or_a_build(honest: Segment) -> None:
    monitor = RecallMonitor(0.95)
    assert not monitor.is_outdated
    for change in (monitor.invalidate, lambda: monitor.sample(random_units(2, D))):
        change()
        assert monitor.is_outdated
        assert monitor.measure(of(honest)) is monitor.last is not None
        assert not monitor.is_outdated


def test_without_real_queries_synthetic_ones_are_taken_and_the_multiplier_stays(honest: Segment) -> None:
    monitor = RecallMonitor(0.95)
    recall = monitor.measure(of(honest))
    assert recall is not None
    assert (recall.real, recall.queries, monitor.multiplier) == (False, 100, 1.0)
    assert 0.9 < recall.value <= 1.0


def test_measured_recall_equals_a_count_by_hand(honest: Segment) -> None:
    snapshot, queries = of(honest), random_units(50, D, 5)
    params = SearchParams(ef=12)
    found = snapshot.nearest(queries, 10, params=params)
    nearest = np.argsort(-(queries.astype(np.float64) @ honest.vectors.T.astype(np.float64)), axis=1)[:, :10] + 1
    by_hand = np.mean(
        [len(set(got.rids[:10].tolist()) & set(best)) / 10 for got, best in zip(found, nearest.tolist(), strict=True)]
    )
    assert 0.3 < by_hand < 0.999
    assert Comparison(snapshot, queries).recall(params) == pytest.approx(by_hand)
    assert Comparison(snapshot, queries).recall(SearchParams(exact=True)) == 1.0


def test_any_row_with_the_same_score_counts() -> None:
    vectors = np.repeat(random_units(150, D), 20, axis=0)
    segment = Segment.build("a", parse("hnsw:m=16"), [rows_of(vectors)], D, never)
    assert Comparison(of(segment), random_units(40, D, 6)).recall(SearchParams(ef=300)) >= 0.99


@pytest.mark.parametrize("items", [0, 3])
def test_with_fewer_than_ten_rows_recall_is_over_all_of_them(items: int) -> None:
    comparison = Comparison(of(rows_of(random_units(items, D))), random_units(5, D, 2))
    assert comparison.recall(SearchParams()) == 1.0


def test_real_queries_below_the_target_raise_the_multiplier_until_they_reach_it() -> None:
    # The operating point claims recall 1 for a minimal ef.
    snapshot = of(graph((OperatingPoint(10, 1.0),)))
    monitor = RecallMonitor(0.97)
    for query in random_units(60, D, 8):
        monitor.sample(query[None])
    recall = monitor.measure(snapshot)
    assert recall is not None
    assert (recall.real, recall.queries) == (True, 60)
    assert recall.value >= 0.97
    assert 1.4 < monitor.multiplier <= 16
    raised = monitor.multiplier
    # Then it stays, since a few queries are not enough to lower it.
    monitor.measure(snapshot)
    assert monitor.multiplier == raised


def test_many_real_queries_above_the_target_lower_the_multiplier() -> None:
    snapshot = of(graph((OperatingPoint(800, 0.95),)))
    monitor = RecallMonitor(0.9)
    for query in random_units(99, D, 9):
        monitor.sample(query[None])
    monitor.measure(snapshot)
    assert monitor.multiplier == 1.0
    monitor.sample(random_units(1, D, 10))
    recall = monitor.measure(snapshot)
    assert recall is not None
    assert 0.25 <= monitor.multiplier < 0.5
    assert recall.value >= 0.91


def test_the_multiplier_is_at_most_sixteen() -> None:
    monitor = RecallMonitor(1.0)
    for query in random_units(40, D, 11):
        monitor.sample(query[None])
    monitor.measure(of(graph((OperatingPoint(10, 1.0),))))
    assert 1.0 < monitor.multiplier <= 16.0


def test_a_multiplier_that_gains_nothing_is_not_taken(honest: Segment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Comparison, "recalls", lambda comparison, params: np.full(100, 0.8))
    monitor = RecallMonitor(0.95)
    for query in random_units(100, D, 13):
        monitor.sample(query[None])
    recall = monitor.measure(of(honest))
    assert recall is not None
    assert monitor.multiplier == 1.0
    # So rows are compared, which finds all.
    assert (monitor.exact, recall.value) == (True, 1.0)
    assert monitor.found == pytest.approx(0.8)


def test_near_a_target_of_one_the_multiplier_is_lowered_too(honest: Segment, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"easy": False}
    monkeypatch.setattr(
        Comparison,
        "recalls",
        lambda comparison, params: np.full(100, 1.0 if found["easy"] else min(0.9 + params.multiplier / 40, 1.0)),
    )
    monitor = RecallMonitor(0.995)
    for query in random_units(100, D, 14):
        monitor.sample(query[None])
    monitor.measure(of(honest))
    assert monitor.multiplier > 2
    found["easy"] = True
    monitor.measure(of(honest))
    assert monitor.multiplier < 1


def test_a_measurement_stops_when_the_store_closes(honest: Segment) -> None:
    with pytest.raises(Stopped):
        RecallMonitor(0.95).measure(of(honest), lambda: True)


@pytest.mark.parametrize("count", [1, 7])
def test_the_latest_queries_of_calls_are_remembered_as_they_were(
    monkeypatch: pytest.MonkeyPatch, honest: Segment, count: int
) -> None:
    seen: list[NDArray[np.float32]] = []

    class Spy(Comparison):
        def __init__(self, snapshot: Snapshot, queries: NDArray[np.float32], stopped: Callable[[], bool]) -> None:
            seen.append(queries)
            super().__init__(snapshot, queries, stopped)

    monkeypatch.setattr("embedserve.store.local.collection.recall.Comparison", Spy)
    monitor = RecallMonitor(0.5)
    calls = random_units(300 * count, D, 12).reshape(300, count, D)
    kept = calls.copy()
    for call in calls:
        monitor.sample(call)
        call[:] = 0  # the caller may reuse its memory
    monitor.measure(of(honest))
    assert seen[0].shape == (100, D)
    for query, call in zip(seen[0], kept[-100:], strict=True):
        assert (call == query).all(axis=1).any()
