"""Vectors that need no training: raw pixels and their principal components.

Shapes: N images to search in, M queries, S side in pixels, C = 3 channels, P values of the pixels, K components.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from embedserve_training.evaluate.neighbours import unit

if TYPE_CHECKING:
    from numpy.typing import NDArray

PIXEL_SIDE = 32
"""Raw pixels are compared at this side at most: more of them only add noise."""
WHITENING_FLOOR = 1e-2
"""As in ``networks.whitening``, which needs PyTorch."""


def raw_pixels(pixels_NSSC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The simplest embedding: uint8 [N, S, S, 3] → the pixels at 32 × 32 at most, with unit norm: [N, P]."""
    return unit(flat_pixels(pixels_NSSC))


def is_grey(pixels_NSSC: NDArray[np.uint8]) -> bool:
    """Whether no image has colour: one channel then gives the cosines of all three in a third of the time.

    Channels may differ by one, as augmented grey images do after rounding.
    """
    return all(bool((np.ptp(pixels_SSC, axis=2) <= 1).all()) for pixels_SSC in pixels_NSSC)


def flat_pixels(pixels_NSSC: NDArray[np.uint8], *, grey: bool = False) -> NDArray[np.float32]:
    """The images as vectors within 0–1, scaled down to PIXEL_SIDE where they are larger: [N, P].

    Args:
        pixels_NSSC: uint8.
        grey: use the first channel only.
    """
    from PIL import Image

    if pixels_NSSC.shape[1] > PIXEL_SIDE:
        small = (PIXEL_SIDE, PIXEL_SIDE)
        pixels_NSSC = np.stack(
            [np.asarray(Image.fromarray(p).resize(small, Image.Resampling.BILINEAR)) for p in pixels_NSSC]
        )
    channels = pixels_NSSC[..., :1] if grey else pixels_NSSC
    return channels.reshape(len(channels), -1).astype(np.float32) / np.float32(255)


@dataclass(frozen=True)
class PrincipalComponents:
    """The directions of largest variance of a set of vectors."""

    mean_P: NDArray[np.float32]
    components_PK: NDArray[np.float32]
    variance_K: NDArray[np.float32]
    """Variance of the vectors along each component."""

    def project(self, x_NP: NDArray[np.float32]) -> NDArray[np.float32]:
        """The vectors in these directions, centred on the mean: [N, K]."""
        projected_NK: NDArray[np.float32] = np.matmul(x_NP - self.mean_P, self.components_PK)
        return projected_NK

    def whitened(self) -> PrincipalComponents:
        """The same components scaled to variance one, but for the floor, as in the last layer of an encoder."""
        scale_K = 1 / np.sqrt(self.variance_K + WHITENING_FLOOR * max(float(self.variance_K.max()), 1e-12))
        return PrincipalComponents(self.mean_P, (self.components_PK * scale_K).astype(np.float32), self.variance_K)


def fit_components(x_NP: NDArray[np.float32], most: int) -> PrincipalComponents:
    """The principal components of a set of vectors.

    Args:
        x_NP: the vectors.
        most: largest K; N vectors span only N − 1 directions around their mean.
    """
    count = max(min(most, len(x_NP) - 1, x_NP.shape[1]), 1)
    mean_P: NDArray[np.float32] = np.asarray(x_NP.mean(axis=0), np.float32)
    centred_NP = x_NP - mean_P
    # The eigenvectors of the smaller of the two Gram matrices give the components.
    if centred_NP.shape[0] >= centred_NP.shape[1]:
        _, vectors_PP = np.linalg.eigh(centred_NP.T @ centred_NP)
        components_PK = np.ascontiguousarray(vectors_PP[:, ::-1][:, :count])
    else:
        _, vectors_NN = np.linalg.eigh(centred_NP @ centred_NP.T)
        components_PK = centred_NP.T @ vectors_NN[:, ::-1][:, :count]
        components_PK /= np.maximum(np.linalg.norm(components_PK, axis=0), 1e-12)
    variance_K: NDArray[np.float32] = np.matmul(centred_NP, components_PK).var(axis=0)
    return PrincipalComponents(mean_P, components_PK, variance_K)


def principal_components(
    train_NP: NDArray[np.float32], test_MP: NDArray[np.float32], dimensions: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Both sets projected on the principal components of the first, centred on its mean."""
    components = fit_components(train_NP, dimensions)
    return components.project(train_NP), components.project(test_MP)
