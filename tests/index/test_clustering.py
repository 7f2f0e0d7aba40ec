"""Spherical k-means: its result, its steps, and lists that no point is nearest to."""

from __future__ import annotations

import numpy as np
import pytest

from embedserve.index.clustering import _with_empty_ones_filled, spherical_kmeans


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_separated_groups_are_found_with_their_means() -> None:
    random = np.random.default_rng(0)
    centres = unit(random.standard_normal((8, 16)))
    groups = np.arange(2000) % 8
    points = unit(centres[groups] + 0.02 * random.standard_normal((2000, 16)))
    found = spherical_kmeans(points, 40, iterations=10, seed=1, look=lambda: None)
    assert found.shape == (40, 16)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert (points @ found.T).max(axis=1).min() > 0.99
    # With as many centroids as groups, each of one group's points alone, it is the mean direction of the group.
    alone = spherical_kmeans(points[groups == 3], 1, iterations=3, seed=1, look=lambda: None)
    assert np.allclose(alone[0], unit(points[groups == 3].sum(axis=0, keepdims=True))[0], atol=1e-5)


def test_the_result_is_that_of_one_large_step(monkeypatch: pytest.MonkeyPatch) -> None:
    points = unit(np.random.default_rng(2).standard_normal((1500, 8)))
    large = spherical_kmeans(points, 20, iterations=5, seed=3, look=lambda: None)
    monkeypatch.setattr("embedserve.index.kernels.STEP_NUMBERS", 20 * 8 * 40)
    looks: list[int] = []
    small = spherical_kmeans(points, 20, iterations=5, seed=3, look=lambda: looks.append(1))
    assert np.allclose(large, small, atol=1e-4)
    assert len(looks) == 5 * -(-1500 // 40)  # 40 points between two looks


def test_a_centroid_without_points_takes_half_of_the_largest() -> None:
    sums = np.array([[3, 4], [0, 0], [0.6, 0]], np.float32)
    filled = _with_empty_ones_filled(sums, np.array([5, 0, 1]))
    assert np.allclose(filled[0], filled[1], atol=2e-3)
    assert not np.array_equal(filled[0], filled[1])
    assert np.allclose(filled[1], [0.6, 0.8], atol=2e-3)
    assert np.allclose(filled[2], [1, 0])


def test_equal_points_give_centroids_that_are_numbers() -> None:
    points = np.repeat(unit(np.ones((1, 4))), 64, axis=0)
    found = spherical_kmeans(points, 4, iterations=4, seed=0, look=lambda: None)
    assert np.isfinite(found).all()
    assert (points @ found.T).max(axis=1).min() > 0.999
