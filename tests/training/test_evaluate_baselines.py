"""Raw pixels and their principal components."""

from __future__ import annotations

import math

import numpy as np
import pytest

from embedserve_training.evaluate import principal_components, raw_pixels
from embedserve_training.evaluate.baselines import fit_components


@pytest.mark.parametrize("shape", [(60, 12), (12, 60)])
def test_principal_components_keep_the_variance_that_a_singular_value_decomposition_gives(
    shape: tuple[int, int],
) -> None:
    train = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    projected, again = principal_components(train, train, 5)
    singular = np.linalg.svd(train - train.mean(0), compute_uv=False)[:5]
    np.testing.assert_allclose((projected**2).sum(0), singular**2, rtol=1e-3)
    np.testing.assert_allclose(projected, again, atol=1e-4)


def test_other_vectors_are_centred_on_the_mean_of_the_first() -> None:
    # The first set varies along x only, around (1, 5).
    train = np.array([[0, 5], [2, 5]], np.float32)
    _, projected = principal_components(train, np.array([[4, 9]], np.float32), 1)
    np.testing.assert_allclose(np.abs(projected), [[3]], atol=1e-5)


def test_there_are_no_more_components_than_the_images_span() -> None:
    x = np.random.default_rng(1).normal(size=(5, 40)).astype(np.float32)
    assert fit_components(x, 256).components_PK.shape == (40, 4)
    assert fit_components(x.T, 256).components_PK.shape == (5, 5)


def test_raw_pixels_of_large_images_are_compared_at_32_pixels() -> None:
    pixels = np.zeros((2, 64, 64, 3), np.uint8)
    pixels[1] = 255
    vectors = raw_pixels(pixels)
    assert vectors.shape == (2, 32 * 32 * 3)
    np.testing.assert_allclose(vectors[1], 1 / math.sqrt(32 * 32 * 3), rtol=1e-5)


def test_raw_pixels_of_small_images_are_used_as_they_are() -> None:
    pixels = np.arange(2 * 2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 2, 3)
    flat = pixels.reshape(2, 12).astype(float)
    np.testing.assert_allclose(raw_pixels(pixels), flat / np.linalg.norm(flat, axis=1, keepdims=True), rtol=1e-5)
