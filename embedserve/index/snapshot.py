"""Everything in an index at one moment: sealed segments, rows that wait to be sealed, and which of them are dead.

A snapshot never changes. A reader takes one and keeps it for the whole search; a writer makes the next one beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from embedserve.index import kernels
from embedserve.index.delta import Delta
from embedserve.index.ranking import Ranking, exact_scores, lowest_candidates, ranked
from embedserve.index.rows import Found, Frozen, Rows
from embedserve.index.search_params import EXACT, SearchParams
from embedserve.index.segment import Segment


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """The rows after the write with sequence number ``seq``."""

    seq: int
    dimension: int
    fixed: tuple[Rows, ...]
    """Segments, and parts in memory that wait to become some; row numbers ascend from each to the next."""
    delta: Delta
    """The newest rows."""

    @classmethod
    def of(cls, seq: int, dimension: int, fixed: Sequence[Rows]) -> Snapshot:
        """With nothing in the delta."""
        waiting = sum(len(part) for part in fixed if not isinstance(part, Segment))
        return cls(seq, dimension, tuple(fixed), Delta.empty(dimension, waiting))

    @property
    def parts(self) -> tuple[Rows, ...]:
        """All of them, in the order of their row numbers."""
        return (*self.fixed, self.delta)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Those that are sealed."""
        return tuple(part for part in self.fixed if isinstance(part, Segment))

    @property
    def items(self) -> int:
        """Live rows."""
        return sum(part.live for part in self.parts)

    @property
    def unsealed(self) -> int:
        """Live rows that are in no segment."""
        return self.items - sum(segment.live for segment in self.segments)

    @property
    def dead(self) -> int:
        """Rows whose items are gone."""
        return sum(part.dead for part in self.parts)

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
        """After a write that removed some rows and then added others. Copies no vectors but the new ones.

        Args:
            seq: sequence number of the write.
            removed: int64 [R], in any order.
            rids: int64 [N], ascending, above all that were ever there.
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
            fixed = (*fixed, Frozen.of(vectors, rids, list(ids), None, len(rids)))
        return Snapshot(seq, self.dimension, fixed, delta)

    def with_delta_frozen(self) -> Snapshot:
        """The same rows, those of the delta as a part that can be sealed."""
        if not len(self.delta):
            return self
        return Snapshot.of(self.seq, self.dimension, (*self.fixed, self.delta.frozen()))

    def replaced(self, parts: Sequence[Rows], segment: Segment | None) -> Snapshot | None:
        """With one segment in the place of neighbouring fixed parts, from whose live rows it was built some time ago.

        Rows that died since are dead in it too. ``parts`` are as they were then; None if they are not here any more.
        """
        here = {id(part.rids): part for part in self.fixed}  # changes keep the arrays of a part
        old = [here.get(id(part.rids)) for part in parts]
        places = [number for number, part in enumerate(self.fixed) if any(part is found for found in old)]
        if not places:
            return None
        # A part in memory that is not here any more has lost all its rows.
        gone = [part.rids if found is None else found.dead_rids() for part, found in zip(parts, old, strict=True)]
        new = () if segment is None else (segment.without(np.concatenate(gone)),)
        return replace(self, fixed=(*self.fixed[: places[0]], *new, *self.fixed[places[-1] + 1 :]))

    # --- Search ---------------------------------------------------------------------

    def nearest(
        self,
        queries: NDArray[np.float32],
        k: int,
        *,
        effort: SearchParams = EXACT,
        among: Sequence[NDArray[np.bool_]] | None = None,
    ) -> list[Ranking]:
        """For each query about the best k rows; with ``EXACT`` just these, and all that tie with the last of them.

        Args:
            queries: float32 [Q, D], unit norm.
            k: at least 1.
            effort: how hard to try.
            among: for each part bool [N]: the live rows to choose from; None for all.

        Returns:
            For each query at least k rows if there are as many, never a row twice.
        """
        if queries.ndim != 2 or queries.shape[1] != self.dimension:
            # FAISS would read beyond the query's end.
            raise ValueError(f"queries of shape {queries.shape} for vectors of {self.dimension}")
        kernels.use_threads(1)
        queries = np.ascontiguousarray(queries, np.float32)
        searched: list[tuple[int, Found]] = []
        for number, part in enumerate(self.parts):
            chosen = None if among is None else among[number]
            if part.live if chosen is None else chosen.any():
                searched.append((number, part.nearest(queries, k, effort, chosen)))
        if not searched:
            nothing = np.empty(0, np.int64)
            return ranked(len(queries), nothing, nothing, np.empty(0), nothing, nothing, k)
        lowest = lowest_candidates(np.concatenate([found.scores for _, found in searched], axis=1), k, self.dimension)
        gathered = []
        for number, found in searched:
            part = self.parts[number]
            of_query, positions = _reaching(found, part, queries, lowest)
            scores = exact_scores(queries, of_query, part.vectors, positions)
            gathered.append((of_query, part.rids[positions], scores, np.full(len(positions), number), positions))
        of_query, rids, scores, numbers, positions = (np.concatenate(column) for column in zip(*gathered, strict=True))
        return ranked(len(queries), of_query, rids, scores, numbers, positions, k)

    def vector_at(self, ranking: Ranking, place: int) -> NDArray[np.float32]:
        """The vector of a row of a ranking: float32 [D], a copy."""
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


def _reaching(
    found: Found, part: Rows, queries: NDArray[np.float32], lowest: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of query and position, int64 [M] each, of all candidates that reach the lowest score for their query."""
    reach = (found.positions >= 0) & (found.scores >= lowest[:, None])
    # Where even the last one does, a tie reaches beyond what FAISS was asked for.
    beyond = [] if found.complete else np.flatnonzero(reach[:, -1]).tolist()
    reach[beyond] = False
    of_query, places = np.nonzero(reach)
    pairs = [(of_query, found.positions[of_query, places])]
    for row in beyond:
        positions = part.all_that_reach(queries[row], float(lowest[row]))
        pairs.append((np.full(len(positions), row), positions))
    return np.concatenate([pair[0] for pair in pairs]), np.concatenate([pair[1] for pair in pairs])
