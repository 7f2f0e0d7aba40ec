"""Builds the segments of a collection: seals deltas, merges segments, and rebuilds a segment from the records.

Searches and writes go on meanwhile; writers wait for a moment at the beginning and at the end.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from embedserve.index import compaction, spec
from embedserve.index.compaction import Step, WriteActivity
from embedserve.index.rows import Rows
from embedserve.index.segment import TUNING, Segment
from embedserve.index.snapshot import Snapshot
from embedserve.store.local.collection import recovery
from embedserve.store.local.collection.collection import Collection

_log = logging.getLogger("embedserve.store")

_IDLE_S = 1.0
"""After this long without a write even a few rows may be sealed."""
_DUE_S = 10.0
"""This long after the last build more than a few rows may be."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """What a step built."""

    rows: int
    kind: str
    """Of the index, as in "hnsw"; "none" if no row was live."""
    seconds: float


def seal_next(
    collection: Collection, stopped: Callable[[], bool] = lambda: False, *, at_once: bool = False
) -> Sealed | None:
    """Take one step, if one is due: seal rows that wait, or merge segments.

    Only one thread builds at a time; others wait for it.

    Args:
        collection: it is not closed before this returns.
        stopped: asked now and then; if it returns true, the step is stopped.
        at_once: do not wait for a pause in the writes.

    Returns:
        What was built; None if nothing was due.

    Raises:
        DiskFull, StoreError: the segment cannot be written; the collection is as before.
        structures.Stopped: the step was stopped.
    """
    activity = _activity(collection, at_once)
    with collection.build_state.lock:
        if not collection.is_closing and not collection.build_state.files_current:
            _use_files(collection)
        if collection.is_closing:
            return None
        if _next_step(collection, collection.snapshot, activity) is None:
            return _tune_again(collection, lambda: stopped() or collection.is_closing)
        with collection.write_lock:
            collection.publish(collection.snapshot.with_delta_frozen())
            snapshot = collection.snapshot
        step = _next_step(collection, snapshot, activity)
        if step is None:
            return None
        return _take(step, collection, snapshot, lambda: stopped() or collection.is_closing)


def rebuild(collection: Collection, uid: str) -> None:
    """Take a segment that cannot be trusted out of use; its rows are read from the records and sealed anew.

    Raises:
        StoreError: a row is damaged; then the segment stays in use, since nothing can replace it.
    """
    with collection.build_state.lock, collection.writes_paused() as (view, snapshot):
        for number, part in enumerate(snapshot.fixed):
            if isinstance(part, Segment) and part.uid == uid:
                # Not even its row numbers are trusted: it held what lies between its neighbours.
                others = snapshot.parts
                before = [other.rids[-1] for other in others[:number] if len(other)]
                after = [other.rids[0] for other in others[number + 1 :] if len(other)]
                rids = view.all_rids()
                first = np.searchsorted(rids, before[-1], side="right") if before else 0
                last = np.searchsorted(rids, after[0]) if after else len(rids)
                new = recovery.read_rows(view, rids[first:last], collection.path, collection.entry.dimension)
                fixed = (*snapshot.fixed[:number], *new, *snapshot.fixed[number + 1 :])
                collection.publish(Snapshot(snapshot.seq, snapshot.dimension, fixed, snapshot.delta))
                collection.forget_matches(uid)
                collection.files.report_rebuild("checked", "a check found it to be wrong", segment=uid)
                _use_files(collection)
                return


def _activity(collection: Collection, at_once: bool) -> WriteActivity:
    now = time.monotonic()
    return WriteActivity(
        idle=at_once or now - collection.written_at_s > _IDLE_S,
        due=now - collection.build_state.last_s > _DUE_S,
    )


def _next_step(collection: Collection, snapshot: Snapshot, activity: WriteActivity) -> Step | None:
    return compaction.next_step(snapshot.parts, collection.entry.dimension, activity)


def _take(step: Step, collection: Collection, snapshot: Snapshot, stopped: Callable[[], bool]) -> Sealed:
    begun = time.monotonic()
    parts = snapshot.fixed[step.first : step.first + step.count]
    segment = _build(collection, parts, snapshot, stopped)
    with collection.write_lock:
        replaced = collection.snapshot.replaced(parts, segment)
        if replaced is not None:
            collection.publish(replaced)
    _use_files(collection)
    for part in parts:
        if isinstance(part, Segment):
            collection.forget_matches(part.uid)
    ended = collection.build_state.last_s = time.monotonic()
    collection.recall.invalidate()
    collection.keep_recall()
    rows = 0 if segment is None else len(segment)
    kind = "none" if segment is None else segment.spec.kind
    fields = {"collection": collection.entry.name, "rows": rows, "kind": kind, "seconds": round(ended - begun, 1)}
    _log.info("rows sealed", extra={"fields": fields})
    return Sealed(rows, kind, ended - begun)


def _build(
    collection: Collection, parts: Sequence[Rows], snapshot: Snapshot, stopped: Callable[[], bool]
) -> Segment | None:
    """A segment of the live rows, written to disk; None if there are none."""
    rows = sum(part.live for part in parts)
    if not rows:
        return None
    entry, uid = collection.entry, uuid.uuid4().hex
    attempts = spec.attempts(
        collection.spec,
        total=snapshot.items,
        rows=rows,
        dimension=entry.dimension,
        memory_bytes=collection.memory_bytes,
    )
    segment = Segment.build_first(uid, attempts, entry.target_recall, parts, entry.dimension, stopped)
    for shortfall in segment.shortfalls:
        fields = {"collection": entry.name, "rows": rows, "index": shortfall.spec}
        fields |= {"max_recall": round(shortfall.recall, 3), "target_recall": entry.target_recall}
        fields["built"] = str(segment.spec)
        _log.warning("a segment does not reach the target recall: built as another", extra={"fields": fields})
    return collection.files.write(segment, snapshot.seq)


def _tune_again(collection: Collection, stopped: Callable[[], bool]) -> Sealed | None:
    """Tune a segment of an older release by the rules of today; build it anew if it does not reach the target then."""
    snapshot = collection.snapshot
    for number, segment in enumerate(snapshot.fixed):
        if isinstance(segment, Segment) and segment.structure is not None and segment.tuning < TUNING:
            tuned = segment.tuned(stopped)
            if not tuned.reaches(collection.entry.target_recall):
                return _take(Step(number, 1), collection, snapshot, stopped)
            collection.files.write_tuning(tuned)
            with collection.write_lock:
                collection.publish(collection.snapshot.with_tuning(tuned))
            collection.recall.invalidate()
    return None


def _use_files(collection: Collection) -> None:
    collection.build_state.files_current = False  # so that the next step tries again if this fails
    snapshot = collection.snapshot
    collection.files.use(snapshot.segments, snapshot.seq)
    collection.build_state.files_current = True
