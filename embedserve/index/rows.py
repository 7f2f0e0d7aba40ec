"""Rows of vectors with ascending row numbers, some of them dead: what segments and the delta have in common.

A value of these classes never changes; a change makes another one that shares the vectors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from embedserve.index.kernels import inner_products, inner_products_at


@dataclass(frozen=True, slots=True)
class Candidates:
    """Some rows and their approximate scores for one query."""

    positions: NDArray[np.int64]
    """Where in the rows: int64 [M]."""
    scores: NDArray[np.float32]
    """float32 [M], as FAISS computes them, in no particular order."""
    complete: bool
    """True if no other row could be an answer."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Vectors and their row numbers.

    Args:
        vectors: float32 [N, D], unit norm.
        rids: int64 [N], ascending.
        live_bits: uint8 [⌈N/8⌉], bit i & 7 of byte i >> 3 is set if row i is live; None if all are.
        live: how many are.
    """

    vectors: NDArray[np.float32]
    rids: NDArray[np.int64]
    live_bits: NDArray[np.uint8] | None
    live: int

    def __len__(self) -> int:
        return len(self.rids)

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

    def without(self, rids: NDArray[np.int64]) -> Self:
        """The same rows with those dead; ``rids`` ascend, each once."""
        positions = self.positions_of(rids)
        if not len(positions):
            return self
        bits = np.packbits(self.live_mask(), bitorder="little") if self.live_bits is None else self.live_bits.copy()
        were_live = int((bits[positions >> 3] >> (positions & 7) & 1).sum())
        np.bitwise_and.at(bits, positions >> 3, ~(1 << (positions & 7)).astype(np.uint8))
        return replace(self, live_bits=bits, live=self.live - were_live)

    def live_rows(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Row numbers and vectors of the live rows; the vectors are copied only if some row is dead."""
        if self.live == len(self):
            return self.rids, self.vectors
        mask = self.live_mask()
        return self.rids[mask], self.vectors[mask]

    def at(self, query: NDArray[np.float32], positions: NDArray[np.int64]) -> Candidates:
        """The rows at these positions; the caller knows that they are live."""
        return Candidates(positions, inner_products_at(query, self.vectors, positions), complete=True)

    def all_live(self, query: NDArray[np.float32]) -> Candidates:
        """Every live row."""
        scores = inner_products(query, self.vectors)
        if self.live == len(self):
            return Candidates(np.arange(len(self), dtype=np.int64), scores, complete=True)
        positions = np.flatnonzero(self.live_mask())
        return Candidates(positions, scores[positions], complete=True)

    def nearest(self, queries: NDArray[np.float32], k: int) -> list[Candidates]:
        """For each of the queries [Q, D] at least the k closest live rows, or all if there are fewer."""
        return [self.all_live(query) for query in queries]
