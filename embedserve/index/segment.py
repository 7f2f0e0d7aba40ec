"""A sealed segment: rows that never change, with a structure for approximate search where there are many.

Removing a row only clears its bit; the row itself goes when segments are merged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from embedserve.index import structures, tuning
from embedserve.index.ids import PackedIds
from embedserve.index.ranking import error_of
from embedserve.index.rows import Found, Rows
from embedserve.index.search_params import SearchParams
from embedserve.index.spec import IndexSpec
from embedserve.index.structures import Structure
from embedserve.index.tuning import Point

_FEW = 20_000
"""So many matches are compared one by one, whatever their share: 1 to 2 ms, and nothing is missed."""
_SHARE = 0.1
"""And this share of the rows."""
_MOST_STRAYS = 1000
"""More than this a search does not compare; a structure with so many does not reach its recall either."""
_DEEPER = 1.5
"""How many times more rows are looked at than hold k that count if these lie everywhere. They do not lie where the
query is if there are fewer."""


@dataclass(frozen=True, slots=True, eq=False)
class Unreachable:
    """Some rows of a segment."""

    positions: NDArray[np.int64]
    """int64 [S], ascending."""
    vectors: NDArray[np.float32]
    """Theirs, float32 [S, D], together: to gather 250 of them from a file took half as long as a search."""

    def __len__(self) -> int:
        return len(self.positions)

    @classmethod
    def of(cls, vectors: NDArray[np.float32], positions: NDArray[np.int64]) -> Unreachable:
        """Those of vectors [N, D] at some positions."""
        return cls(positions, vectors[positions])


NO_STRAYS = Unreachable(np.empty(0, np.int64), np.empty((0, 0), np.float32))


@dataclass(frozen=True, slots=True, eq=False)
class Segment(Rows):
    """Rows with or without a structure."""

    uid: str
    """Names it for good."""
    structure: Structure | None
    points: tuple[Point, ...]
    """What its efforts find; empty without a structure."""
    strays: Unreachable
    """Rows that the structure does not lead to; compared with every query."""

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
        vectors.flags.writeable = False
        if structure is None:
            return cls(vectors, rids, ids, None, len(rids), uid, None, (), NO_STRAYS)
        points = tuning.operating_points(structure, vectors, stopped)
        strays = tuning.strays(structure, vectors, points, stopped)[:_MOST_STRAYS]
        return cls(vectors, rids, ids, None, len(rids), uid, structure, points, Unreachable.of(vectors, strays))

    def reaches(self, target_recall: float) -> bool:
        """Whether some effort finds that much."""
        return self.greatest_recall >= min(target_recall, tuning.ENOUGH)

    @property
    def greatest_recall(self) -> float:
        """That of the hardest efforts."""
        return max((point.recall for point in self.points), default=1.0)

    @property
    def spec(self) -> IndexSpec:
        """What it was built as."""
        return IndexSpec("exact") if self.structure is None else self.structure.spec

    def nearest(
        self, queries: NDArray[np.float32], k: int, effort: SearchParams, among: NDArray[np.bool_] | None = None
    ) -> Found:
        """For each of the queries [Q, D] about the k closest live rows; never fewer than k if there are k.

        Few matches are compared one by one. With many the structure is asked for the closest rows of all, for more the
        fewer of the rows count, and those that count are kept. If there are k of them, they are the closest as far as
        the structure finds what is close. If not, what counts lies away from the query, where a structure does not
        lead: then they are compared one by one as well. (A structure that passes over the rest on its way finds k rows
        nearly always, but the wrong ones: with the query in one cluster and the matches in others recall@10 was 0.5.)
        """
        count = self.live if among is None else int(np.count_nonzero(among))
        few = count <= _SHARE * len(self) or (among is not None and count <= _FEW)
        if self.structure is None or effort.exact or few or k * 4 >= count:
            return self.exactly_nearest(queries, k, among)
        if count == len(self):
            positions, scores = self._search(queries, k, self.effort(effort))
            counted = positions >= 0
        else:
            more = len(self) / count
            depth = min(ceil(k * _DEEPER * more), len(self))
            positions, scores = self._search(queries, depth, round(self.effort(effort) * more))
            counted = (self.live_mask() if among is None else among)[positions] & (positions >= 0)
            positions, scores = np.where(counted, positions, -1), np.where(counted, scores, np.float32(-np.inf))
        short = np.flatnonzero(counted.sum(axis=1) < k)
        if not len(short):
            return Found(positions, scores, complete=True)
        rows = [(positions[row], scores[row]) for row in range(len(queries))]
        for row in short.tolist():
            exact = self.exactly_nearest(queries[row : row + 1], k, among)
            rows[row] = exact.positions[0], exact.scores[0]
        return Found.of(rows)

    def _search(
        self, queries: NDArray[np.float32], k: int, effort: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """What the structure finds, and the strays."""
        assert self.structure is not None
        positions, scores = self.structure.search(queries, k, effort)
        if not len(self.strays):
            return positions, scores
        # Only those that may be among the best; the structure may have found some of them as well.
        more = queries @ self.strays.vectors.T
        counts = more >= scores.min(axis=1, keepdims=True) - error_of(self.vectors.shape[1])
        if not counts.any():
            return positions, scores
        strays = np.where(counts, self.strays.positions, -1)
        nearby = np.searchsorted(self.strays.positions[:-1], positions)
        twice = self.strays.positions[nearby] == positions
        positions, scores = np.where(twice, -1, positions), np.where(twice, np.float32(-np.inf), scores)
        more = np.where(counts, more, np.float32(-np.inf))
        return np.concatenate([positions, strays], axis=1), np.concatenate([scores, more], axis=1)

    def effort(self, effort: SearchParams) -> int:
        """What the structure is searched with: ef or nprobe."""
        assert self.structure is not None
        asked = self.structure.asked(effort)
        return asked or max(round(tuning.effort_for(self.points, effort.target_recall) * effort.multiplier), 1)


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
