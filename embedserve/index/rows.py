"""Rows of vectors with ascending row numbers, some of them dead: what segments and the delta have in common.

A value of these classes never changes; a change makes another one that shares the vectors. Search here compares the
query with every row; segments with a structure for approximate search do better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Self

import numpy as np
from numpy.typing import NDArray

from embedserve.index import kernels
from embedserve.index.ids import PackedIds
from embedserve.index.ranking import error_of
from embedserve.index.search_params import SearchParams

_numbers = count()

_SPARE = 8
"""Candidates beyond k, so that the last one is nearly always clear of the k-th score."""
_EVERYTHING = 4
"""From k ≥ live/4 on, scoring every row is cheaper than a heap of k."""


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Candidates of some rows for each of Q queries."""

    positions: NDArray[np.int64]
    """Where in the rows: int64 [Q, C], −1 where there are fewer."""
    scores: NDArray[np.float32]
    """Inner products in float32 [Q, C], −inf where there are fewer."""
    complete: bool
    """True if no other row could be an answer, or nobody knows of any."""

    @classmethod
    def of(cls, found: Sequence[tuple[NDArray[np.int64], NDArray[np.float32]]]) -> Self:
        """For each query positions [M] and scores [M], with different M."""
        longest = max((len(positions) for positions, _ in found), default=0)
        all_positions = np.full((len(found), longest), -1, np.int64)
        all_scores = np.full((len(found), longest), -np.inf, np.float32)
        for row, (positions, scores) in enumerate(found):
            all_positions[row, : len(positions)] = positions
            all_scores[row, : len(scores)] = scores
        return cls(all_positions, all_scores, complete=True)


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Vectors, their row numbers and ids.

    Args:
        vectors: float32 [N, D], unit norm.
        rids: int64 [N], ascending.
        ids: N ids in UTF-8.
        live_bits: uint8 [⌈N/8⌉], bit i & 7 of byte i >> 3 is set if row i is live; None if all are.
        live: how many are.
    """

    vectors: NDArray[np.float32]
    rids: NDArray[np.int64]
    ids: Sequence[bytes]
    live_bits: NDArray[np.uint8] | None
    live: int

    def __len__(self) -> int:
        return len(self.rids)

    @property
    def dead(self) -> int:
        """Rows whose items are gone."""
        return len(self) - self.live

    def positions_of(self, rids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions of those of the row numbers that are among these rows, dead ones too; ``rids`` ascend."""
        if not len(self.rids):
            return np.empty(0, np.int64)
        within = rids[np.searchsorted(rids, self.rids[0]) : np.searchsorted(rids, self.rids[-1], side="right")]
        positions: NDArray[np.int64] = np.searchsorted(self.rids, within).astype(np.int64, copy=False)
        present: NDArray[np.int64] = positions[self.rids[positions] == within]
        return present

    def live_mask(self) -> NDArray[np.bool_]:
        """bool [N]."""
        if self.live_bits is None:
            return np.ones(len(self), np.bool_)
        return np.unpackbits(self.live_bits, count=len(self), bitorder="little").view(np.bool_)

    def live_positions(self) -> NDArray[np.int64]:
        """int64 [live], ascending."""
        if not self.dead:
            return np.arange(len(self), dtype=np.int64)
        return np.flatnonzero(self.live_mask())

    def without(self, rids: NDArray[np.int64]) -> Self:
        """The same rows with those dead; ``rids`` ascend, each once."""
        positions = self.positions_of(rids)
        if not len(positions):
            return self
        bits = np.packbits(self.live_mask(), bitorder="little") if self.live_bits is None else self.live_bits.copy()
        were_live = int((bits[positions >> 3] >> (positions & 7) & 1).sum())
        np.bitwise_and.at(bits, positions >> 3, ~(1 << (positions & 7)).astype(np.uint8))
        return replace(self, live_bits=bits, live=self.live - were_live)

    def ids_at(self, positions: NDArray[np.int64]) -> list[bytes]:
        """The ids at some positions, in their order."""
        if isinstance(self.ids, PackedIds):
            return self.ids.at(positions)
        return [self.ids[position] for position in positions.tolist()]

    def dead_rids(self) -> NDArray[np.int64]:
        """Row numbers of the dead rows, ascending."""
        return self.rids[~self.live_mask()] if self.dead else np.empty(0, np.int64)

    # --- Search ---------------------------------------------------------------------

    def nearest(
        self, queries: NDArray[np.float32], k: int, effort: SearchParams, among: NDArray[np.bool_] | None = None
    ) -> Found:
        """For each of the queries [Q, D] at least the k closest live rows, or all if there are fewer.

        Args:
            among: bool [N]: the live rows to choose from; None for all that live.
        """
        return self.exactly_nearest(queries, k, among)

    def exactly_nearest(self, queries: NDArray[np.float32], k: int, among: NDArray[np.bool_] | None = None) -> Found:
        """The same by comparing every row."""
        if among is None and k * _EVERYTHING < self.live:
            positions, scores = kernels.nearest(
                queries, self.vectors, min(k + _SPARE, self.live), self.live_bits if self.dead else None
            )
            return Found(positions, scores, complete=False)
        chosen = None if among is None else np.flatnonzero(among).astype(np.int64, copy=False)
        return Found.of([self._best(query, k, chosen) for query in queries])

    def all_that_reach(self, query: NDArray[np.float32], lowest: float) -> NDArray[np.int64]:
        """Positions of all live rows whose score for query [D] is at least ``lowest``: int64 [M]."""
        positions, scores = self._scores(query, None)
        return positions[scores >= lowest]

    def _best(
        self, query: NDArray[np.float32], k: int, among: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The k best, and what may tie with the last of them."""
        positions, scores = self._scores(query, among)
        if len(scores) <= k:
            return positions, scores
        last = float(np.partition(scores, len(scores) - k)[len(scores) - k])
        kept = scores >= last - error_of(self.vectors.shape[1])
        return positions[kept], scores[kept]

    def _scores(
        self, query: NDArray[np.float32], among: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        if among is not None:
            return among, kernels.inner_products_at(query, self.vectors, among)
        scores = kernels.inner_products(query, self.vectors)
        positions = self.live_positions()
        return positions, scores if len(positions) == len(scores) else scores[positions]


@dataclass(frozen=True, slots=True, eq=False)
class Frozen(Rows):
    """Rows in memory that wait to be sealed; nothing is appended to them."""

    uid: str
    """Names them for good, as long as the process lives."""

    @classmethod
    def of(
        cls,
        vectors: NDArray[np.float32],
        rids: NDArray[np.int64],
        ids: Sequence[bytes],
        live_bits: NDArray[np.uint8] | None,
        live: int,
    ) -> Self:
        """With a new name."""
        return cls(vectors, rids, ids, live_bits, live, f"memory-{next(_numbers)}")
