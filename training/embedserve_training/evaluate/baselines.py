"""Vectors that need no training: raw pixels and their principal components.

Shapes: N images to search in, M that ask, S side in pixels, C = 3 channels, P numbers of the pixels, K components.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from embedserve_training.evaluate.neighbours import unit

if TYPE_CHECKING:
    from numpy.typing import NDArray

PIXEL_SIDE = 32
"""Raw pixels are compared at this side at most: more of them only follow the noise."""


def raw_pixels(pixels_NSSC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The simplest embedding there is: uint8 [N, S, S, 3] → the pixels at 32 × 32 at most, with unit norm: [N, P]."""
    return unit(flat_pixels(pixels_NSSC))


def flat_pixels(pixels_NSSC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The images as vectors within 0–1, scaled down to PIXEL_SIDE where they are larger."""
    from PIL import Image

    if pixels_NSSC.shape[1] > PIXEL_SIDE:
        small = (PIXEL_SIDE, PIXEL_SIDE)
        pixels_NSSC = np.stack(
            [np.asarray(Image.fromarray(p).resize(small, Image.Resampling.BILINEAR)) for p in pixels_NSSC]
        )
    return pixels_NSSC.reshape(len(pixels_NSSC), -1).astype(np.float32) / np.float32(255)


def principal_components(
    train_ND: NDArray[np.float32], test_MD: NDArray[np.float32], dimensions: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Both sets projected on the principal components of the first, centred on its mean."""
    mean_D: Any = train_ND.mean(axis=0)
    centred_ND = train_ND - mean_D
    # The eigenvectors of the smaller of the two products of the data with itself give the components.
    vectors: Any
    if centred_ND.shape[0] >= centred_ND.shape[1]:
        _, vectors = np.linalg.eigh(centred_ND.T @ centred_ND)
        components_DK = vectors[:, ::-1][:, :dimensions]
    else:
        _, vectors = np.linalg.eigh(centred_ND @ centred_ND.T)
        components_DK = centred_ND.T @ vectors[:, ::-1][:, :dimensions]
        components_DK /= np.maximum(np.linalg.norm(components_DK, axis=0), 1e-12)
    return centred_ND @ components_DK, (test_MD - mean_D) @ components_DK
