"""Everything in an index at one moment: sealed segments, the delta, and which of their rows are dead.

A snapshot never changes. A reader takes one and keeps it for the whole search; a writer makes the next one beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from embedserve.index.delta import Delta
from embedserve.index.kernels import single_threaded
from embedserve.index.ranking import Ranking, exact_scores, lowest_candidate, ranked
from embedserve.index.segment import Segment

if TYPE_CHECKING:
    from embedserve.index.rows import Candidates, Rows

_SPARE = 8
"""Candidates beyond k from each segment, so that its last one is nearly always clear of the k-th score."""


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """The rows after the write with sequence number ``seq``."""

    seq: int
    dimension: int
    segments: tuple[Segment, ...]
    """Oldest first; row numbers ascend from each to the next."""
    delta: Delta

    @property
    def items(self) -> int:
        """Live rows."""
        return sum(part.live for part in self._parts())

    def changed(
        self, seq: int, *, removed: NDArray[np.int64], rids: NDArray[np.int64], vectors: NDArray[np.float32]
    ) -> Snapshot:
        """After a write that removed some rows and then added others.

        Args:
            seq: sequence number of the write.
            removed: int64 [R], in any order.
            rids: int64 [N], ascending, above all that were ever there.
            vectors: float32 [N, D], unit norm.
        """
        removed = np.sort(removed)
        segments = tuple(segment.without(removed) for segment in self.segments)
        delta = self.delta.without(removed)
        if delta.fits(len(rids)):
            delta = delta.appended(rids, vectors)
        else:
            rest = Segment.filled(len(rids), self.dimension, [(rids, vectors)])
            segments = (*segments, Segment.merged([delta, rest], self.dimension) if delta.live else rest)
            delta = Delta.empty(self.dimension)
        return Snapshot(seq, self.dimension, settled(segments, self.dimension), delta)

    def nearest(self, queries: NDArray[np.float32], k: int, *, among: NDArray[np.int64] | None = None) -> list[Ranking]:
        """For each query the best k rows and all that tie with the last of them.

        Args:
            queries: float32 [Q, D], unit norm.
            k: at least 1.
            among: int64 [M], ascending: live rows to choose from; None for all.
        """
        if queries.ndim != 2 or queries.shape[1] != self.dimension:
            # FAISS would read beyond the query's end.
            raise ValueError(f"queries of shape {queries.shape} for vectors of {self.dimension}")
        single_threaded()
        queries = np.ascontiguousarray(queries, np.float32)
        parts = self._parts()
        if among is None:
            found = [part.nearest(queries, k + _SPARE) for part in parts]
        else:
            chosen = [part.positions_of(among) for part in parts]
        rankings = []
        for row, query in enumerate(queries):
            if among is None:
                candidates = [of_part[row] for of_part in found]
            else:
                candidates = [part.at(query, positions) for part, positions in zip(parts, chosen, strict=True)]
            rankings.append(self._best(query, parts, candidates, k))
        return rankings

    def _parts(self) -> tuple[Rows, ...]:
        return (*self.segments, self.delta)

    def _best(
        self, query: NDArray[np.float32], parts: tuple[Rows, ...], candidates: list[Candidates], k: int
    ) -> Ranking:
        lowest = lowest_candidate(np.concatenate([each.scores for each in candidates]), k, self.dimension)
        rids, scores = [], []
        for part, found in zip(parts, candidates, strict=True):
            if not found.complete and found.scores[-1] >= lowest:
                # A tie reaches beyond what FAISS was asked for.
                found = part.all_live(query)
            positions = found.positions[found.scores >= lowest]
            rids.append(part.rids[positions])
            scores.append(exact_scores(query, part.vectors[positions]))
        return ranked(np.concatenate(rids), np.concatenate(scores), k)


def settled(segments: tuple[Segment, ...], dimension: int) -> tuple[Segment, ...]:
    """The same live rows in segments that each are more than twice as large as the next, none mostly dead.

    So N rows lie in O(log N) segments, and a row is copied O(log N) times in its life.
    """
    settling = [
        Segment.merged([segment], dimension) if segment.live * 2 < len(segment) else segment
        for segment in segments
        if segment.live
    ]
    while True:
        for place, (older, newer) in enumerate(pairwise(settling)):
            if len(older) <= 2 * len(newer):
                settling[place : place + 2] = [Segment.merged([older, newer], dimension)]
                break
        else:
            return tuple(settling)
