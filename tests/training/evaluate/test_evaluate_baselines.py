"""Raw pixels and their principal components."""

from __future__ import annotations

import math

import numpy as np
import pytest

from embedserve_training.augment import Augmentation
from embedserve_training.evaluate import principal_components, raw_pixels
from embedserve_training.evaluate.baselines import WHITENING_FLOOR, fit_components, flat_pixels, is_grey
from embedserve_training.evaluate.self_retrieval import augmented
from embedserve_training.networks import whitening


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


def test_there_are_at_most_as_many_components_as_the_images_span() -> None:
    x = np.random.default_rng(1).normal(size=(5, 40)).astype(np.float32)
    assert fit_components(x, 256).components_PK.shape == (40, 4)
    assert fit_components(x.T, 256).components_PK.shape == (5, 5)


def test_raw_pixels_of_large_images_are_compared_at_32_pixels() -> None:
    pixels = np.zeros((2, 64, 64, 3), np.uint8)
    pixels[1] = 255
    vectors = raw_pixels(pixels)
    assert vectors.shape == (2, 32 * 32 * 3)
    np.testing.assert_allclose(vectors[1], 1 / math.sqrt(32 * 32 * 3), rtol=1e-5)


def test_raw_pixels_of_small_images_are_not_scaled() -> None:
    pixels = np.arange(2 * 2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 2, 3)
    flat = pixels.reshape(2, 12).astype(float)
    np.testing.assert_allclose(raw_pixels(pixels), flat / np.linalg.norm(flat, axis=1, keepdims=True), rtol=1e-5)


def test_grey_images_have_the_same_cosines_in_one_channel() -> None:
    grey = np.repeat(np.random.default_rng(2).integers(0, 256, (3, 4, 4, 1)).astype(np.uint8), 3, axis=3)
    one = flat_pixels(grey, grey=True)
    assert one.shape == (3, 16)
    one /= np.linalg.norm(one, axis=1, keepdims=True)
    np.testing.assert_allclose(one @ one.T, raw_pixels(grey) @ raw_pixels(grey).T, atol=1e-6)


def test_a_single_coloured_pixel_makes_a_set_coloured() -> None:
    images = np.full((2, 4, 4, 3), 9, np.uint8)
    assert is_grey(images)
    images[1, 3, 3, 2] = 10  # a rounding error
    assert is_grey(images)
    images[1, 3, 3, 2] = 11
    assert not is_grey(images)


def test_augmented_grey_images_are_grey_but_not_if_a_channel_is_dropped() -> None:
    grey = np.repeat(np.random.default_rng(4).integers(0, 256, (16, 8, 8, 1)).astype(np.uint8), 3, axis=3)
    assert is_grey(augmented(grey, "photo", 0))
    assert not is_grey(augmented(grey, Augmentation(channel_drop=1.0), 0))


def test_whitened_components_have_variance_one_but_for_the_floor() -> None:
    x = np.random.default_rng(3).normal(size=(2000, 3)).astype(np.float32) * np.array([10, 1, 0.1], np.float32)
    components = fit_components(x, 3)
    variance = components.project(x).var(axis=0)
    # Reduced by the floor, a hundredth of the largest variance: 100/101, 1/2, 0.01/1.01.
    expected = variance / (variance + variance[0] / 100)
    np.testing.assert_allclose(components.whitened().project(x).var(axis=0), expected, rtol=1e-3)
    np.testing.assert_allclose(expected, [100 / 101, 1 / 2, 0.01 / 1.01], rtol=0.1)


def test_the_floor_is_that_of_served_encoders() -> None:
    assert WHITENING_FLOOR == whitening.FLOOR
