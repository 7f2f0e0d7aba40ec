"""Whitening: the last, linear layer of a served encoder, fitted to the training images at the end of a run.

Neighbours are found by cosine, and the few directions in which h varies most dominate the cosine of h. After whitening
every direction counts equally, as a linear classifier on h could choose: Jégou and Chum, Negative evidences and
co-occurrences in image retrieval: the benefit of PCA and whitening (ECCV 2012), section 3. It needs no labels.

It helps among near neighbours and costs precision far from them. Fashion-MNIST, 60,000 images searched by 3,000
queries, small-cnn after 14 epochs of SimCLR, with floors of 1e-2 and of 1e-3: kNN 84.2 % → 87.1 % and 88.2 %, nearest
with the same label 84.8 % → 86.7 % and 86.4 %, share of the ten nearest 81.6 % → 83.1 % and 83.1 %, but mean average
precision over the whole ranking 54.5 % → 38.3 % and 30.0 %. Among only 1,000 images the ten nearest are already far:
their share is 73.7 % → 72.9 % and 70.7 % (CPC 69.9 % → 70.5 % and 65.9 %); hence 1e-2. Fitted to 1,024 images instead
of 60,000, kNN was within 0.3 points (after 1.5 epochs).

Shapes: N images, D numbers of h, T side of the cached image, S side that the encoder sees.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embedserve_training.networks.backbones import Backbone
from embedserve_training.plan.sizes import is_small

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FLOOR = 1e-2
"""Added to each variance as a share of the largest, so that directions of pure noise are not amplified."""
IMAGES_PER_NUMBER = 4
"""Images for each of the D numbers."""
_BATCH = 128
_SAMPLE = 16
"""Images by which the time is estimated."""


class Whitening(nn.Module):
    """(h − μ) · W: D uncorrelated numbers of variance one, except for the floor.

    Args:
        mean_D: μ.
        matrix_DD: W.
    """

    mean_D: Tensor
    matrix_DD: Tensor

    def __init__(self, mean_D: Tensor, matrix_DD: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean_D", mean_D)
        self.register_buffer("matrix_DD", matrix_DD)

    @classmethod
    def fit(cls, h_ND: Tensor) -> Self:
        """The whitening of these embeddings, computed in float64."""
        h_ND = h_ND.detach().cpu().double()
        mean_D = h_ND.mean(0)
        centred_ND = h_ND - mean_D
        variance_D, directions_DD = torch.linalg.eigh(centred_ND.T @ centred_ND / len(h_ND))
        floor = FLOOR * variance_D.max().clamp(min=1e-12)
        # Rotated back into the axes of h (ZCA): cosines are the same, and almost white embeddings hardly change.
        matrix_DD = directions_DD * (variance_D.clamp(min=0) + floor).rsqrt() @ directions_DD.T
        return cls(mean_D.float(), matrix_DD.float())

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        """The whitening from a checkpoint."""
        return cls(state["mean_D"], state["matrix_DD"])

    def forward(self, h_ND: Tensor) -> Tensor:
        """Float [N, D] → [N, D]."""
        white_ND: Tensor = (h_ND - self.mean_D) @ self.matrix_DD
        return white_ND


class Interrupted(Exception):
    """Fitting was given up on request."""


@torch.no_grad()
def fit_to_images(
    backbone: Backbone,
    pixels_NTTC: NDArray[np.uint8],
    size_px: int,
    *,
    whole: bool | None = None,
    progress: Callable[[int, int], bool] = lambda done, total: True,
) -> Whitening:
    """The whitening of a network's embeddings of its training images, evenly sampled.

    Args:
        backbone: in any mode, on any device.
        pixels_NTTC: uint8.
        size_px: S.
        whole: whether the encoder sees whole images; False: without their margin, None: as small images or others.
        progress: called with the number of images embedded and their total after each batch; returns whether to go on.

    Raises:
        Interrupted: ``progress`` returned False before the end.
    """
    count = images_to_fit(len(pixels_NTTC), backbone.dimension)
    # In integers: float32 cannot represent positions beyond 16 million.
    gaps = max(count - 1, 1)
    positions = ((torch.arange(count) * (len(pixels_NTTC) - 1) + gaps // 2) // gaps).tolist()
    parts = []
    training = backbone.training
    backbone.eval()
    try:
        for start in range(0, count, _BATCH):
            squares_NTTC = pixels_NTTC[positions[start : start + _BATCH]]
            parts.append(_embed(backbone, squares_NTTC, size_px, whole=whole))
            done = min(start + _BATCH, count)
            if not progress(done, count) and done < count:
                raise Interrupted
    finally:
        backbone.train(training)
    return Whitening.fit(torch.cat(parts))


def images_to_fit(images: int, dimension: int) -> int:
    """How many of the images are embedded: four for each of the D numbers."""
    return min(images, IMAGES_PER_NUMBER * dimension)


@torch.no_grad()
def seconds_to_fit(
    backbone: Backbone,
    pixels_NTTC: NDArray[np.uint8],
    size_px: int,
    *,
    clock: Callable[[], float],
) -> float:
    """How long ``fit_to_images`` will take: measured for a few images. The network does not change.

    Args:
        backbone: in any mode, on any device.
        pixels_NTTC: uint8.
        size_px: S.
        clock: seconds.
    """
    count = images_to_fit(len(pixels_NTTC), backbone.dimension)
    training = backbone.training
    backbone.eval()
    try:
        start = clock()
        _embed(backbone, pixels_NTTC[: min(_SAMPLE, count)], size_px, whole=None)
        took_s = clock() - start
    finally:
        backbone.train(training)
    return took_s * count / min(_SAMPLE, count)


def _embed(backbone: Backbone, squares_NTTC: NDArray[np.uint8], size_px: int, *, whole: bool | None) -> Tensor:
    """Float [N, D], on the CPU."""
    device = next(backbone.parameters()).device
    x_NCSS = _images(torch.from_numpy(squares_NTTC), size_px, whole=is_small(size_px) if whole is None else whole)
    with torch.compiler.set_stance("force_eager"):  # compiling for other shapes takes longer than running
        h_ND: Tensor = backbone(x_NCSS.to(device)).cpu()
    return h_ND


def _images(squares_NTTC: Tensor, size_px: int, *, whole: bool) -> Tensor:
    """Cached images as the served encoder sees them, [N, 3, S, S]."""
    x_NCTT = squares_NTTC.permute(0, 3, 1, 2).float() / 255
    margin = squares_NTTC.shape[1] - size_px
    if margin < 0 or (margin and whole):
        return F.interpolate(x_NCTT, size=(size_px, size_px), mode="bicubic", antialias=True).clamp(0, 1)
    return x_NCTT[:, :, margin // 2 : margin // 2 + size_px, margin // 2 : margin // 2 + size_px]
