"""A segment: sealed rows that never change, with a structure for approximate search where there are many.

Deleting a row only clears its bit; the row itself goes when segments are merged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from embedserve.index import kernels, structures, tuning
from embedserve.index.copies import NO_COPIES, Copies
from embedserve.index.ids import PackedIds
from embedserve.index.ranking import score_error
from embedserve.index.rows import Candidates, Rows
from embedserve.index.search_params import SearchParams
from embedserve.index.spec import IndexSpec
from embedserve.index.structures import Structure
from embedserve.index.tuning import OperatingPoint
from embedserve.wanted import ALWAYS, Wanted

_FEW = 20_000
"""Up to this many matches are compared one by one, whatever their share: 1 to 2 ms, and nothing is missed."""
_SHARE = 0.1
"""And so are matches up to this share of the rows."""
_MAX_UNREACHABLE = 1000
"""A search compares no more than this; a structure with more is not used where another one can be."""
_DEEPER = 1.5
"""Factor on the number of rows that contain k matches if matches are spread evenly. Fewer are found only where the
matches lie away from the query."""


@dataclass(frozen=True, slots=True, eq=False)
class Unreachable:
    """Rows of a segment that its graph does not lead to."""

    positions: NDArray[np.int64]
    """int64 [U], ascending."""
    vectors: NDArray[np.float32]
    """Their vectors, float32 [U, D], copied: gathering 250 of them from a file took half as long as a search."""

    def __len__(self) -> int:
        return len(self.positions)

    @classmethod
    def of(cls, vectors: NDArray[np.float32], positions: NDArray[np.int64]) -> Unreachable:
        """Those at ``positions`` of vectors [N, D]."""
        return cls(positions, vectors[positions])


TUNING = 2
"""Raised when search parameters are tuned by other rules, so that older segments are tuned again."""


@dataclass(frozen=True, slots=True)
class Shortfall:
    """A structure that was tried and given up, since no search parameters reach the target recall with it."""

    spec: str
    recall: float
    """The highest that it reached."""


_RECALL = attrgetter("recall")
ALL_REACHABLE = Unreachable(np.empty(0, np.int64), np.empty((0, 0), np.float32))


@dataclass(frozen=True, slots=True, eq=False)
class Segment(Rows):
    """Sealed rows, with or without a structure."""

    uid: str
    """Never used for another segment."""
    structure: Structure | None
    points: tuple[OperatingPoint, ...]
    """The recall of values of ef or nprobe, rising; empty without a structure."""
    unreachable: Unreachable
    """Rows that the structure does not lead to; compared with every query."""
    copies: Copies = NO_COPIES
    """Rows that equal others; the structure leads to these only."""
    shortfalls: tuple[Shortfall, ...] = ()
    """What was tried before this structure."""
    tuning: int = TUNING
    """By which rules ``points`` were found."""

    @classmethod
    def build(
        cls, uid: str, spec: IndexSpec, parts: Sequence[Rows], dimension: int, stopped: Callable[[], bool]
    ) -> Segment:
        """A segment in memory, of the live rows of neighbouring parts of a snapshot.

        Raises:
            Stopped: ``stopped`` returned true.
        """
        rids, ids, vectors = _joined(parts, dimension)
        copies = NO_COPIES if spec.kind == "exact" else Copies.of(vectors)
        return cls._over(uid, spec, rids, ids, vectors, copies, stopped)._with_unreachable(stopped)

    @classmethod
    def build_first(
        cls,
        uid: str,
        attempts: Sequence[IndexSpec],
        target_recall: float,
        parts: Sequence[Rows],
        dimension: int,
        stopped: Callable[[], bool],
    ) -> Segment:
        """The same as the first of some specifications that reaches a recall; the last one is taken if none does.

        Raises:
            Stopped: ``stopped`` returned true.
        """
        rids, ids, vectors = _joined(parts, dimension)
        copies = NO_COPIES if len(attempts) == 1 and attempts[0].kind == "exact" else Copies.of(vectors)
        shortfalls: list[Shortfall] = []
        for spec in attempts[:-1]:
            segment = cls._over(uid, spec, rids, ids, vectors, copies, stopped)
            if segment.reaches(target_recall):
                segment = segment._with_unreachable(stopped)
                if len(segment.unreachable) < _MAX_UNREACHABLE:
                    return replace(segment, shortfalls=tuple(shortfalls))
            shortfalls.append(Shortfall(str(segment.spec), segment.max_recall))
            del segment  # and its memory, before the next is built
        last = cls._over(uid, attempts[-1], rids, ids, vectors, copies, stopped)._with_unreachable(stopped)
        return replace(last, shortfalls=tuple(shortfalls))

    @classmethod
    def _over(
        cls,
        uid: str,
        spec: IndexSpec,
        rids: NDArray[np.int64],
        ids: PackedIds,
        vectors: NDArray[np.float32],
        copies: Copies,
        stopped: Callable[[], bool],
    ) -> Segment:
        distinct = copies.distinct(len(rids)) if len(copies) else None
        structure = structures.build(spec, vectors, stopped, distinct)
        if isinstance(structure, structures.Hnsw):
            vectors = structure.vectors  # so that they are held once
        vectors.flags.writeable = False
        if structure is None:
            return cls(vectors, rids, ids, None, len(rids), uid, None, (), ALL_REACHABLE)
        bare = cls(vectors, rids, ids, None, len(rids), uid, structure, (), ALL_REACHABLE, copies)
        return bare.tuned(stopped)

    def _with_unreachable(self, stopped: Callable[[], bool]) -> Segment:
        """The same with the rows that the structure does not lead to."""
        if self.structure is None:
            return self
        positions = tuning.unreachable_rows(self.structure, self.vectors, self.points, stopped, self.copies)
        return replace(self, unreachable=Unreachable.of(self.vectors, positions[:_MAX_UNREACHABLE]))

    def tuned(self, stopped: Callable[[], bool]) -> Segment:
        """The same with search parameters that are tuned by the rules of today.

        Raises:
            Stopped: ``stopped`` returned true.
        """
        if self.structure is None:
            return replace(self, tuning=TUNING)
        points = tuning.operating_points(self.structure, self.vectors, stopped, self.copies)
        return replace(self, points=points, tuning=TUNING)

    def reaches(self, target_recall: float) -> bool:
        """Whether some value of ef or nprobe reaches this recall."""
        return self.max_recall >= min(target_recall, tuning.ENOUGH)

    @property
    def max_recall(self) -> float:
        """The highest recall that a value of ef or nprobe reached."""
        return max((point.recall for point in self.points), default=1.0)

    @property
    def spec(self) -> IndexSpec:
        """What it was built as."""
        return IndexSpec("exact") if self.structure is None else self.structure.spec

    def nearest(
        self,
        queries: NDArray[np.float32],
        k: int,
        params: SearchParams,
        among: NDArray[np.bool_] | None = None,
        wanted: Wanted = ALWAYS,
    ) -> Candidates:
        """About the k nearest live rows of each of the queries [Q, D]; never fewer than k if there are k.

        Few matches are compared one by one. With many, the structure is asked for the nearest rows of all, the more the
        fewer of them match, and the matches are kept. If there are k of them, they are the nearest as far as the
        structure finds them. If not, the matches lie away from the query, where the structure does not lead: then they
        are compared one by one as well. (A structure that skips the other rows on its way nearly always finds k rows,
        but the wrong ones: with the query in one cluster and the matches in others recall@10 was 0.5.)
        """
        count = self.live if among is None else int(np.count_nonzero(among))
        few = count <= _SHARE * len(self) or (among is not None and count <= _FEW)
        if self.structure is None or params.exact or few or k * 4 >= count:
            return self.nearest_exact(queries, k, among, wanted)
        param, dimension = self.param(params), self.vectors.shape[1]
        if not param:
            return self.nearest_exact(queries, k, among, wanted)
        if count == len(self):
            positions, scores = self._search(queries, k, param, wanted)
            if self.copies.rows.size:
                positions, scores = self.copies.expanded(positions, scores, k, dimension)
            matched = positions >= 0
        else:
            more = len(self) / count
            depth = min(ceil(k * _DEEPER * more), len(self))
            positions, scores = self._search(queries, depth, round(param * more), wanted)
            if self.copies.rows.size:
                positions, scores = self.copies.expanded(positions, scores, None, dimension)
            matched = (self.live_mask() if among is None else among)[positions] & (positions >= 0)
            positions, scores = np.where(matched, positions, -1), np.where(matched, scores, np.float32(-np.inf))
        short = np.flatnonzero(matched.sum(axis=1) < k)
        if not len(short):
            return Candidates(positions, scores, complete=True)
        rows = [(positions[row], scores[row]) for row in range(len(queries))]
        for row in short.tolist():
            exact = self.nearest_exact(queries[row : row + 1], k, among, wanted)
            rows[row] = exact.positions[0], exact.scores[0]
        return Candidates.of(rows)

    def _search(
        self, queries: NDArray[np.float32], k: int, param: int, wanted: Wanted
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """What the structure finds, and the unreachable rows that may be nearer."""
        assert self.structure is not None
        some = kernels.queries_of_step(param, k, *self.vectors.shape)
        found = []
        for start in range(0, len(queries), some):
            wanted.check()
            found.append(self.structure.search(queries[start : start + some], k, param))
        positions, scores = found[0] if len(found) == 1 else map(np.concatenate, zip(*found, strict=True))
        if not len(self.unreachable):
            return positions, scores
        # Only those that may be among the best; the structure may have found some of them as well.
        more = queries @ self.unreachable.vectors.T
        relevant = more >= scores.min(axis=1, keepdims=True) - score_error(self.vectors.shape[1])
        if not relevant.any():
            return positions, scores
        others = np.where(relevant, self.unreachable.positions, -1)
        nearby = np.searchsorted(self.unreachable.positions[:-1], positions)
        twice = self.unreachable.positions[nearby] == positions
        positions, scores = np.where(twice, -1, positions), np.where(twice, np.float32(-np.inf), scores)
        more = np.where(relevant, more, np.float32(-np.inf))
        return np.concatenate([positions, others], axis=1), np.concatenate([scores, more], axis=1)

    def param(self, params: SearchParams) -> int:
        """What the structure is searched with, ef or nprobe; 0 if none reaches the recall: then rows are compared."""
        assert self.structure is not None
        given = self.structure.given_param(params)
        if given:
            return given
        if self.points and max(self.points, key=_RECALL).recall < min(params.target_recall, tuning.ENOUGH):
            return 0
        return max(round(tuning.param_for(self.points, params.target_recall) * params.multiplier), 1)


def _joined(parts: Sequence[Rows], dimension: int) -> tuple[NDArray[np.int64], PackedIds, NDArray[np.float32]]:
    """Row numbers [N], ids and vectors [N, D] of all live rows."""
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
