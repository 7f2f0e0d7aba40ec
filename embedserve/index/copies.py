"""Equal rows of a segment: a structure holds each vector once, and its copies hang on it.

A graph links a row to its nearest ones. Among many copies these are the copies, so that a search that comes among them
does not leave them; and where a structure chooses candidates, copies of one row take the places of all others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from embedserve.index.ranking import score_error

_CHUNK = 4096
"""Rows hashed or compared at a time."""
_SEED = 2718


@dataclass(frozen=True, slots=True, eq=False)
class Copies:
    """The rows that equal an earlier one.

    Args:
        heads: int64 [H], ascending: the first row of each vector that occurs more than once.
        ends: int64 [H]: where the copies of each head end in ``rows``.
        rows: int64 [C]: the other rows with that vector, head by head, ascending for each.
    """

    heads: NDArray[np.int64]
    ends: NDArray[np.int64]
    rows: NDArray[np.int64]

    @classmethod
    def of(cls, vectors: NDArray[np.float32]) -> Self:
        """Those among vectors [N, D]."""
        hashes = _hashes(vectors)
        order = np.argsort(hashes, kind="stable").astype(np.int64, copy=False)
        first = np.ones(len(order), np.bool_)
        first[1:] = hashes[order[1:]] != hashes[order[:-1]]
        head_of = order[np.flatnonzero(first)][np.cumsum(first) - 1]
        return cls.hanging(head_of[~first], order[~first], vectors)

    @classmethod
    def hanging(cls, heads: NDArray[np.int64], rows: NDArray[np.int64], vectors: NDArray[np.float32]) -> Self:
        """From pairs [P] of a head and a row, in any order; pairs that are not equal are left out."""
        equal = np.ones(len(rows), np.bool_)
        for start in range(0, len(rows), _CHUNK):
            some = slice(start, start + _CHUNK)
            equal[some] = (vectors[heads[some]] == vectors[rows[some]]).all(axis=1)
        heads, rows = heads[equal], rows[equal]
        order = np.lexsort((rows, heads))
        heads, rows = heads[order], rows[order]
        last = np.append(heads[1:] != heads[:-1], np.ones(min(len(heads), 1), np.bool_))
        ends = np.flatnonzero(last).astype(np.int64, copy=False) + 1
        return cls(heads[last], ends, rows)

    def __len__(self) -> int:
        """Number of rows that equal an earlier one."""
        return len(self.rows)

    def pairs(self) -> NDArray[np.int64]:
        """Head and row of each copy: int64 [C, 2]."""
        return np.stack([np.repeat(self.heads, np.diff(self.ends, prepend=0)), self.rows], axis=1)

    def distinct(self, count: int) -> NDArray[np.int64]:
        """Of ``count`` rows those that equal no earlier one: int64 [U], ascending."""
        mask = np.ones(count, np.bool_)
        mask[self.rows] = False
        return np.flatnonzero(mask).astype(np.int64, copy=False)

    def expanded(
        self, positions: NDArray[np.int64], scores: NDArray[np.float32], k: int | None, dimension: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Found rows with their copies.

        Args:
            positions: int64 [Q, C], none of them a copy; −1 where there are fewer.
            scores: float32 [Q, C], −inf where there are fewer.
            k: leave out what comes after the best k rows and does not tie with the last of them; None: nothing.
            dimension: D; the error of a score grows with it.

        Returns:
            The same for rows, with as many columns as the longest answer needs.
        """
        if not len(self):
            return positions, scores
        places = np.minimum(np.searchsorted(self.heads, positions), len(self.heads) - 1)
        ends = np.where(self.heads[places] == positions, self.ends[places], 0)
        starts = np.where((ends > 0) & (places > 0), self.ends[places - 1], 0)
        sizes = np.where(positions < 0, 0, 1 + ends - starts)
        if k is not None:
            order = np.argsort(-scores, axis=1, kind="stable")
            enough = np.cumsum(np.take_along_axis(sizes, order, 1), axis=1) >= k
            last = np.where(enough.any(axis=1), enough.argmax(axis=1), positions.shape[1] - 1)
            lowest = np.take_along_axis(np.take_along_axis(scores, order, 1), last[:, None], 1)
            sizes[scores < lowest - score_error(dimension)] = 0
        of_query = sizes.sum(axis=1)
        # One long list of all queries' rows: each found row, then its copies, which lie behind each other in ``rows``.
        flat = sizes.ravel()
        before = np.cumsum(flat) - flat
        step = np.arange(int(flat.sum())) - np.repeat(before, flat)
        listed = np.repeat(positions.ravel(), flat)
        copies = step > 0
        listed[copies] = self.rows[np.repeat(starts.ravel(), flat)[copies] + step[copies] - 1]
        width = int(of_query.max(initial=0))
        filled = np.arange(width) < of_query[:, None]
        found = np.full((len(positions), width), -1, np.int64)
        found_scores = np.full((len(positions), width), -np.inf, np.float32)
        found[filled], found_scores[filled] = listed, np.repeat(scores.ravel(), flat)
        return found, found_scores


_NONE = np.empty(0, np.int64)
NO_COPIES = Copies(_NONE, _NONE, _NONE)


def _hashes(vectors: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Equal numbers for equal vectors [N, D], and nearly always others for others: uint64 [N]."""
    factors = np.random.default_rng(_SEED).integers(1 << 63, size=vectors.shape[1], dtype=np.uint64) | np.uint64(1)
    hashes = np.empty(len(vectors), np.uint64)
    for start in range(0, len(vectors), _CHUNK):
        some = vectors[start : start + _CHUNK] + np.float32(0)  # −0 equals 0
        hashes[start : start + _CHUNK] = (some.view(np.uint32) * factors).sum(axis=1)
    return hashes
