"""A sealed segment: a FAISS index that is filled once and then only searched.

FAISS crashes or lies when an index changes while it is searched, so removing a row only clears its bit; the row
itself goes when segments are merged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import faiss
import numpy as np
from numpy.typing import NDArray

from embedserve.index.kernels import bitmap_selector, flat_index
from embedserve.index.rows import Candidates, Rows

Batch = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Row numbers int64 [n], ascending, and their vectors float32 [n, D]."""

_EVERYTHING = 4
"""From k ≥ live/4 on, scoring every row is cheaper than FAISS' heap of k."""


@dataclass(frozen=True, slots=True, eq=False)
class Segment(Rows):
    """Rows that FAISS holds; ``vectors`` is a view of its memory."""

    flat: faiss.IndexFlatIP

    @classmethod
    def filled(cls, count: int, dimension: int, batches: Iterable[Batch]) -> Self:
        """A segment of exactly ``count`` rows.

        Raises:
            ValueError: the batches hold more or fewer rows.
        """
        flat, vectors = flat_index(count, dimension)
        rids = np.empty(count, np.int64)
        filled = 0
        for batch_rids, batch_vectors in batches:
            end = filled + len(batch_rids)
            if end > count:
                raise ValueError(f"more than the {count} rows that were announced")
            rids[filled:end] = batch_rids
            vectors[filled:end] = batch_vectors
            filled = end
        if filled != count:
            raise ValueError(f"{filled} rows; {count} were announced")
        vectors.flags.writeable = False
        return cls(vectors, rids, None, count, flat)

    @classmethod
    def merged(cls, parts: Sequence[Rows], dimension: int) -> Self:
        """One segment of the live rows of several, which follow each other."""
        return cls.filled(sum(part.live for part in parts), dimension, (part.live_rows() for part in parts))

    def nearest(self, queries: NDArray[np.float32], k: int) -> list[Candidates]:
        """For each of the queries [Q, D] the k closest live rows, or all if there are fewer."""
        if k * _EVERYTHING >= self.live:
            return [self.all_live(query) for query in queries]
        parameters = None
        if self.live_bits is not None and self.live < len(self):
            parameters = faiss.SearchParameters()
            # Held in a variable: FAISS keeps the address of the bits and of the selector only.
            selector = bitmap_selector(self.live_bits)
            parameters.sel = selector
        scores, positions = self.flat.search(queries, k, params=parameters)
        return [Candidates(positions[row], scores[row], complete=False) for row in range(len(queries))]
