"""Collections of copies and near-copies, and the three kinds of query that are put to them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedserve.store.local.store import LocalStore
from embedserve.types import SearchOptions

K = 10


def unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    """Each row scaled to unit norm."""
    scaled: NDArray[np.float64] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return scaled.astype(np.float32)


@dataclass(frozen=True)
class NearCopies:
    """Random directions, and rows around each of them in random order."""

    distinct: NDArray[np.float32]
    """float32 [U, D], unit norm."""
    vectors: NDArray[np.float32]
    """float32 [N, D], unit norm."""

    @classmethod
    def drawn(cls, distinct: int, copies: int, dimension: int, noise: float, seed: int = 0) -> NearCopies:
        """With ``copies`` rows around each direction, as far from it as ``noise``; 0: equal to it."""
        random = np.random.default_rng(seed)
        directions = unit(random.standard_normal((distinct, dimension)))
        rows = np.repeat(directions, copies, axis=0)
        if noise:
            rows = unit(rows + noise / np.sqrt(dimension) * random.standard_normal(rows.shape))
        return cls(directions, rows[random.permutation(len(rows))])

    def queries(self, count: int, seed: int = 9) -> dict[str, NDArray[np.float32]]:
        """For each kind float32 [count, D]: near a row, half-way between two directions, and unlike all."""
        random = np.random.default_rng(seed)
        dimension = self.vectors.shape[1]
        rows = self.vectors[random.choice(len(self.vectors), count)].astype(np.float64)
        one, other = self.distinct[random.integers(0, len(self.distinct), (2, count))].astype(np.float64)
        return {
            "near": unit(rows + 0.1 / np.sqrt(dimension) * random.standard_normal(rows.shape)),
            "half-way": unit(one + other),
            "strangers": unit(random.standard_normal(rows.shape)),
        }


def recall(store: LocalStore, name: str, vectors: NDArray[np.float32], queries: NDArray[np.float32]) -> float:
    """Share of the hits that are as near as the tenth nearest of ``vectors``, found by comparing all."""
    exact = queries.astype(np.float64) @ vectors.astype(np.float64).T
    lowest = np.partition(exact, -K, axis=1)[:, -K]
    answers = store.search(name, queries, SearchOptions(k=K, include_metadata=False), [None] * len(queries))
    scores = np.array([[hit.score for hit in hits] for hits in answers])
    assert scores.shape == (len(queries), K)
    return float((scores >= lowest[:, None] - 2e-6).mean())
