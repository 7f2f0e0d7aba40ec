"""Which parts are merged next, and that merging ends with few parts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedserve.index.compaction import Step, WriteActivity, next_step
from embedserve.index.ids import PackedIds
from embedserve.index.rows import Rows
from embedserve.index.segment import ALL_REACHABLE, Segment
from embedserve.index.snapshot import Snapshot
from embedserve.index.spec import IndexSpec

D = 1024
"""256 rows are 1 MiB."""
BUSY, DUE, IDLE = (
    WriteActivity(idle=False, due=False),
    WriteActivity(idle=False, due=True),
    WriteActivity(idle=True, due=True),
)
FEW, SOME, MANY = 256, 1024, 16384
"""Rows that are sealed when nothing is written, when the last build was a while ago, and in any case."""


def part(live: int, deleted: int = 0, *, sealed: bool = True) -> Rows:
    """The rule considers only numbers of rows."""
    nothing = np.empty((live + deleted, 0), np.float32)
    rids, ids = np.arange(live + deleted), PackedIds.of([])
    if sealed:
        return Segment(nothing, rids, ids, None, live, "uid", None, (), ALL_REACHABLE)
    return Rows(nothing, rids, ids, None, live)


def waiting(live: int, deleted: int = 0) -> Rows:
    return part(live, deleted, sealed=False)


def segments(*sizes: int) -> list[Rows]:
    return [part(size) for size in sizes]


def test_nothing_is_built_without_rows() -> None:
    assert next_step([waiting(0)], D, IDLE) is None
    assert next_step([*segments(1000, 400, 100), waiting(0)], D, IDLE) is None


@pytest.mark.parametrize(("activity", "rows"), [(BUSY, MANY), (DUE, SOME), (IDLE, FEW)])
def test_the_more_is_written_the_more_rows_wait(activity: WriteActivity, rows: int) -> None:
    assert next_step([waiting(rows - 1)], D, activity) is None
    assert next_step([waiting(rows)], D, activity) == Step(0, 1)
    # All waiting rows are sealed together.
    assert next_step([*segments(MANY * 9), waiting(rows - 1), waiting(1)], D, activity) == Step(1, 2)
    # Deleted rows take as much room as live ones.
    assert next_step([waiting(1, rows - 2)], D, activity) is None
    assert next_step([waiting(1, rows - 1)], D, activity) == Step(0, 1)


def test_waiting_rows_are_sealed_together_with_segments_at_most_twice_as_large() -> None:
    assert next_step([*segments(2001), waiting(1000)], D, IDLE) == Step(1, 1)
    assert next_step([*segments(2000), waiting(1000)], D, IDLE) == Step(0, 2)
    # Merging the first makes the rows more, so that the next one is merged too.
    assert next_step([*segments(6000, 2000), waiting(1000)], D, IDLE) == Step(0, 3)
    assert next_step([*segments(6001, 2000), waiting(1000)], D, IDLE) == Step(1, 2)


def test_a_segment_with_more_deleted_than_live_rows_is_rebuilt() -> None:
    assert next_step([part(1000, 1000), waiting(0)], D, BUSY) is None
    assert next_step([part(5000), part(1000, 1001), waiting(0)], D, BUSY) == Step(1, 1)
    assert next_step([part(0, 5), waiting(0)], D, BUSY) == Step(0, 1)


def test_rows_of_a_lost_segment_are_sealed_at_once_even_between_others() -> None:
    assert next_step([*segments(9000), waiting(1), *segments(10), waiting(0)], D, BUSY) == Step(1, 1)
    assert next_step([*segments(9000), waiting(5000), *segments(10), waiting(0)], D, BUSY) == Step(0, 2)
    assert next_step([waiting(7), *segments(10), waiting(0)], D, BUSY) == Step(0, 1)


def test_segments_that_shrank_are_merged_with_those_after_them() -> None:
    assert next_step([*segments(9000, 2000, 1000, 10), waiting(0)], D, BUSY) == Step(1, 2)
    assert next_step([*segments(4000, 2000, 1000), waiting(0)], D, BUSY) == Step(0, 3)


SIZES = st.tuples(st.booleans(), st.integers(0, 3000), st.integers(0, 3000))


@settings(max_examples=300, deadline=None)
@given(st.lists(SIZES, max_size=12), st.sampled_from([BUSY, DUE, IDLE]))
def test_steps_end_with_sizes_that_fall_by_more_than_half(
    sizes: list[tuple[bool, int, int]], activity: WriteActivity
) -> None:
    parts = [part(live, deleted, sealed=sealed) for sealed, live, deleted in sizes if live + deleted]
    live = sum(each.live for each in parts)
    parts.append(waiting(0))
    steps = 0
    while (step := next_step(parts, D, activity)) is not None:
        merged = parts[step.first : step.first + step.count]
        assert len(merged) >= 1
        rows = sum(each.live for each in merged)
        rest = parts[step.first + step.count :]
        parts = [*parts[: step.first], *([part(rows)] if rows else []), *rest]
        if not parts or isinstance(parts[-1], Segment):
            parts.append(waiting(0))
        steps += 1
        assert steps <= 2 * len(sizes)
    assert sum(each.live for each in parts) == live
    sealed = [each for each in parts if isinstance(each, Segment)]
    assert all(newer.live * 2 < older.live for older, newer in pairwise(sealed))
    assert all(each.deleted <= each.live for each in sealed)
    # Segments come first, and few rows wait.
    assert all(isinstance(each, Segment) for each in parts[: len(sealed)])
    assert sum(each.live for each in parts[len(sealed) :]) < MANY


def test_a_row_is_built_into_few_segments_however_many_rows_follow() -> None:
    built = total = 0
    parts: list[Rows] = [waiting(0)]
    for _ in range(1000):
        total += FEW
        parts[-1] = waiting(FEW)
        while (step := next_step(parts, D, IDLE)) is not None:
            rows = sum(each.live for each in parts[step.first : step.first + step.count])
            built += rows
            parts = [*parts[: step.first], part(rows), *parts[step.first + step.count :], waiting(0)]
            parts = [each for each in parts if isinstance(each, Segment)] + [waiting(0)]
        assert len(parts) <= 2 + np.log2(total / FEW)
    assert built / total < np.log2(total / FEW)


def test_deleted_rows_in_memory_are_dropped_however_few_live_ones_are_among_them() -> None:
    """A few items are written over and over, and now and then one that stays."""
    vectors = np.ones((100, 16), np.float32)
    snapshot, rid, lasting = Snapshot.of(0, 16, []), 1, 0
    hot = np.empty(0, np.int64)
    held = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("embedserve.index.delta._BYTES", 200 * 16 * 4)
        patched.setattr("embedserve.index.compaction._MANY_BYTES", 2000 * 16 * 4)
        for write in range(400):
            stays = write % 20 == 0
            rids = np.arange(rid, rid + 50 + stays, dtype=np.int64)
            ids = [b"%d" % number for number in rids]
            snapshot = snapshot.changed(write + 1, removed=hot, rids=rids, ids=ids, vectors=vectors[: len(rids)])
            rid, hot, lasting = rid + len(rids), rids[:50], lasting + stays
            step = next_step(snapshot.parts, 16, BUSY)
            if step is not None:
                snapshot = snapshot.with_delta_frozen()
                parts = snapshot.fixed[step.first : step.first + step.count]
                built = Segment.build(f"{write}", IndexSpec("exact"), parts, 16, lambda: False)
                snapshot = snapshot.replaced(parts, built) or snapshot
            held.append(sum(map(len, snapshot.parts)))
    assert snapshot.items == 50 + lasting
    assert max(held) < 3000
