"""Augmentations, batched on the training device, with parameters of their own for every image.

In this order, of which a recipe uses a part:

1. crop and resize, rotation, flips, quarter turns (``spatial``);
2. colour jitter, grayscale, loss of channels (``colour``);
3. Gaussian blur (computed within 1: it is linear and leaves constants as they are, so it may be exchanged with 2, but
   for the mean grey that contrast pivots about, which at the borders differs by a few ten-thousandths);
4. clipping to 0–1;
5. solarize, Gaussian noise, Sobel, cutout (``pixels``).

The published recipes keep this order; where two operations change places in one of them, they commute. The authors
clip after each colour operation and turn the hue in HSV; ``colour`` says what is done here.

Presets and recipes are there without torch, for the command line's help and the plan.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedserve_training.augment.presets import PRESETS, recipes_for
from embedserve_training.augment.recipe import Augmentation

if TYPE_CHECKING:
    from embedserve_training.augment.view import augment

__all__ = ["PRESETS", "Augmentation", "augment", "recipes_for"]


def __getattr__(name: str) -> object:
    if name == "augment":
        from embedserve_training.augment.view import augment

        return augment
    raise AttributeError(f"module 'embedserve_training.augment' has no attribute {name!r}")
