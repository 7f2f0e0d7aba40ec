"""The index of a collection as it is after a start: segments from their files, everything else from the records."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedserve.errors import EmbedserveError
from embedserve.index.ids import PackedIds
from embedserve.index.rows import Frozen, Rows
from embedserve.index.segment import Segment
from embedserve.index.snapshot import Snapshot
from embedserve.store.local.collection.segment_files import SegmentFiles
from embedserve.store.local.records.database import damaged
from embedserve.store.local.records.view import View

_log = logging.getLogger("embedserve.store")

_SAMPLE = 32
"""Rows of each segment that are compared with the records at the start."""
_LAST_RID = 2**63 - 1


def load(view: View, files: SegmentFiles, path: Path, dimension: int) -> Snapshot:
    """The snapshot of all items that a view sees.

    A segment is used only if it holds every row that the records have in its range, and a sample of its rows agrees
    with them.

    Args:
        path: of the records, for messages.

    Raises:
        StoreError: a row is damaged.
    """
    seq, live = view.seq(), view.all_rids()
    segments, made_at = files.load()
    if segments and made_at > seq:
        files.doubt("stale", "the index of %s is made again: it is newer than the items, as of an older copy", path)
        segments = []
    fixed: list[Rows] = []
    start = 0  # among the live rows
    for segment in segments:
        if not len(segment):
            continue
        first, last = np.searchsorted(live, segment.rids[0]), np.searchsorted(live, segment.rids[-1], side="right")
        within = live[first:last]
        what = _disagreement(view, segment, within) if first >= start else "overlaps the segment before it"
        if what:
            files.doubt("differs", "segment %s of %s is made again from the items: it %s", segment.uid, path, what)
            continue
        fixed += unsealed(view, live[start:first], path, dimension)
        fixed.append(segment.without(np.setdiff1d(segment.rids, within, assume_unique=True)))
        start = int(last)
    fixed += unsealed(view, live[start:], path, dimension)
    used = [part for part in fixed if isinstance(part, Segment)]
    if [segment.uid for segment in used] != files.named:
        with suppress(EmbedserveError):  # on a full disk the next seal does it
            files.use(used, seq)
    return Snapshot.of(seq, dimension, fixed)


def caught_up(view: View, snapshot: Snapshot, path: Path) -> Snapshot:
    """A snapshot with the writes that it lacks of those a view sees.

    Args:
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
    fixed += unsealed(view, live[live > newest], path, snapshot.dimension)
    return Snapshot.of(view.seq(), snapshot.dimension, fixed)


def unsealed(view: View, rids: NDArray[np.int64], path: Path, dimension: int) -> list[Rows]:
    """The part with these rows, which are all that the records have in their range; none if there are none.

    Raises:
        StoreError: a row is damaged, or there are other rows.
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
        raise damaged(path, "its rows and its index of ids do not agree")
    return [Frozen.of(vectors, rids.copy(), PackedIds.of(ids), None, len(rids))]


def _disagreement(view: View, segment: Segment, live: NDArray[np.int64]) -> str:
    """Why a segment cannot be used for these rows, which the records have in its range; empty if it can."""
    positions = segment.positions_of(live)
    if len(positions) != len(live):
        return f"lacks {len(live) - len(positions)} of {len(live)} rows"
    some = positions[np.linspace(0, len(positions) - 1, min(_SAMPLE, len(positions))).astype(np.int64)]
    return "holds other vectors" if different(view, segment, some) else ""


def different(view: View, segment: Segment, positions: Sequence[int] | NDArray[np.int64]) -> list[bytes]:
    """Ids of those rows of a segment that are not as the records have them; rows that they have no more are right."""
    places = [int(position) for position in positions]
    rows = view.rows([int(segment.rids[place]) for place in places])
    wrong = []
    for place in places:
        row, id = rows.get(int(segment.rids[place])), segment.ids[place]
        if row is not None and (row.id != id or row.vec != segment.vectors[place].astype("<f4").tobytes()):
            wrong.append(id)
    return wrong
