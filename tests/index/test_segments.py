"""Segments: built from live rows, searched with different parameters, and without deleted rows in their answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from embedserve.index import tuning
from embedserve.index.delta import Delta
from embedserve.index.ids import PackedIds
from embedserve.index.rows import Rows
from embedserve.index.search_params import EXACT, SearchParams
from embedserve.index.segment import ALL_REACHABLE, Segment, Unreachable
from embedserve.index.snapshot import Snapshot
from embedserve.index.spec import parse
from embedserve.index.structures import Stopped

D = 24
KINDS = ["exact", "hnsw:m=8", "ivf:nlist=20"]
NOTHING = np.empty(0, np.int64)


def never() -> bool:
    return False


def units(count: int, seed: int = 0) -> NDArray[np.float32]:
    random = np.random.default_rng(abs(seed))
    centres = np.random.default_rng(0).standard_normal((40, D))
    rows = centres[random.integers(0, 40, count)] + 0.6 * random.standard_normal((count, D))
    scaled: NDArray[np.float64] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return scaled.astype(np.float32)


def rows(first: int, count: int) -> Rows:
    rids = np.arange(first, first + count, dtype=np.int64)
    return Rows(units(count, first), rids, PackedIds.of(b"%d" % rid for rid in rids), None, count)


def built(kind: str, parts: Sequence[Rows], uid: str = "a") -> Segment:
    return Segment.build(uid, parse(kind), parts, D, never)


@pytest.fixture(scope="module", params=KINDS)
def segment(request: pytest.FixtureRequest) -> Segment:
    """4,000 rows, numbered from 1."""
    return built(request.param, [rows(1, 4000)])


@pytest.fixture
def compare_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Search segments of this size through their structure, also among matches."""
    monkeypatch.setattr("embedserve.index.segment._FEW", 50)


def test_a_segment_holds_the_live_rows_of_its_parts_in_order() -> None:
    first, second = rows(1, 100), rows(200, 50)
    parts = [first.without(np.array([1, 50, 100])), second, rows(300, 1).without(np.array([300]))]
    merged = built("exact", parts)
    expected = [rid for rid in [*range(1, 101), *range(200, 250)] if rid not in (1, 50, 100)]
    assert merged.rids.tolist() == expected
    assert list(merged.ids) == [b"%d" % rid for rid in expected]
    kept = first.vectors[first.positions_of(merged.rids)]
    assert np.array_equal(merged.vectors, np.concatenate([kept, second.vectors]))
    assert (len(merged), merged.live, merged.deleted) == (147, 147, 0)
    assert not merged.vectors.flags.writeable


@pytest.mark.parametrize("kind", KINDS)
def test_merged_segments_answer_like_their_parts(kind: str) -> None:
    pair = [built(kind, [rows(1, 900)], "a").without(np.arange(5, 300, 7)), built(kind, [rows(2000, 800)], "b")]
    merged = built(kind, pair, "c")
    before, after = Snapshot.of(1, D, pair), Snapshot.of(1, D, [merged])
    queries = units(30, 99)
    for one, other in zip(before.nearest(queries, 12), after.nearest(queries, 12), strict=True):
        assert one.rids.tolist() == other.rids.tolist()
        assert one.scores.tolist() == other.scores.tolist()


def test_a_segment_knows_its_kind_and_the_recall_of_its_parameters(segment: Segment) -> None:
    if segment.structure is None:
        assert (str(segment.spec), segment.points) == ("exact", ())
    else:
        assert str(segment.spec) in KINDS[1:]
        assert segment.points[-1].recall > 0.95
        easy, hard = (segment.param(SearchParams(target_recall=target)) for target in (0.5, 0.99))
        # 0: no nprobe reaches it, and rows are compared.
        assert (easy <= hard) == segment.reaches(0.99)
        assert hard or not segment.reaches(0.99)
        assert segment.param(SearchParams(target_recall=0.9, multiplier=3.0)) == 3 * segment.param(
            SearchParams(target_recall=0.9)
        )
        # A given ef or nprobe is neither tuned nor multiplied.
        assert segment.param(SearchParams(ef=33, nprobe=33, multiplier=2.0)) == 33


@pytest.mark.usefixtures("compare_few")
@pytest.mark.parametrize("deleted", [0.0, 0.2, 0.9, 0.99])
def test_deleted_rows_are_never_found_and_live_ones_are(segment: Segment, deleted: float) -> None:
    gone = np.flatnonzero(np.random.default_rng(1).random(4000) < deleted) + 1
    left = segment.without(gone)
    snapshot, queries = Snapshot.of(1, D, [left]), units(100, 7)
    truth = snapshot.nearest(queries, 10, params=EXACT)
    found = snapshot.nearest(queries, 10, params=SearchParams(target_recall=0.95))
    right = 0
    for got, best in zip(found, truth, strict=True):
        assert not set(got.rids.tolist()) & set(gone.tolist())
        assert len(got.rids) == len(set(got.rids.tolist())) >= min(10, left.live)
        right += int((got.scores[:10] >= best.scores[9]).sum())
    assert right >= 0.93 * 1000


@pytest.mark.usefixtures("compare_few")
@pytest.mark.parametrize("matching", [0.5, 0.2, 0.02, 0.001])
def test_only_matching_rows_are_found_and_not_too_few(segment: Segment, matching: float) -> None:
    snapshot, queries = Snapshot.of(1, D, [segment]), units(60, 8)
    mask = np.random.default_rng(2).random(4000) < matching
    among = [mask, np.empty(0, np.bool_)]
    truth = snapshot.nearest(queries, 10, params=EXACT, among=among)
    found = snapshot.nearest(queries, 10, params=SearchParams(target_recall=0.9), among=among)
    right = 0
    for got, best in zip(found, truth, strict=True):
        assert mask[got.positions].all()
        wanted = min(10, int(mask.sum()))
        assert len(got.rids) >= wanted
        right += int((got.scores[:wanted] >= best.scores[wanted - 1]).sum())
    assert right >= 0.88 * 60 * min(10, int(mask.sum()))


@pytest.mark.parametrize("k", [1, 999, 1000, 1001, 3999, 4000, 5000])
def test_a_search_finds_k_rows(segment: Segment, k: int) -> None:
    snapshot = Snapshot.of(1, D, [segment])
    for ranking in snapshot.nearest(units(3, 9), k, params=SearchParams(target_recall=0.5)):
        assert len(ranking.rids) >= min(k, 4000)
        assert len(set(ranking.rids.tolist())) == len(ranking.rids)
        assert (np.diff(ranking.scores) <= 0).all()


def test_a_search_that_finds_too_few_is_answered_by_comparing_every_row(segment: Segment) -> None:
    # One list, or ten rows around one entry point, contain fewer than k live rows.
    left = segment.without(np.setdiff1d(np.arange(1, 4001), np.arange(1, 4001, 4)))
    snapshot = Snapshot.of(1, D, [left])
    for ranking in snapshot.nearest(units(20, 10), 240, params=SearchParams(ef=1, nprobe=1)):
        assert len(ranking.rids) >= 240


class Blind:
    """A structure that finds one row and nothing else."""

    spec = parse("hnsw")
    param_values = (1,)

    def given_param(self, params: SearchParams) -> int:
        return 1

    def search(self, queries: NDArray[np.float32], k: int, param: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        positions = np.full((len(queries), k), -1, np.int64)
        positions[:, 0] = 7
        return positions, np.where(positions < 0, np.float32(-np.inf), np.float32(0.5))

    def write(self, path: Path) -> None:
        raise NotImplementedError


@pytest.mark.parametrize("deleted", [[], [3]])
def test_positions_of_minus_one_are_no_rows(deleted: list[int]) -> None:
    part = rows(1, 100)
    segment = Segment(part.vectors, part.rids, part.ids, None, 100, "a", Blind(), (), ALL_REACHABLE)
    left = segment.without(np.array(deleted, np.int64))
    (ranking,) = Snapshot.of(1, D, [left]).nearest(units(1, 12), 5, params=SearchParams(ef=1))
    (right,) = Snapshot.of(1, D, [left]).nearest(units(1, 12), 5, params=EXACT)
    assert ranking.rids.tolist() == right.rids.tolist()


def test_exact_search_ignores_the_structure(segment: Segment) -> None:
    snapshot, queries = Snapshot.of(1, D, [segment]), units(40, 11)
    scores = np.sort(queries.astype(np.float64) @ segment.vectors.T.astype(np.float64), axis=1)[:, ::-1]
    for row, ranking in enumerate(snapshot.nearest(queries, 10, params=EXACT)):
        assert ranking.scores[:10].tolist() == pytest.approx(scores[row, :10].tolist(), abs=1e-6)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_build_can_be_stopped_while_it_tunes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned: list[int] = []
    points: Any = tuning.operating_points

    def noted(*given: Any) -> Any:
        tuned.append(1)
        return points(*given)

    monkeypatch.setattr("embedserve.index.segment.tuning.operating_points", noted)
    with pytest.raises(Stopped):
        Segment.build("a", parse(kind), [rows(1, 1000)], D, lambda: bool(tuned))


# --- Replacing parts by the segment built from them ------------------------------------


def waiting(first: int, count: int) -> Rows:
    return rows(first, count)


def replaced(snapshot: Snapshot, parts: Sequence[Rows], segment: Segment | None) -> Snapshot:
    after = snapshot.replaced(parts, segment)
    assert after is not None
    return after


def remaining(snapshot: Snapshot) -> list[int]:
    return [rid for part in snapshot.parts for rid in part.rids[part.live_positions()].tolist()]


def removed(snapshot: Snapshot, *rids: int) -> Snapshot:
    return snapshot.changed(
        snapshot.seq + 1, removed=np.array(rids, np.int64), rids=NOTHING, ids=[], vectors=np.empty((0, D), np.float32)
    )


def test_a_segment_replaces_its_parts_and_rows_deleted_meanwhile_stay_deleted() -> None:
    parts = [built("exact", [rows(1, 10)]), waiting(20, 10), waiting(40, 10)]
    begun = Snapshot.of(1, D, [built("exact", [rows(-20, 10)]), *parts])
    begun = removed(begun, 3, 22)
    taken = begun.fixed[1:4]
    segment = built("hnsw:m=8", taken)
    # Meanwhile rows of each part are deleted, all of the last, and new ones are added.
    later = removed(begun, 5, 25, -15, *range(40, 50))
    later = later.changed(9, removed=NOTHING, rids=np.array([60]), ids=[b"60"], vectors=units(1))
    assert len(later.fixed) == 3
    after = replaced(later, taken, segment)
    assert remaining(after) == remaining(later)
    assert [len(part) for part in after.fixed] == [10, 28]
    assert (after.seq, after.items, after.deleted) == (9, later.items, 1 + 12)
    assert remaining(begun) == [*range(-20, -10), 1, 2, *range(4, 11), 20, 21, *range(23, 30), *range(40, 50)]


def test_parts_without_a_live_row_are_dropped() -> None:
    emptied = built("exact", [rows(1, 5)])
    snapshot = removed(Snapshot.of(1, D, [emptied, built("exact", [rows(10, 5)])]), 1, 2, 3, 4, 5)
    after = replaced(snapshot, snapshot.fixed[:1], None)
    assert [part.rids[0] for part in after.fixed] == [10]
    assert after.deleted == 0


def test_parts_that_are_gone_are_not_replaced() -> None:
    parts = [waiting(1, 5)]
    snapshot = Snapshot.of(1, D, parts)
    segment = built("exact", parts)
    assert removed(snapshot, 1, 2, 3, 4, 5).replaced(parts, segment) is None
    # The same rows, read again from the records.
    assert Snapshot.of(1, D, [waiting(1, 5)]).replaced(parts, segment) is None


def test_a_frozen_delta_has_the_same_rows_and_later_writes_do_not_change_it() -> None:
    snapshot = Snapshot(1, D, (), Delta.empty(D))
    for rid in range(1, 30):
        snapshot = snapshot.changed(
            rid, removed=np.array([rid - 3]), rids=np.array([rid]), ids=[b"%d" % rid], vectors=units(1, rid)
        )
    frozen = snapshot.with_delta_frozen()
    assert (len(frozen.delta), remaining(frozen), frozen.seq) == (0, remaining(snapshot), snapshot.seq)
    assert frozen.with_delta_frozen() is frozen
    part = frozen.fixed[-1]
    frozen.changed(30, removed=NOTHING, rids=np.array([30]), ids=[b"30"], vectors=units(1, 30))
    assert len(part.rids) == 29
    assert [part.ids[place] for place in part.live_positions().tolist()] == [b"27", b"28", b"29"]


def test_packed_ids_are_those_that_were_packed() -> None:
    ids = [b"a", "ü".encode(), "日本".encode(), b"b" * 300]
    packed = PackedIds.of(ids)
    assert list(packed) == ids
    assert [packed[place] for place in (-1, -4, np.int64(1))] == [ids[-1], ids[0], ids[1]]  # type: ignore[index]
    assert packed[1:3] == ids[1:3]
    assert len(PackedIds.of([])) == 0
    with pytest.raises(IndexError):
        packed[4]


def selves_missed(segment: Segment, params: SearchParams) -> int:
    """Number of rows that a search for their own vectors does not find."""
    rankings = Snapshot.of(1, D, [segment]).nearest(segment.vectors, 1, params=params)
    return sum(ranking.scores[0] < 0.999_999 for ranking in rankings)


def test_rows_that_a_graph_does_not_lead_to_are_found() -> None:
    # With few links per row, no row links to many of them.
    sparse = built("hnsw:m=4,ef_construction=8", [rows(1, 1500)])
    hard = SearchParams(ef=4 * sparse.param(SearchParams()))
    assert len(sparse.unreachable) > 3
    assert selves_missed(sparse, hard) == 0
    assert selves_missed(replace(sparse, unreachable=ALL_REACHABLE), hard) == len(sparse.unreachable)
    assert selves_missed(sparse, EXACT) == 0


@pytest.mark.usefixtures("compare_few")
def test_unreachable_rows_are_found_once_and_only_if_they_live_and_match(segment: Segment) -> None:
    if segment.structure is None:
        pytest.skip("all rows are compared, so none is unreachable")
    some = np.arange(0, 4000, 40)
    marked = replace(segment, unreachable=Unreachable.of(segment.vectors, some))
    snapshot, queries = Snapshot.of(1, D, [marked.without(marked.rids[some[::2]])]), units(40, 5)
    for ranking in snapshot.nearest(queries, 200, params=SearchParams()):
        assert len(set(ranking.rids.tolist())) == len(ranking.rids) >= 200
        assert not set(ranking.rids.tolist()) & set(segment.rids[some[::2]].tolist())
    odd = [part.live_mask() & (part.rids % 80 != 41) for part in snapshot.parts]
    for ranking in snapshot.nearest(queries, 200, params=SearchParams(), among=odd):
        assert len(set(ranking.rids.tolist())) == len(ranking.rids) >= 200
        assert not (ranking.rids % 80 == 41).any()
