"""How hard a structure has to try for a recall: measured on its own rows when it is built.

Recall@10 is the mean share of the ten found rows that are as near as the tenth nearest, as exact search finds it: of
equal rows any will do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedserve.index import kernels
from embedserve.index.ranking import error_of
from embedserve.index.structures import TUNED_K, Stopped, Structure
from embedserve.types import DEFAULT_TARGET_RECALL

K = TUNED_K
_QUERIES = 200
_SEED = 4321
ENOUGH = 0.999
"""Harder efforts are not tried once this is reached."""
_TO_SPARE = 0.3
"""Share of what may be missed that is found all the same. 200 made queries say what others need to about 0.01: where
they found 0.962 with the ef that was taken, 1,000 held-out queries found 0.958, and the first 200 of these 0.940."""
_HARDER = 4
_SELVES = 1024
"""Rows looked for in one go."""
_TOGETHER = 50
"""Queries compared with all rows in one go; between two goes a build can be stopped."""


@dataclass(frozen=True, slots=True)
class Point:
    """What an effort finds."""

    effort: int
    recall: float


def made_queries(
    vectors: NDArray[np.float32], count: int = _QUERIES, stopped: Callable[[], bool] = lambda: False
) -> NDArray[np.float32]:
    """Queries like those to come, from vectors [N, D]: float32 [min(count, N), D], unit norm.

    A row is linked to its neighbours, so a search for it is easier than one for a new image. Each query is a row moved
    in a random direction, as far away from it as its nearest neighbour is, which is at least as hard.

    Raises:
        Stopped: ``stopped`` said so in between.
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
) -> tuple[Point, ...]:
    """The recall of rising efforts over vectors [N, D], until nearly everything is found.

    Raises:
        Stopped: ``stopped`` said so in between.
    """
    queries = made_queries(vectors, stopped=stopped)
    best = _best_scores(queries, vectors, min(K, len(vectors)), stopped)
    points = []
    for effort in structure.efforts:
        if stopped():
            raise Stopped
        _, found = structure.search(queries, best.shape[1], effort)
        points.append(Point(effort, recall(found, best, vectors.shape[1])))
        if points[-1].recall >= ENOUGH:
            break
    return tuple(points)


def strays(
    structure: Structure, vectors: NDArray[np.float32], points: Sequence[Point], stopped: Callable[[], bool]
) -> NDArray[np.int64]:
    """Rows of vectors [N, D] that are not found even by their own vectors: int64 [S], ascending.

    A graph links a row to its neighbours, but its neighbours keep other links once they have enough, and what nobody
    links to is never met. Of 40,000 rows these were 5 with m=16, 1 with m=32.

    Raises:
        Stopped: ``stopped`` said so in between.
    """
    missing = np.arange(len(vectors))
    usual = effort_for(points, DEFAULT_TARGET_RECALL)
    # Nearly all are found without much effort, so only the rest is looked for with more.
    for effort in (usual, _HARDER * usual):
        missed = [missing[:0]]
        for start in range(0, len(missing), _SELVES):
            if stopped():
                raise Stopped
            some = missing[start : start + _SELVES]
            queries = vectors[some]
            positions, scores = structure.search(queries, 1, effort)
            # Found is a row equal to it as well.
            lowest = (queries * queries).sum(axis=1) - error_of(vectors.shape[1])
            missed.append(some[(positions[:, 0] != some) & (scores[:, 0] < lowest)])
        missing = np.concatenate(missed)
    return missing


def effort_for(points: Sequence[Point], target_recall: float) -> int:
    """The least effort that reaches a recall with something to spare; where none does, the greatest that was tried."""
    wanted = min(target_recall + _TO_SPARE * (1 - target_recall), ENOUGH)
    return next((point.effort for point in points if point.recall >= wanted), points[-1].effort)


def recall(found: NDArray[np.float32], best: NDArray[np.float32], dimension: int) -> float:
    """Mean share of K found rows that are as near as the K-th nearest.

    Args:
        found: scores of what was found, float32 [Q, K], −inf where there are fewer.
        best: those of the nearest rows, float32 [Q, K], falling.
        dimension: D; the error of a score grows with it.
    """
    return float((found >= best[:, -1:] - error_of(dimension)).mean())


def _best_scores(
    queries: NDArray[np.float32], vectors: NDArray[np.float32], k: int, stopped: Callable[[], bool]
) -> NDArray[np.float32]:
    """Scores of the k nearest of vectors [N, D] for each of the queries [Q, D]: float32 [Q, k], falling."""
    scores = []
    for start in range(0, len(queries), _TOGETHER):
        if stopped():
            raise Stopped
        scores.append(kernels.nearest(queries[start : start + _TOGETHER], vectors, k, None)[1])
    return np.concatenate(scores)
