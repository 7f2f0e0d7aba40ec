"""The order of hits: scores that do not depend on how they were found, and where the best k end.

FAISS' float32 scores differ in the last digits with the kernel and the place of a row, so two equal vectors may get
different ones. They only choose candidates here; the scores that count are computed again in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DIGITS = 6
"""Decimals of a score; beyond them float32 vectors say nothing."""

_ROWS = 2048
"""Rows scored at a time, which bounds the float64 copy of them."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """The best rows for one query, best first; equal scores in the order of row numbers."""

    rids: NDArray[np.int64]
    """int64 [M]."""
    scores: NDArray[np.float64]
    """float64 [M] in [−1, 1], rounded to 1e-6, falling."""


def exact_scores(query: NDArray[np.float32], vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosine of query [D] with vectors [M, D], all of unit norm, clipped to [−1, 1] and rounded: float64 [M].

    Equal vectors get equal scores: each row is summed by itself, in the same order.
    """
    wide = query.astype(np.float64)
    scores = np.empty(len(vectors), np.float64)
    for start in range(0, len(vectors), _ROWS):
        products = vectors[start : start + _ROWS].astype(np.float64)
        products *= wide
        scores[start : start + _ROWS] = products.sum(axis=1)
    np.clip(scores, -1.0, 1.0, out=scores)
    np.round(scores, DIGITS, out=scores)
    scores += 0.0  # turns −0.0 into 0.0
    return scores


def lowest_candidate(scores: NDArray[np.float32], k: int, dimension: int) -> float:
    """The approximate score below which no row can be among the best k or tie with the last of them.

    Args:
        scores: float32 [M], approximate, the best k rows' among them.
        k: at least 1.
        dimension: D; the rounding error of an inner product grows with it.

    The error of a float32 inner product of unit vectors is at most n·u (Higham, Accuracy and Stability, §3.1), with
    u = 2⁻²⁴ and n = D/4 + 8 additions in a row, since the kernels sum in at least four lanes. It counts twice: once
    for the k-th score and once for the row that is compared with it.
    """
    if len(scores) <= k:
        return -np.inf
    last = float(np.partition(scores, len(scores) - k)[len(scores) - k])
    error = (dimension / 4 + 8) * 2.0**-24
    return last - 2 * error - 10.0**-DIGITS


def ranked(rids: NDArray[np.int64], scores: NDArray[np.float64], k: int) -> Ranking:
    """The best k rows and all that tie with the last of them."""
    order = np.lexsort((rids, -scores))
    rids, scores = rids[order], scores[order]
    if len(scores) > k:
        # scores fall, so their negatives rise as searchsorted wants them.
        end = int(np.searchsorted(-scores, -scores[k - 1], side="right"))
        rids, scores = rids[:end], scores[:end]
    return Ranking(rids, scores)
