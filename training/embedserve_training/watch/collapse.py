"""Signs that embeddings have collapsed, all equal or all on one line; cheap enough for every few steps, without labels.

The limits lie between the values measured on Fashion-MNIST and on drawn patterns at 28–32 px, batches of 16–128:

=====================================================  ============  ============  ============  ============
smallest (collapsed: largest) value                    std of z      directions    std of h      directions
=====================================================  ============  ============  ============  ============
untrained, 9 backbones, 3 heads, 2 recipes             0.28          3.1           0.33          3.1
untrained, CPC                                         0.44          5.1           0.25          1.6
five methods, small-cnn, 100–500 steps, from step 50   0.39          2.7           0.38          1.9
SimCLR, resnet18, 100 steps, from step 50              0.99          6.0           –             6.0
no negatives, no batch-norm in the head, from step 50  0.03          (not low)     (not low)     (not low)
no negatives, batch-norm in the head, from step 50     (not low)     2.0           (not low)     (not low)
Barlow Twins without its second term, from step 50     (not low)     1.4           (not low)     (not low)
=====================================================  ============  ============  ============  ============

Neither measure suffices alone: batch-norm keeps embeddings apart, but near a line.

Shapes: N embeddings, D numbers each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from embedserve_training.watch.representation import in_double, strided

MIN_STD = 0.1
"""A smaller standard deviation is a sign of collapse; it corresponds to a mean cosine of 0.99."""
MIN_DIRECTIONS_Z = 2.0
"""Fewer directions of z are a sign of collapse."""
MIN_DIRECTIONS_H = 1.2
"""Fewer directions of h are a sign of collapse. Without batch-norm before it, h starts near a line."""
_MIN_ROWS = 16
"""Fewer embeddings are too few to tell."""
_NOISE = 1e-3
"""Numbers of about this size are the rounding errors that batch-norm leaves of a constant."""


@dataclass(frozen=True, kw_only=True)
class Dispersion:
    """How far apart the embeddings of a batch are; nan where they are too few to tell."""

    std: float
    """As in ``Health``: 0 if all are equal, 1 if spread in all directions."""
    directions: float
    """Participation ratio of their covariance, (Σλ)² / Σλ² over its eigenvalues: 1 on a line, D in all directions."""


def measure_dispersion(x_ND: Tensor, views: int) -> Dispersion:
    """The dispersion of embeddings, computed on their device, with one transfer of the results.

    Each view is centred on its own mean: MoCo's keys come from a network that lags behind that of the queries, and the
    offset between the two is no dispersion.

    Args:
        x_ND: detached, view-major.
        views: V.
    """
    if x_ND.shape[0] < _MIN_ROWS:
        return Dispersion(std=math.nan, directions=math.nan)
    x_MD = in_double(strided(x_ND, views))
    unit_MD = F.normalize(x_MD, dim=1, eps=_NOISE * math.sqrt(x_MD.shape[1]))
    unit_VLD = unit_MD.reshape(views, -1, x_MD.shape[1])
    centred_MD = (unit_VLD - unit_VLD.mean(1, keepdim=True)).flatten(0, 1)
    # The Gram matrix has the eigenvalues of the covariance, and its squared entries sum to their squares.
    wide = centred_MD.shape[0] < centred_MD.shape[1]
    gram = centred_MD @ centred_MD.T if wide else centred_MD.T @ centred_MD
    directions = gram.trace().square() / gram.square().sum().clamp(min=1e-300)
    std = centred_MD.square().mean(0).sqrt().mean() * math.sqrt(x_MD.shape[1])
    std_value, directions_value = torch.stack([std, directions]).tolist()
    return Dispersion(std=std_value, directions=directions_value)


def sign_of_collapse(h: Dispersion, z: Dispersion) -> str:
    """What is wrong with a batch; empty if nothing is.

    Args:
        h: of the backbone's embeddings.
        z: of those that the loss compares.
    """
    for name, dispersion, min_directions in (("z", z, MIN_DIRECTIONS_Z), ("h", h, MIN_DIRECTIONS_H)):
        if dispersion.std < MIN_STD:
            return f"all {name} are alike: their std is {dispersion.std:.3f} of at most 1"
        if dispersion.directions < min_directions:
            return f"all {name} lie on a line: they vary along {dispersion.directions:.1f} directions"
    return ""
