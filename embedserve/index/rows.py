"""Rows of vectors with ascending row numbers, some of them deleted: what segments and deltas have in common.

Values of these classes never change; a change makes a new value that shares the vectors. Search here compares the query
with every row; segments override it where they have a structure for approximate search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from embedserve.index import kernels
from embedserve.index.ids import PackedIds
from embedserve.index.ranking import score_error
from embedserve.index.search_params import SearchParams

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
        self, queries: NDArray[np.float32], k: int, params: SearchParams, among: NDArray[np.bool_] | None = None
    ) -> Candidates:
        """At least the k nearest live rows of each of the queries [Q, D], or all if there are fewer.

        Args:
            queries: float32 [Q, D], unit norm.
            k: at least 1.
            params: of approximate search, which there is none of here.
            among: bool [N], the live rows to choose from; None for all of them.
        """
        return self.nearest_exact(queries, k, among)

    def nearest_exact(self, queries: NDArray[np.float32], k: int, among: NDArray[np.bool_] | None = None) -> Candidates:
        """The same, always comparing every row."""
        if among is None and k * _SCORE_ALL < self.live:
            positions, scores = kernels.nearest(
                queries, self.vectors, min(k + _SPARE, self.live), self.live_bits if self.deleted else None
            )
            return Candidates(positions, scores, complete=False)
        chosen = None if among is None else np.flatnonzero(among).astype(np.int64, copy=False)
        return Candidates.of([self._best(query, k, chosen) for query in queries])

    def range_search(self, query: NDArray[np.float32], min_score: float) -> NDArray[np.int64]:
        """Positions of all live rows whose score for query [D] is at least ``min_score``: int64 [M]."""
        positions, scores = self._scores(query, None)
        return positions[scores >= min_score]

    def _best(
        self, query: NDArray[np.float32], k: int, among: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The best k, and all that may tie with the last of them."""
        positions, scores = self._scores(query, among)
        if len(scores) <= k:
            return positions, scores
        last = float(np.partition(scores, len(scores) - k)[len(scores) - k])
        kept = scores >= last - score_error(self.vectors.shape[1])
        return positions[kept], scores[kept]

    def _scores(
        self, query: NDArray[np.float32], among: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        if among is not None:
            return among, kernels.inner_products_at(query, self.vectors, among)
        scores = kernels.inner_products(query, self.vectors)
        positions = self.live_positions()
        return positions, scores if len(positions) == len(scores) else scores[positions]
