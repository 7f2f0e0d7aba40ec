"""Augmentations, batched on the training device, with separate parameters for every image.

A recipe uses some of these, in this order:

1. crop and resize, rotation, flips, quarter turns (``spatial``);
2. colour jitter, grayscale, channel drop (``colour``);
3. Gaussian blur (computed within 1: it is linear and preserves constants, so it commutes with 2, except for the mean
   grey that contrast pivots about, which differs by a few ten-thousandths at the borders);
4. clipping to 0–1;
5. solarize, Gaussian noise, Sobel, cutout (``pixels``).

The published recipes use this order; where one of them swaps two operations, the two commute. The authors clip after
each colour operation and rotate the hue in HSV; ``colour`` describes what is done here.

Presets and recipes need no torch, for the help of the command line and for the plan.
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
