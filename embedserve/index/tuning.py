"""Which ef or nprobe a structure needs for a recall: measured on its own rows when it is built.

recall@10 is the mean share of ten found rows that are as near as the tenth nearest of exact search: any of several
equal rows counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedserve.index import kernels
from embedserve.index.copies import NO_COPIES, Copies
from embedserve.index.ranking import score_error
from embedserve.index.structures import TUNED_K, Stopped, Structure
from embedserve.index.synthetic import best_scores, kinds
from embedserve.types import DEFAULT_TARGET_RECALL

K = TUNED_K
ENOUGH = 0.999
"""Higher values are not tried once this recall is reached."""
_TO_SPARE = 0.3
"""Margin, as a share of the allowed misses. 200 synthetic queries predict the recall of others to about 0.01: where
they found 0.962 with the chosen ef, 1,000 held-out queries found 0.958, and the first 200 of these 0.940."""
_HARDER = 4
_EASY = 32


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """The recall of one value of ef or nprobe."""

    param: int
    """ef of HNSW, nprobe of IVF."""
    recall: float
    """recall@10, in [0, 1]; of the kind of query for which it is lowest."""


def operating_points(
    structure: Structure, vectors: NDArray[np.float32], stopped: Callable[[], bool], copies: Copies = NO_COPIES
) -> tuple[OperatingPoint, ...]:
    """The recall of ascending values of ef or nprobe over vectors [N, D], until it reaches ENOUGH.

    Raises:
        Stopped: ``stopped`` returned true.
    """
    made = kinds(vectors, stopped=stopped)
    k, dimension = min(K, len(vectors)), vectors.shape[1]
    best = [best_scores(queries, vectors, k, stopped) for queries in made]
    points = []
    for param in structure.param_values:
        recalls = []
        for queries, nearest in zip(made, best, strict=True):
            found = _found_scores(structure, queries, k, param, copies, len(vectors), stopped)
            recalls.append(recall(found, nearest, dimension))
        points.append(OperatingPoint(param, min(recalls)))
        if points[-1].recall >= ENOUGH:
            break
    return tuple(points)


def unreachable_rows(
    structure: Structure,
    vectors: NDArray[np.float32],
    points: Sequence[OperatingPoint],
    stopped: Callable[[], bool],
    copies: Copies = NO_COPIES,
) -> NDArray[np.int64]:
    """Positions in vectors [N, D] of rows that even a search for their own vectors does not find: int64 [U], ascending.
    Copies are found with the row that they equal.

    A graph links a row to its neighbours, but these keep other links once they have enough, and a row that no other
    links to is never visited. Of 40,000 rows there were 5 with m=16, 1 with m=32.

    Raises:
        Stopped: ``stopped`` returned true.
    """
    missing = copies.distinct(len(vectors))
    usual = param_for(points, DEFAULT_TARGET_RECALL)
    # Nearly all are found with a low value, so only the rest is searched for with a higher one.
    for param in (min(usual, _EASY), usual, own_vector_param(points)):
        missed = [missing[:0]]
        step = kernels.queries_of_step(param, 1, *vectors.shape)
        for start in range(0, len(missing), step):
            if stopped():
                raise Stopped
            some = missing[start : start + step]
            queries = vectors[some]
            positions, scores = structure.search(queries, 1, param)
            # Finding an equal row counts too.
            lowest = (queries * queries).sum(axis=1) - score_error(vectors.shape[1])
            missed.append(some[(positions[:, 0] != some) & (scores[:, 0] < lowest)])
        missing = np.concatenate(missed)
    return missing


def own_vector_param(points: Sequence[OperatingPoint]) -> int:
    """The ef or nprobe with which every row is found by its own vector, unless it is known to be unreachable."""
    return _HARDER * param_for(points, DEFAULT_TARGET_RECALL)


def param_for(points: Sequence[OperatingPoint], target_recall: float) -> int:
    """The smallest ef or nprobe that reaches a recall with a margin; where none does, the largest that was tried."""
    wanted = min(target_recall + _TO_SPARE * (1 - target_recall), ENOUGH)
    return next((point.param for point in points if point.recall >= wanted), points[-1].param)


def _found_scores(
    structure: Structure,
    queries: NDArray[np.float32],
    k: int,
    param: int,
    copies: Copies,
    rows: int,
    stopped: Callable[[], bool],
) -> NDArray[np.float32]:
    """Scores of the k rows that a search of N rows finds, copies included, in any order: float32 [Q, k]."""
    step = kernels.queries_of_step(param, k, rows, queries.shape[1])
    found = []
    for start in range(0, len(queries), step):
        if stopped():
            raise Stopped
        found.append(structure.search(queries[start : start + step], k, param))
    positions, scores = map(np.concatenate, zip(*found, strict=True))
    if not len(copies):
        return scores
    scores = copies.expanded(positions, scores, k, queries.shape[1])[1]
    wide = np.pad(scores, ((0, 0), (0, max(k - scores.shape[1], 0))), constant_values=-np.inf)
    best: NDArray[np.float32] = np.partition(wide, wide.shape[1] - k, axis=1)[:, wide.shape[1] - k :]
    return best


def recall(found: NDArray[np.float32], best: NDArray[np.float32], dimension: int) -> float:
    """Mean share of K found rows that are as near as the K-th nearest.

    Args:
        found: scores of the found rows, float32 [Q, K], −inf where there are fewer.
        best: scores of the nearest rows, float32 [Q, K], descending.
        dimension: D; the error of a score grows with it.
    """
    return float((found >= best[:, -1:] - score_error(dimension)).mean())
