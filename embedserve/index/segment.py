"""A sealed segment: rows that never change, with a structure for approximate search where there are many.

Removing a row only clears its bit; the row itself goes when segments are merged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedserve.index import structures, tuning
from embedserve.index.effort import Effort
from embedserve.index.ids import PackedIds
from embedserve.index.rows import Found, Rows
from embedserve.index.spec import IndexSpec
from embedserve.index.structures import Structure
from embedserve.index.tuning import Point

_FEW = 20_000
"""So many matches are compared one by one, whatever their share: 1 to 2 ms, and nothing is missed."""
_SHARE = 0.1
"""And this share of the rows. Below it a graph finds less and less of what matches: recall@10 was 0.93 at 10 %, 0.42 at
1 % with ef = 64."""
_MOST = 64
"""Efforts are raised for rows that do not count by this factor at most."""


@dataclass(frozen=True, slots=True, eq=False)
class Segment(Rows):
    """Rows with or without a structure."""

    uid: str
    """Names it for good."""
    structure: Structure | None
    points: tuple[Point, ...]
    """What its efforts find; empty without a structure."""

    @classmethod
    def built(
        cls, uid: str, spec: IndexSpec, parts: Sequence[Rows], dimension: int, stopped: Callable[[], bool]
    ) -> Segment:
        """A segment of the live rows of several parts, which follow each other; in memory.

        Raises:
            Stopped: ``stopped`` said so in between.
        """
        rids, ids, vectors = _joined(parts, dimension)
        structure = structures.built(spec, vectors, stopped)
        if isinstance(structure, structures.Hnsw):
            vectors = structure.vectors  # so that they are held once
        points = tuning.operating_points(structure, vectors) if structure is not None else ()
        vectors.flags.writeable = False
        return cls(vectors, rids, ids, None, len(rids), uid, structure, points)

    @property
    def spec(self) -> IndexSpec:
        """What it was built as."""
        return IndexSpec("exact") if self.structure is None else self.structure.spec

    def nearest(
        self, queries: NDArray[np.float32], k: int, effort: Effort, among: NDArray[np.bool_] | None = None
    ) -> Found:
        """For each of the queries [Q, D] about the k closest live rows; never fewer than k if there are k.

        Few matches are compared one by one. Among many the structure is asked, with more effort the fewer of the rows
        it meets count; and if it still finds fewer than there are, they are compared one by one as well.
        """
        count = self.live if among is None else int(np.count_nonzero(among))
        few = among is not None and count <= max(_FEW, _SHARE * len(self))
        if self.structure is None or effort.exact or few or k * 4 >= count:
            return self.exactly_nearest(queries, k, among)
        bits: NDArray[np.uint8] | None = self.live_bits if self.dead else None
        if among is not None:
            bits = np.packbits(among, bitorder="little")
        tried = round(self.effort(effort) * min(len(self) / count, _MOST))
        positions, scores = self.structure.search(queries, k, tried, bits)
        found = Found(positions, scores, complete=True)
        short = np.flatnonzero((positions >= 0).sum(axis=1) < k)
        if not len(short):
            return found
        rows = [(positions[row], scores[row]) for row in range(len(queries))]
        for row in short.tolist():
            exact = self.exactly_nearest(queries[row : row + 1], k, among)
            rows[row] = exact.positions[0], exact.scores[0]
        return Found.of(rows)

    def effort(self, effort: Effort) -> int:
        """What the structure is searched with: ef or nprobe."""
        assert self.structure is not None
        asked = self.structure.asked(effort)
        return asked or max(round(tuning.effort_for(self.points, effort.target_recall) * effort.boost), 1)


def _joined(parts: Sequence[Rows], dimension: int) -> tuple[NDArray[np.int64], PackedIds, NDArray[np.float32]]:
    """Row numbers, ids and vectors of all live rows."""
    count = sum(part.live for part in parts)
    rids, vectors = np.empty(count, np.int64), np.empty((count, dimension), np.float32)
    ids: list[bytes] = []
    filled = 0
    for part in parts:
        positions = part.live_positions()
        end = filled + len(positions)
        rids[filled:end] = part.rids[positions]
        if len(positions) == len(part):
            vectors[filled:end] = part.vectors
        else:
            np.take(part.vectors, positions, axis=0, out=vectors[filled:end])
        ids += [part.ids[position] for position in positions.tolist()]
        filled = end
    return rids, PackedIds.of(ids), vectors
