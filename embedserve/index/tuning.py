"""How hard a structure has to try for a recall: measured on its own rows when it is built.

Recall@10 is the mean share of the ten nearest rows, as exact search finds them, among the ten that were found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedserve.index import kernels
from embedserve.index.structures import Structure

K = 10
_QUERIES = 200
_SEED = 4321
_ENOUGH = 0.999
"""Harder efforts are not tried once this is reached."""


@dataclass(frozen=True, slots=True)
class Point:
    """What an effort finds."""

    effort: int
    recall: float


def made_queries(vectors: NDArray[np.float32], count: int = _QUERIES) -> NDArray[np.float32]:
    """Queries like those to come, from vectors [N, D]: float32 [min(count, N), D], unit norm.

    A row is linked to its neighbours, so a search for it is easier than one for a new image. Each query is a row moved
    in a random direction, as far away from it as its nearest neighbour is, which is at least as hard.
    """
    random = np.random.default_rng(_SEED)
    places = np.sort(random.choice(len(vectors), min(count, len(vectors)), replace=False))
    rows = vectors[places].astype(np.float64)
    noise = random.standard_normal(rows.shape)
    noise -= (noise * rows).sum(axis=1, keepdims=True) * rows
    noise /= np.maximum(np.linalg.norm(noise, axis=1, keepdims=True), 1e-12)
    _, nearest = kernels.nearest(np.ascontiguousarray(vectors[places]), vectors, min(2, len(vectors)), None)
    cosine = np.clip(nearest[:, -1:].astype(np.float64), 0.0, 1.0)
    made = cosine * rows + np.sqrt(1 - cosine**2) * noise
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    return made.astype(np.float32)


def operating_points(structure: Structure, vectors: NDArray[np.float32]) -> tuple[Point, ...]:
    """The recall of rising efforts over vectors [N, D], until nearly everything is found."""
    queries = made_queries(vectors)
    truth, _ = kernels.nearest(queries, vectors, min(K, len(vectors)), None)
    points = []
    for effort in structure.efforts:
        found, _ = structure.search(queries, truth.shape[1], effort)
        points.append(Point(effort, recall(found, truth)))
        if points[-1].recall >= _ENOUGH:
            break
    return tuple(points)


def effort_for(points: Sequence[Point], target_recall: float) -> int:
    """The least effort that reaches a recall; where none does, the greatest that was tried."""
    return next((point.effort for point in points if point.recall >= target_recall), points[-1].effort)


def recall(found: NDArray[np.int64], truth: NDArray[np.int64]) -> float:
    """Mean share of the truth [Q, K] that is among what was found [Q, K]."""
    shared = (truth[:, :, None] == found[:, None, :]) & (truth >= 0)[:, :, None]
    return float(shared.any(axis=2).sum() / max((truth >= 0).sum(), 1))
