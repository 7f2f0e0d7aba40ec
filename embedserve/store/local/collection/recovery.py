"""The index of a collection after a start: segments from their files, everything else from the records."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedserve.errors import EmbedserveError
from embedserve.index.delta import FrozenDelta
from embedserve.index.ids import PackedIds
from embedserve.index.rows import Rows
from embedserve.index.segment import Segment
from embedserve.index.snapshot import Snapshot
from embedserve.store.local.collection.segment_files import SegmentFiles
from embedserve.store.local.records.database import damaged
from embedserve.store.local.records.view import View

_log = logging.getLogger("embedserve.store")

_SAMPLE = 32
"""Rows of each segment that are compared with the records at a start."""


def load(view: View, files: SegmentFiles, path: Path, dimension: int) -> Snapshot:
    """The snapshot of all items in a view.

    A segment is used only if it holds every row that the records have in its range, and a sample of its rows equals
    theirs.

    Args:
        view: of the records.
        files: of the segments.
        path: of the records, for messages.
        dimension: D.

    Raises:
        StoreError: a row is damaged.
    """
    seq, live = view.seq(), view.all_rids()
    segments, made_at = files.load()
    if segments and made_at > seq:
        files.report_rebuild("stale", "it is newer than the items, as if those were an older copy")
        segments = []
    fixed: list[Rows] = []
    start = 0  # of the live rows that no part has yet
    for segment in segments:
        if not len(segment):
            continue
        first, last = np.searchsorted(live, segment.rids[0]), np.searchsorted(live, segment.rids[-1], side="right")
        within = live[first:last]
        problem = _problem(view, segment, within) if first >= start else "overlaps the segment before it"
        if problem:
            files.report_rebuild("differs", f"it {problem}", segment=segment.uid)
            continue
        fixed += read_rows(view, live[start:first], path, dimension)
        fixed.append(segment.without(np.setdiff1d(segment.rids, within, assume_unique=True)))
        start = int(last)
    fixed += read_rows(view, live[start:], path, dimension)
    used = [part for part in fixed if isinstance(part, Segment)]
    if [segment.uid for segment in used] != files.named:
        with suppress(EmbedserveError):  # on a full disk the next build does it
            files.use(used, seq)
    return Snapshot.of(seq, dimension, fixed)


def catch_up(view: View, snapshot: Snapshot, path: Path) -> Snapshot:
    """A snapshot with the writes in a view that it lacks.

    Args:
        view: of the records.
        snapshot: after an earlier write.
        path: of the records, for messages.

    Raises:
        StoreError: a row is damaged.
    """
    live = view.all_rids()
    fixed: list[Rows] = []
    newest = -1
    for part in snapshot.with_delta_frozen().fixed:
        fixed.append(part.without(np.setdiff1d(part.rids, live, assume_unique=True)))
        newest = int(part.rids[-1])
    fixed += read_rows(view, live[live > newest], path, snapshot.dimension)
    return Snapshot.of(view.seq(), snapshot.dimension, fixed)


def read_rows(view: View, rids: NDArray[np.int64], path: Path, dimension: int) -> list[Rows]:
    """One frozen delta with these rows, which must be all that the records have in their range; [] without rows.

    Raises:
        StoreError: a row is damaged, or the range has other rows.
    """
    if not len(rids):
        return []
    found = np.empty(len(rids), np.int64)
    vectors = np.empty((len(rids), dimension), np.float32)
    ids: list[bytes] = []
    for batch, batch_ids, batch_vectors in view.rows_between(int(rids[0]), int(rids[-1])):
        end = len(ids) + len(batch)
        if end > len(rids):
            raise damaged(path, "its index of ids lacks rows")
        found[len(ids) : end], vectors[len(ids) : end] = batch, batch_vectors
        ids += batch_ids
    if len(ids) != len(rids) or not np.array_equal(found, rids):
        raise damaged(path, "its rows and its index of ids differ")
    return [FrozenDelta.of(vectors, rids.copy(), PackedIds.of(ids), None, len(rids))]


def _problem(view: View, segment: Segment, live: NDArray[np.int64]) -> str:
    """Why a segment cannot be used for the live rows that the records have in its range; empty if it can."""
    positions = segment.positions_of(live)
    if len(positions) != len(live):
        return f"lacks {len(live) - len(positions)} of {len(live)} rows"
    some = positions[np.linspace(0, len(positions) - 1, min(_SAMPLE, len(positions))).astype(np.int64)]
    return "holds other vectors" if differing_ids(view, segment, some) else ""


def differing_ids(view: View, segment: Segment, positions: Sequence[int] | NDArray[np.int64]) -> list[bytes]:
    """Ids of the rows at these positions of a segment that differ from the records; rows deleted there are ignored."""
    places = [int(position) for position in positions]
    rows = view.rows([int(segment.rids[place]) for place in places])
    wrong = []
    for place in places:
        row, id = rows.get(int(segment.rids[place])), segment.ids[place]
        if row is not None and (row.id != id or row.vec != segment.vectors[place].astype("<f4").tobytes()):
            wrong.append(id)
    return wrong
