"""The order of hits: scores that do not depend on how a row was found, and where the best k end.

FAISS' float32 scores differ in the last digits with the kernel and the position of a row, so two equal vectors may get
different scores. Here they only choose candidates, whose final scores are computed in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedserve.wanted import ALWAYS, Wanted

DIGITS = 6
"""Decimals of a score; float32 vectors carry no more."""

_NUMBERS = 1 << 19
"""Numbers converted to float64 at a time; 4 MiB stay in the cache."""


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """The best rows for one query, best first; equal scores in the order of row numbers."""

    rids: NDArray[np.int64]
    """int64 [M]."""
    scores: NDArray[np.float64]
    """float64 [M] in [−1, 1], rounded to 1e-6, descending."""
    parts: NDArray[np.int64]
    """int64 [M]: the part of the snapshot that holds each row."""
    positions: NDArray[np.int64]
    """int64 [M]: its position in that part."""

    def at(self, places: NDArray[np.int64] | slice) -> Ranking:
        """Some of its rows, which keep their order."""
        return Ranking(self.rids[places], self.scores[places], self.parts[places], self.positions[places])


def exact_scores(
    queries: NDArray[np.float32],
    of_query: NDArray[np.int64],
    vectors: NDArray[np.float32],
    places: NDArray[np.int64],
    wanted: Wanted = ALWAYS,
) -> NDArray[np.float64]:
    """Cosines of pairs of queries [Q, D] and vectors [N, D], all of unit norm, clipped to [−1, 1] and rounded.

    Equal vectors get equal scores: each pair is summed separately, in the same order.

    Args:
        queries: float32 [Q, D].
        of_query: int64 [M], ascending: the query of each pair.
        vectors: float32 [N, D].
        places: int64 [M]: the row of ``vectors`` of each pair.
        wanted: asked now and then.

    Returns:
        float64 [M].
    """
    dimension = queries.shape[1]
    scores = np.empty(len(places), np.float64)
    wide = queries.astype(np.float64)
    step = max(_NUMBERS // dimension, 1)
    for start in range(0, len(places), step):
        if start:
            wanted.check()
        batch = slice(start, start + step)
        products = vectors[places[batch]].astype(np.float64)
        products *= wide[of_query[batch]]
        products.sum(axis=1, out=scores[batch])
    # np.clip and np.round, without their overhead for ten numbers.
    np.minimum(scores, 1.0, out=scores)
    np.maximum(scores, -1.0, out=scores)
    scores *= 10.0**DIGITS
    np.rint(scores, out=scores)
    scores /= 10.0**DIGITS
    scores += 0.0  # turns −0.0 into 0.0
    return scores


def score_error(dimension: int) -> float:
    """By how much two float32 scores may differ although their rounded scores are equal or in the opposite order.

    The error of a float32 inner product of unit vectors is at most n·u (Higham, Accuracy and Stability, §3.1), with
    u = 2⁻²⁴ and n = D/4 + 8 additions in a row, since the kernels sum in at least four lanes. It counts twice: for the
    k-th score and for the row that is compared with it.
    """
    return 2 * (dimension / 4 + 8) * 2.0**-24 + 10.0**-DIGITS


def cutoff_scores(scores: NDArray[np.float32], k: int, dimension: int) -> NDArray[np.float64]:
    """The score below which no row can be among the best k of a query or tie with the last of them: float64 [Q].

    Args:
        scores: float32 [Q, C], including those of the best k rows; −inf where there are fewer.
        k: at least 1.
        dimension: D; the rounding error of an inner product grows with it.
    """
    if scores.shape[1] <= k:
        return np.full(len(scores), -np.inf)
    last = np.partition(scores, scores.shape[1] - k, axis=1)[:, scores.shape[1] - k].astype(np.float64)
    return last - score_error(dimension)


def rank(
    count: int,
    of_query: NDArray[np.int64],
    rids: NDArray[np.int64],
    scores: NDArray[np.float64],
    parts: NDArray[np.int64],
    positions: NDArray[np.int64],
    k: int,
) -> list[Ranking]:
    """The best k rows of each of ``count`` queries and all that tie with the last; all arrays are [M]."""
    order = np.lexsort((rids, -scores, of_query))
    of_query, rids, parts, positions = (numbers[order] for numbers in (of_query, rids, parts, positions))
    scores = scores[order]
    bounds = np.searchsorted(of_query, np.arange(count + 1))
    rankings = []
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        if end - start > k:
            # searchsorted needs ascending values, so the descending scores are negated.
            descending = scores[start:end]
            end = start + int(np.searchsorted(-descending, -descending[k - 1], side="right"))
        of_one = slice(start, end)
        rankings.append(Ranking(rids[of_one], scores[of_one], parts[of_one], positions[of_one]))
    return rankings
