"""Spherical k-means (Dhillon and Modha, 2001): the centres of inverted lists, of vectors compared by their cosine.

FAISS has it too, as one call for each iteration, which for four thousand lists of 256 numbers takes half a minute that
nothing ends. Here a step compares as many points as take a few milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from embedserve.index import kernels

_SPLIT = 1 / 1024
"""How far apart the two halves of a list are that is split, relative to their numbers; as in FAISS."""
_LEAST_POINTS = 32
"""In one step."""


def spherical_kmeans(
    points: NDArray[np.float32], count: int, *, iterations: int, seed: int, look: Callable[[], None]
) -> NDArray[np.float32]:
    """Centroids of points.

    Args:
        points: float32 [N, D], unit norm.
        count: of centroids, at most N.
        iterations: how often all points are assigned to the nearest centroid.
        seed: of the points that are taken first.
        look: called before each step; an exception from it ends the work.

    Returns:
        float32 [count, D], unit norm.
    """
    places = np.random.default_rng(seed).permutation(len(points))[:count]
    centroids = points[np.sort(places)]
    step = max(kernels.STEP_NUMBERS // centroids.size, _LEAST_POINTS)
    for _ in range(iterations):
        sums = np.zeros(centroids.shape, np.float32)
        sizes = np.zeros(count, np.int64)
        for start in range(0, len(points), step):
            look()
            some = points[start : start + step]
            nearest = (some @ centroids.T).argmax(axis=1)
            order = np.argsort(nearest, kind="stable")
            found, first = np.unique(nearest[order], return_index=True)
            sums[found] += np.add.reduceat(some[order], first, axis=0)
            sizes += np.bincount(nearest, minlength=count)
        centroids = _with_empty_ones_filled(sums, sizes)
    return centroids


def _with_empty_ones_filled(sums: NDArray[np.float32], sizes: NDArray[np.int64]) -> NDArray[np.float32]:
    """The centroids with these sums of points; one without points takes half of the largest."""
    sizes = sizes.copy()
    factors = np.where(np.arange(sums.shape[1]) % 2, 1 - _SPLIT, 1 + _SPLIT).astype(np.float32)
    for empty in np.flatnonzero(sizes == 0).tolist():
        largest = int(sizes.argmax())
        sums[empty] = sums[largest] * factors
        sums[largest] *= 2 - factors
        sizes[empty] = sizes[largest] // 2
        sizes[largest] -= sizes[empty]
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    centroids: NDArray[np.float32] = np.divide(sums, lengths, out=np.zeros_like(sums), where=lengths > 0)
    return centroids
