"""Rows of vectors with ascending row numbers, some of them deleted: what segments and deltas have in common.

Values of these classes never change; a change makes a new value that shares the vectors. Search here compares the query
with every row; segments override it where they have a structure for approximate search.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from embedserve.index import kernels
from embedserve.index.ids import PackedIds
from embedserve.index.ranking import score_error
from embedserve.index.search_params import SearchParams
from embedserve.wanted import ALWAYS, Wanted

_SPARE = 8
"""Candidates beyond k, so that the score of the last one is nearly always below the k-th by more than the error."""
_SCORE_ALL = 4
"""For k ≥ live/4, scoring every row is cheaper than a heap of k."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Rows that may be among the nearest of each of Q queries."""

    positions: NDArray[np.int64]
    """Their positions: int64 [Q, C], −1 where there are fewer."""
    scores: NDArray[np.float32]
    """Inner products in float32 [Q, C], −inf where there are fewer."""
    complete: bool
    """True if no other row can be an answer, or approximate search knows of none."""

    @classmethod
    def of(cls, found: Sequence[tuple[NDArray[np.int64], NDArray[np.float32]]]) -> Self:
        """From positions [M] and scores [M] of each query, with different M."""
        longest = max((len(positions) for positions, _ in found), default=0)
        all_positions = np.full((len(found), longest), -1, np.int64)
        all_scores = np.full((len(found), longest), -np.inf, np.float32)
        for row, (positions, scores) in enumerate(found):
            all_positions[row, : len(positions)] = positions
            all_scores[row, : len(scores)] = scores
        return cls(all_positions, all_scores, complete=True)

    def of_queries(self, some: slice) -> Candidates:
        """Those of some of the queries."""
        return Candidates(self.positions[some], self.scores[some], self.complete)


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Vectors with their row numbers and ids.

    Args:
        vectors: float32 [N, D], unit norm.
        rids: int64 [N], ascending.
        ids: N ids in UTF-8.
        live_bits: uint8 [⌈N/8⌉], bit i & 7 of byte i >> 3 is set if row i is live; None if all are.
        live: number of live rows.
    """

    vectors: NDArray[np.float32]
    rids: NDArray[np.int64]
    ids: Sequence[bytes]
    live_bits: NDArray[np.uint8] | None
    live: int

    def __len__(self) -> int:
        return len(self.rids)

    @property
    def deleted(self) -> int:
        """Number of rows whose items were deleted or replaced."""
        return len(self) - self.live

    def positions_of(self, rids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions of the given row numbers that are here, live or deleted: int64 [M]. ``rids`` must ascend."""
        if not len(self.rids):
            return np.empty(0, np.int64)
        within = rids[np.searchsorted(rids, self.rids[0]) : np.searchsorted(rids, self.rids[-1], side="right")]
        positions: NDArray[np.int64] = np.searchsorted(self.rids, within).astype(np.int64, copy=False)
        present: NDArray[np.int64] = positions[self.rids[positions] == within]
        return present

    def live_mask(self) -> NDArray[np.bool_]:
        """Which rows are live: bool [N]."""
        if self.live_bits is None:
            return np.ones(len(self), np.bool_)
        return np.unpackbits(self.live_bits, count=len(self), bitorder="little").view(np.bool_)

    def live_positions(self) -> NDArray[np.int64]:
        """Positions of the live rows: int64 [live], ascending."""
        if not self.deleted:
            return np.arange(len(self), dtype=np.int64)
        return np.flatnonzero(self.live_mask())

    def without(self, rids: NDArray[np.int64]) -> Self:
        """The same rows, with these marked as deleted. ``rids`` must ascend, without duplicates."""
        positions = self.positions_of(rids)
        if not len(positions):
            return self
        bits = np.packbits(self.live_mask(), bitorder="little") if self.live_bits is None else self.live_bits.copy()
        were_live = int((bits[positions >> 3] >> (positions & 7) & 1).sum())
        np.bitwise_and.at(bits, positions >> 3, ~(1 << (positions & 7)).astype(np.uint8))
        return replace(self, live_bits=bits, live=self.live - were_live)

    def ids_at(self, positions: NDArray[np.int64]) -> list[bytes]:
        """The ids at these positions, in their order."""
        if isinstance(self.ids, PackedIds):
            return self.ids.at(positions)
        return [self.ids[position] for position in positions.tolist()]

    def deleted_rids(self) -> NDArray[np.int64]:
        """Row numbers of the deleted rows, ascending."""
        return self.rids[~self.live_mask()] if self.deleted else np.empty(0, np.int64)

    # --- Search ---------------------------------------------------------------------

    def nearest(
        self,
        queries: NDArray[np.float32],
        k: int,
        params: SearchParams,
        among: NDArray[np.bool_] | None = None,
        wanted: Wanted = ALWAYS,
    ) -> Candidates:
        """At least the k nearest live rows of each of the queries [Q, D], or all if there are fewer.

        Args:
            queries: float32 [Q, D], unit norm.
            k: at least 1.
            params: of approximate search, which there is none of here.
            among: bool [N], the live rows to choose from; None for all of them.
            wanted: asked before every step of the work; see ``kernels.step_of``.
        """
        return self.nearest_exact(queries, k, among, wanted)

    def nearest_exact(
        self,
        queries: NDArray[np.float32],
        k: int,
        among: NDArray[np.bool_] | None = None,
        wanted: Wanted = ALWAYS,
    ) -> Candidates:
        """The same, always comparing every row."""
        if among is None and k * _SCORE_ALL < self.live:
            return self._nearest_of_all(queries, min(k + _SPARE, self.live), wanted)
        chosen = None if among is None else np.flatnonzero(among).astype(np.int64, copy=False)
        return Candidates.of([self._best(query, k, chosen, wanted) for query in queries])

    def range_search(self, query: NDArray[np.float32], min_score: float, wanted: Wanted = ALWAYS) -> NDArray[np.int64]:
        """Positions of all live rows whose score for query [D] is at least ``min_score``: int64 [M]."""
        found = [positions[scores >= min_score] for positions, scores in self.scored(query, None, wanted)]
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def scored(
        self, query: NDArray[np.float32], among: NDArray[np.int64] | None, wanted: Wanted = ALWAYS
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Positions [m] and scores [m] for query [D] of all live rows, or of those at some positions, step by step."""
        count, dimension = len(self) if among is None else len(among), self.vectors.shape[1]
        _, step = kernels.step_of(1, count, dimension)
        live = self.live_mask() if among is None and self.deleted else None
        for start in range(0, count, step or 1):
            wanted.check()
            if among is not None:
                some = among[start : start + step]
                yield some, kernels.inner_products_at(query, self.vectors, some)
                continue
            scores = kernels.inner_products(query, self.vectors[start : start + step])
            if live is None:
                yield np.arange(start, start + len(scores), dtype=np.int64), scores
            else:
                places = np.flatnonzero(live[start : start + step])
                yield places + start, scores[places]

    def _nearest_of_all(self, queries: NDArray[np.float32], k: int, wanted: Wanted) -> Candidates:
        """The k nearest live rows, in steps."""
        bits = self.live_bits if self.deleted else None
        some, step = kernels.step_of(len(queries), len(self), self.vectors.shape[1], k)
        if step == len(self) and some == len(queries):
            wanted.check()
            positions, scores = kernels.nearest(queries, self.vectors, k, bits)
            return Candidates(positions, scores, complete=False)
        of_queries = []
        for first in range(0, len(queries), some):
            best = _Best(k)
            for start in range(0, len(self), step):
                wanted.check()
                vectors = self.vectors[start : start + step]
                live_bits = None if bits is None else bits[start >> 3 : start + step + 7 >> 3]
                count = min(k, len(vectors))
                positions, scores = kernels.nearest(queries[first : first + some], vectors, count, live_bits)
                # Where a part has fewer live rows than were asked for, FAISS gives −1.
                best.add(np.where(positions < 0, -1, positions + start), np.where(positions < 0, -np.inf, scores))
            of_queries.append(best.sorted())
        positions, scores = (np.concatenate(column) for column in zip(*of_queries, strict=True))
        return Candidates(positions, scores, complete=False)

    def _best(
        self, query: NDArray[np.float32], k: int, among: NDArray[np.int64] | None, wanted: Wanted
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The best k, and all that may tie with the last of them."""
        error = score_error(self.vectors.shape[1])
        steps = [_cut(*some, k, error) for some in self.scored(query, among, wanted)]
        if len(steps) == 1:
            return steps[0]
        if not steps:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        positions, scores = (np.concatenate(column) for column in zip(*steps, strict=True))
        return _cut(positions, scores, k, error)


class _Best:
    """The k best of several steps for each of some queries."""

    def __init__(self, k: int) -> None:
        self._k = k
        self._steps: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []
        self._width = 0

    def add(self, positions: NDArray[np.int64], scores: NDArray[np.float32]) -> None:
        """Positions and scores [Q, C] of one step."""
        self._steps.append((positions, scores))
        self._width += positions.shape[1]
        if self._width > 8 * self._k:
            self._steps = [self._reduced()]
            self._width = self._k

    def sorted(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Positions and scores [Q, k], the best first."""
        positions, scores = self._reduced()
        order = np.argsort(-scores, axis=1, kind="stable")
        return np.take_along_axis(positions, order, 1), np.take_along_axis(scores, order, 1)

    def _reduced(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        positions, scores = (np.concatenate(column, axis=1) for column in zip(*self._steps, strict=True))
        if scores.shape[1] <= self._k:
            return positions, scores
        best = np.argpartition(-scores, self._k - 1, axis=1)[:, : self._k]
        return np.take_along_axis(positions, best, 1), np.take_along_axis(scores, best, 1)


def _cut(
    positions: NDArray[np.int64], scores: NDArray[np.float32], k: int, error: float
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The best k, and all that may tie with the last of them."""
    if len(scores) <= k:
        return positions, scores
    kept = scores >= float(np.partition(scores, len(scores) - k)[len(scores) - k]) - error
    return positions[kept], scores[kept]
