"""Pictures and views for the tests of augmentations."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from embedserve_training import augment
from embedserve_training.augment import Augmentation

NOTHING = Augmentation(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0, jitter=0.0, grayscale=0.0, blur=0.0)


def picture(side: int = 32, seed: int = 0) -> np.ndarray:
    """A smooth colour picture, uint8 [S, S, 3]."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return np.array(small.resize((side, side), Image.Resampling.BICUBIC))


def picture_CSS(side: int = 32, seed: int = 0) -> torch.Tensor:
    """The same, float [3, S, S] within 0–1."""
    return torch.from_numpy(picture(side, seed)).permute(2, 0, 1) / 255


def views(recipe: Augmentation, count: int = 64, side: int = 32, size_px: int = 32, seed: int = 0) -> torch.Tensor:
    """``count`` views of the same picture, float [count, 3, S, S]."""
    images = torch.from_numpy(picture(side)).expand(count, side, side, 3)
    return augment.augment(images, size_px, recipe, torch.Generator().manual_seed(seed))


def mean_std(view_BCSS: torch.Tensor) -> float:
    """Mean over pixels of the standard deviation over the batch."""
    return float(view_BCSS.std(0).mean())


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
