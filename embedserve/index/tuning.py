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
from embedserve.index.ranking import score_error
from embedserve.index.structures import TUNED_K, Stopped, Structure
from embedserve.types import DEFAULT_TARGET_RECALL

K = TUNED_K
_QUERIES = 200
_SEED = 4321
ENOUGH = 0.999
"""Higher values are not tried once this recall is reached."""
_TO_SPARE = 0.3
"""Margin, as a share of the allowed misses. 200 synthetic queries predict the recall of others to about 0.01: where
they found 0.962 with the chosen ef, 1,000 held-out queries found 0.958, and the first 200 of these 0.940."""
_HARDER = 4
_SELF_QUERIES = 1024
"""Rows searched for in one call."""
_BATCH = 50
"""Queries compared with all rows in one call; a build can be stopped between two calls."""


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """The recall of one value of ef or nprobe."""

    param: int
    """ef of HNSW, nprobe of IVF."""
    recall: float
    """recall@10, in [0, 1]."""


def synthetic_queries(
    vectors: NDArray[np.float32], count: int = _QUERIES, stopped: Callable[[], bool] = lambda: False
) -> NDArray[np.float32]:
    """Queries like real ones, made from vectors [N, D]: float32 [min(count, N), D], unit norm.

    A row is linked to its neighbours, so searching for it is easier than searching for a new image. Each query is a row
    moved in a random direction, as far as its nearest neighbour is away, which is at least as hard.

    Raises:
        Stopped: ``stopped`` returned true.
    """
    random = np.random.default_rng(_SEED)
    places = np.sort(random.choice(len(vectors), min(count, len(vectors)), replace=False))
    rows = vectors[places].astype(np.float64)
    noise = random.standard_normal(rows.shape)
    noise -= (noise * rows).sum(axis=1, keepdims=True) * rows
    noise /= np.maximum(np.linalg.norm(noise, axis=1, keepdims=True), 1e-12)
    nearest = _best_scores(np.ascontiguousarray(vectors[places]), vectors, min(2, len(vectors)), stopped)
    cosine = np.clip(nearest[:, -1:].astype(np.float64), 0.0, 1.0)
    made = cosine * rows + np.sqrt(1 - cosine**2) * noise
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    return made.astype(np.float32)


def operating_points(
    structure: Structure, vectors: NDArray[np.float32], stopped: Callable[[], bool]
) -> tuple[OperatingPoint, ...]:
    """The recall of ascending values of ef or nprobe over vectors [N, D], until it reaches ENOUGH.

    Raises:
        Stopped: ``stopped`` returned true.
    """
    queries = synthetic_queries(vectors, stopped=stopped)
    best = _best_scores(queries, vectors, min(K, len(vectors)), stopped)
    points = []
    for param in structure.param_values:
        if stopped():
            raise Stopped
        _, found = structure.search(queries, best.shape[1], param)
        points.append(OperatingPoint(param, recall(found, best, vectors.shape[1])))
        if points[-1].recall >= ENOUGH:
            break
    return tuple(points)


def unreachable_rows(
    structure: Structure, vectors: NDArray[np.float32], points: Sequence[OperatingPoint], stopped: Callable[[], bool]
) -> NDArray[np.int64]:
    """Positions in vectors [N, D] of rows that even a search for their own vectors does not find: int64 [U], ascending.

    A graph links a row to its neighbours, but these keep other links once they have enough, and a row that no other
    links to is never visited. Of 40,000 rows there were 5 with m=16, 1 with m=32.

    Raises:
        Stopped: ``stopped`` returned true.
    """
    missing = np.arange(len(vectors))
    usual = param_for(points, DEFAULT_TARGET_RECALL)
    # Nearly all are found with the usual value, so only the rest is searched for with a higher one.
    for param in (usual, _HARDER * usual):
        missed = [missing[:0]]
        for start in range(0, len(missing), _SELF_QUERIES):
            if stopped():
                raise Stopped
            some = missing[start : start + _SELF_QUERIES]
            queries = vectors[some]
            positions, scores = structure.search(queries, 1, param)
            # Finding an equal row counts too.
            lowest = (queries * queries).sum(axis=1) - score_error(vectors.shape[1])
            missed.append(some[(positions[:, 0] != some) & (scores[:, 0] < lowest)])
        missing = np.concatenate(missed)
    return missing


def param_for(points: Sequence[OperatingPoint], target_recall: float) -> int:
    """The smallest ef or nprobe that reaches a recall with a margin; where none does, the largest that was tried."""
    wanted = min(target_recall + _TO_SPARE * (1 - target_recall), ENOUGH)
    return next((point.param for point in points if point.recall >= wanted), points[-1].param)


def recall(found: NDArray[np.float32], best: NDArray[np.float32], dimension: int) -> float:
    """Mean share of K found rows that are as near as the K-th nearest.

    Args:
        found: scores of the found rows, float32 [Q, K], −inf where there are fewer.
        best: scores of the nearest rows, float32 [Q, K], descending.
        dimension: D; the error of a score grows with it.
    """
    return float((found >= best[:, -1:] - score_error(dimension)).mean())


def _best_scores(
    queries: NDArray[np.float32], vectors: NDArray[np.float32], k: int, stopped: Callable[[], bool]
) -> NDArray[np.float32]:
    """Scores of the k nearest of vectors [N, D] for each of the queries [Q, D]: float32 [Q, k], descending."""
    scores = []
    for start in range(0, len(queries), _BATCH):
        if stopped():
            raise Stopped
        scores.append(kernels.nearest(queries[start : start + _BATCH], vectors, k, None)[1])
    return np.concatenate(scores)
