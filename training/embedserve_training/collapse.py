"""When embeddings have collapsed: all alike, or all on one line. Cheap enough for every few steps, and without labels.

The limits lie between what was measured on Fashion-MNIST and on drawn patterns at 28–32 px, batches of 16–128:

===================================================================  =============  ==============
embeddings                                                           std            directions
===================================================================  =============  ==============
untrained: 9 backbones, with linear and deeper heads, 2 recipes      0.28 and more  3.1 and more
SimCLR, any of 200 steps (small-cnn) or 100 (resnet18)               0.98 and more  4.1 and more
no negatives, no batch-norm in the head, from step 50                0.05 and less  6 and more
no negatives, batch-norm in the head, from step 50                   0.86 and more  1.7 and less
Barlow Twins without the off-diagonal term, from step 50             0.96 and more  1.4 and less
===================================================================  =============  ==============

So neither measure alone would do: batch-norm keeps embeddings apart, but on one line.

Shapes: N embeddings, D numbers each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from embedserve_training.health import in_double, std_of, strided

LEAST_STD = 0.1
"""A smaller standard deviation is a sign of collapse; it stands for a mean cosine of 0.99."""
LEAST_DIRECTIONS = 2.0
"""Fewer directions are a sign of collapse."""
_LEAST_ROWS = 16
"""Fewer embeddings do not tell."""
_NOISE = 1e-3
"""Numbers around it and below are what rounding leaves of a constant whose mean a batch-norm took away."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How far apart the embeddings of a batch are, nan where that is not known."""

    std: float
    """As in ``Health``: 0 if all are alike, 1 if spread in all directions."""
    directions: float
    """Participation ratio of their covariance, (Σλ)² / Σλ² over its eigenvalues: 1 on a line, D in all directions."""


def spread(x_ND: Tensor) -> Spread:
    """The spread of embeddings, computed where they are, with one transfer of the results."""
    if x_ND.shape[0] < _LEAST_ROWS:
        return Spread(std=math.nan, directions=math.nan)
    x_MD = in_double(strided(x_ND, views=1))
    unit_MD = F.normalize(x_MD, dim=1, eps=_NOISE * math.sqrt(x_MD.shape[1]))
    centred_MD = unit_MD - unit_MD.mean(0)
    # The gram matrix has the eigenvalues of the covariance, and the squares of its entries add up to those of them.
    wide = centred_MD.shape[0] < centred_MD.shape[1]
    gram = centred_MD @ centred_MD.T if wide else centred_MD.T @ centred_MD
    directions = gram.trace().square() / gram.square().sum().clamp(min=1e-300)
    std_value, directions_value = torch.stack([std_of(unit_MD), directions]).tolist()
    return Spread(std=std_value, directions=directions_value)


def sign_of_collapse(h: Spread, z: Spread) -> str:
    """What is wrong with a batch; empty if nothing is.

    Args:
        h: of the backbone's embeddings.
        z: of those that the loss compares.
    """
    for name, of in (("z", z), ("h", h)):
        if of.std < LEAST_STD:
            return f"all {name} are alike: their std is {of.std:.3f} of at most 1"
        if of.directions < LEAST_DIRECTIONS:
            return f"all {name} lie on a line: they vary along {of.directions:.1f} directions"
    return ""
