"""Everything in an index at one moment: segments, deltas that wait to be sealed, and which of their rows are deleted.

A snapshot never changes. A reader takes one and keeps it for the whole search; a writer meanwhile builds the next one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from embedserve.index import kernels
from embedserve.index.delta import Delta, FrozenDelta
from embedserve.index.ranking import Ranking, cutoff_scores, exact_scores, rank
from embedserve.index.rows import Candidates, Rows
from embedserve.index.search_params import EXACT, SearchParams
from embedserve.index.segment import Segment
from embedserve.wanted import ALWAYS, Wanted

_MOST_RANKED = 1 << 13
"""Candidates that are ranked at a time, of all queries together: with their ids, some 5 ms."""


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """The rows after the write with sequence number ``seq``.

    Its parts are segments, frozen deltas and, last, the delta; row numbers ascend from each part to the next.
    """

    seq: int
    dimension: int
    fixed: tuple[Rows, ...]
    """The parts that nothing is appended to: segments and frozen deltas."""
    delta: Delta
    """The newest rows."""

    @classmethod
    def of(cls, seq: int, dimension: int, fixed: Sequence[Rows]) -> Snapshot:
        """With an empty delta."""
        waiting = sum(len(part) for part in fixed if not isinstance(part, Segment))
        return cls(seq, dimension, tuple(fixed), Delta.empty(dimension, waiting))

    @property
    def parts(self) -> tuple[Rows, ...]:
        """All parts, oldest rows first."""
        return (*self.fixed, self.delta)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The parts that are sealed, oldest rows first."""
        return tuple(part for part in self.fixed if isinstance(part, Segment))

    @property
    def items(self) -> int:
        """Number of live rows."""
        return sum(part.live for part in self.parts)

    @property
    def unsealed(self) -> int:
        """Number of live rows that no segment holds."""
        return self.items - sum(segment.live for segment in self.segments)

    @property
    def deleted(self) -> int:
        """Number of rows whose items were deleted or replaced."""
        return sum(part.deleted for part in self.parts)

    @property
    def is_approximate(self) -> bool:
        """Whether a segment has a structure for approximate search."""
        return any(segment.structure is not None for segment in self.segments)

    # --- Changes --------------------------------------------------------------------

    def changed(
        self,
        seq: int,
        *,
        removed: NDArray[np.int64],
        rids: NDArray[np.int64],
        ids: Sequence[bytes],
        vectors: NDArray[np.float32],
    ) -> Snapshot:
        """The snapshot after a write that deleted some rows and then added others. Copies only the new vectors.

        Args:
            seq: sequence number of the write.
            removed: int64 [R], in any order.
            rids: int64 [N], ascending, above all row numbers ever used.
            ids: N ids in UTF-8.
            vectors: float32 [N, D], unit norm.
        """
        removed = np.sort(removed)
        fixed = tuple(part.without(removed) for part in self.fixed) if len(removed) else self.fixed
        fixed = tuple(part for part in fixed if part.live or isinstance(part, Segment))
        delta = self.delta.without(removed) if len(removed) else self.delta
        if not delta.fits(len(rids)):
            fixed = (*fixed, delta.frozen()) if delta.live else fixed
            delta = Delta.empty(self.dimension, sum(len(part) for part in fixed if not isinstance(part, Segment)))
        if delta.fits(len(rids)):
            delta = delta.appended(rids, ids, vectors)
        else:
            fixed = (*fixed, FrozenDelta.of(vectors, rids, list(ids), None, len(rids)))
        return Snapshot(seq, self.dimension, fixed, delta)

    def with_delta_frozen(self) -> Snapshot:
        """The same rows, with those of the delta in a frozen one, which can be sealed."""
        if not len(self.delta):
            return self
        return Snapshot.of(self.seq, self.dimension, (*self.fixed, self.delta.frozen()))

    def replaced(self, parts: Sequence[Rows], segment: Segment | None) -> Snapshot | None:
        """With a segment in place of the neighbouring fixed parts from whose live rows it was built some time ago.

        Rows deleted since then are deleted in it too.

        Args:
            parts: as they were when the build began.
            segment: what was built; None if no row was live.

        Returns:
            None if none of the parts is here any more.
        """
        here = {id(part.rids): part for part in self.fixed}  # changes keep the arrays of a part
        old = [here.get(id(part.rids)) for part in parts]
        places = [number for number, part in enumerate(self.fixed) if any(part is found for found in old)]
        if not places:
            return None
        # All rows of a frozen delta that is not here any more were deleted.
        gone = [part.rids if found is None else found.deleted_rids() for part, found in zip(parts, old, strict=True)]
        new = () if segment is None else (segment.without(np.concatenate(gone)),)
        return replace(self, fixed=(*self.fixed[: places[0]], *new, *self.fixed[places[-1] + 1 :]))

    def with_tuning(self, segment: Segment) -> Snapshot:
        """With the search parameters of a segment that is like one of these, which may have lost rows since."""
        fixed = tuple(
            replace(part, points=segment.points, tuning=segment.tuning)
            if isinstance(part, Segment) and part.uid == segment.uid
            else part
            for part in self.fixed
        )
        return replace(self, fixed=fixed)

    # --- Search ---------------------------------------------------------------------

    def nearest(
        self,
        queries: NDArray[np.float32],
        k: int,
        *,
        params: SearchParams = EXACT,
        among: Sequence[NDArray[np.bool_]] | None = None,
        wanted: Wanted = ALWAYS,
    ) -> list[Ranking]:
        """About the best k rows of each query; with ``EXACT`` exactly these, and all that tie with the last of them.

        Args:
            queries: float32 [Q, D], unit norm.
            k: at least 1.
            params: how much approximate search examines.
            among: for each part bool [N], the live rows to choose from; None for all.
            wanted: asked before every step of the work; see ``kernels.step_of``.

        Returns:
            For each query at least k rows if there are k, no row twice.
        """
        some = self.nearest_of_some(queries, k, params=params, among=among, wanted=wanted)
        return [ranking for rankings in some for ranking in rankings]

    def nearest_of_some(
        self,
        queries: NDArray[np.float32],
        k: int,
        *,
        params: SearchParams = EXACT,
        among: Sequence[NDArray[np.bool_]] | None = None,
        wanted: Wanted = ALWAYS,
    ) -> Iterator[list[Ranking]]:
        """The same for some queries after the other, so that their rows need not be in memory together.

        A query has many if a million rows tie with the last one.
        """
        if queries.ndim != 2 or queries.shape[1] != self.dimension:
            # FAISS would read past the end of the query.
            raise ValueError(f"queries of shape {queries.shape} for vectors of {self.dimension}")
        kernels.use_threads(1)
        queries = np.ascontiguousarray(queries, np.float32)
        searched: list[tuple[int, Candidates]] = []
        for number, part in enumerate(self.parts):
            chosen = None if among is None else among[number]
            if part.live if chosen is None else chosen.any():
                searched.append((number, part.nearest(queries, k, params, chosen, wanted)))
        if not searched:
            nothing = np.empty(0, np.int64)
            yield rank(len(queries), nothing, nothing, np.empty(0), nothing, nothing, k)
            return
        cutoffs = cutoff_scores(np.concatenate([found.scores for _, found in searched], axis=1), k, self.dimension)
        if len(queries) == 1:
            yield self._ranked(searched, queries, cutoffs, k, wanted)
            return
        for some in _together(searched, cutoffs):
            wanted.check()
            of_some = [(number, found.of_queries(some)) for number, found in searched]
            yield self._ranked(of_some, queries[some], cutoffs[some], k, wanted)

    def _ranked(
        self,
        searched: Sequence[tuple[int, Candidates]],
        queries: NDArray[np.float32],
        cutoffs: NDArray[np.float64],
        k: int,
        wanted: Wanted,
    ) -> list[Ranking]:
        """The best of the candidates in each part, by their exact scores."""
        gathered = []
        for number, found in searched:
            part = self.parts[number]
            of_query, positions = _above_cutoff(found, part, queries, cutoffs, wanted)
            scores = exact_scores(queries, of_query, part.vectors, positions, wanted)
            gathered.append((of_query, part.rids[positions], scores, np.full(len(positions), number), positions))
        of_query, rids, scores, numbers, positions = (np.concatenate(column) for column in zip(*gathered, strict=True))
        return rank(len(queries), of_query, rids, scores, numbers, positions, k)

    def vector_at(self, ranking: Ranking, place: int) -> NDArray[np.float32]:
        """The vector of the row at ``place`` in a ranking: float32 [D], a copy."""
        vector: NDArray[np.float32] = self.parts[int(ranking.parts[place])].vectors[int(ranking.positions[place])]
        return vector.copy()

    def ids_of(self, rankings: Sequence[Ranking]) -> list[list[bytes]]:
        """The ids of the rows of each ranking, in UTF-8."""
        parts = np.concatenate([ranking.parts for ranking in rankings])
        positions = np.concatenate([ranking.positions for ranking in rankings])
        ids = np.empty(len(parts), object)
        for number, part in enumerate(self.parts):
            places = np.flatnonzero(parts == number)
            if len(places):
                ids[places] = part.ids_at(positions[places])
        listed, start, of_rankings = ids.tolist(), 0, []
        for ranking in rankings:
            of_rankings.append(listed[start : start + len(ranking.rids)])
            start += len(ranking.rids)
        return of_rankings


def _together(searched: Sequence[tuple[int, Candidates]], cutoffs: NDArray[np.float64]) -> Iterator[slice]:
    """Which queries, one after the other, are ranked together."""
    width = sum(found.scores.shape[1] for _, found in searched)
    some = max(_MOST_RANKED // max(width, 1), 1)
    if any(not found.complete and (found.scores[:, -1] >= cutoffs).any() for _, found in searched):
        some = 1  # a tie extends beyond these candidates, to who knows how many rows
    return (slice(start, start + some) for start in range(0, len(cutoffs), some))


def _above_cutoff(
    found: Candidates,
    part: Rows,
    queries: NDArray[np.float32],
    cutoffs: NDArray[np.float64],
    wanted: Wanted,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Query and position, int64 [M] each, of all candidates whose score is not below the cutoff of their query."""
    kept = (found.positions >= 0) & (found.scores >= cutoffs[:, None])
    # Where even the last one is kept, a tie may extend beyond what FAISS was asked for.
    beyond = [] if found.complete else np.flatnonzero(kept[:, -1]).tolist()
    kept[beyond] = False
    of_query, places = np.nonzero(kept)
    pairs = [(of_query, found.positions[of_query, places])]
    for row in beyond:
        positions = part.range_search(queries[row], float(cutoffs[row]), wanted)
        pairs.append((np.full(len(positions), row), positions))
    return np.concatenate([pair[0] for pair in pairs]), np.concatenate([pair[1] for pair in pairs])
