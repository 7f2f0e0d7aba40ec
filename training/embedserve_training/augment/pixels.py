"""Solarize, noise, Sobel and cutout: the operations that are neither resampling nor linear maps of colours.

Each is computed only for the views that it applies to.

Shapes: B images, b of them that an operation applies to, C = 3 channels, S side of the view, P pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from embedserve_training.augment.draw import Boxes, Draw
from embedserve_training.augment.recipe import Augmentation
from embedserve_training.augment.spatial import where_applies

_GREY = 0.5


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """Which of these operations apply to each view; None for those that the recipe does not use."""

    recipe: Augmentation
    solarized_B: Tensor | None = None
    noisy_B: Tensor | None = None
    noise_sigma_B: Tensor | None = None
    noise_key_B: Tensor | None = None
    sobel_B: Tensor | None = None
    cut_B: Tensor | None = None
    boxes: Boxes | None = None

    @classmethod
    def draw(cls, recipe: Augmentation, draw: Draw) -> Pixels:
        """Parameters for each image. Operations that the recipe does not use draw no random numbers."""
        noise, cutout = recipe.noise > 0, recipe.cutout > 0
        return cls(
            recipe=recipe,
            solarized_B=draw.applies(recipe.solarize) if recipe.solarize else None,
            noisy_B=draw.applies(recipe.noise) if noise else None,
            noise_sigma_B=draw.uniform(*recipe.noise_sigma) if noise else None,
            noise_key_B=draw.integers(2**31 - 1) if noise else None,
            sobel_B=draw.applies(recipe.sobel) if recipe.sobel else None,
            cut_B=draw.applies(recipe.cutout) if cutout else None,
            boxes=draw.boxes(recipe.cutout_area, recipe.cutout_ratio) if cutout else None,
        )

    def apply(self, x_BCSS: Tensor) -> Tensor:
        """Apply the operations in order to float [B, 3, S, S] within 0–1, which may be changed in place."""
        if self.solarized_B is not None:
            threshold = self.recipe.solarize_threshold
            x_BCSS = where_applies(self.solarized_B, x_BCSS, lambda x_bCSS: solarized(x_bCSS, threshold))
        if self.noisy_B is not None and self.noise_sigma_B is not None and self.noise_key_B is not None:
            sigma_b, key_b = self.noise_sigma_B[self.noisy_B], self.noise_key_B[self.noisy_B]
            x_BCSS = where_applies(self.noisy_B, x_BCSS, lambda x_bCSS: with_noise(x_bCSS, sigma_b, key_b))
        if self.sobel_B is not None:
            x_BCSS = where_applies(self.sobel_B, x_BCSS, gradient_magnitude)
        if self.cut_B is not None and self.boxes is not None:
            boxes, fill = self.boxes.of(self.cut_B), self.recipe.cutout_fill
            x_BCSS = where_applies(self.cut_B, x_BCSS, lambda x_bCSS: cut_out(x_bCSS, boxes, fill))
        return x_BCSS


def solarized(x_BCSS: Tensor, threshold: float) -> Tensor:
    """Invert values from the threshold upwards: x → 1 − x."""
    return torch.where(x_BCSS >= threshold, 1 - x_BCSS, x_BCSS)


def with_noise(x_BCSS: Tensor, sigma_B: Tensor, key_B: Tensor) -> Tensor:
    """Add Gaussian noise, the same in all channels of a pixel, and clip to 0–1.

    Args:
        x_BCSS: float [B, 3, S, S].
        sigma_B: standard deviation of the noise of each image.
        key_B: key of the noise of each image.
    """
    height, width = x_BCSS.shape[2:]
    noise_BP = gaussian(key_B.to(x_BCSS.device), height * width)
    noise_BP *= sigma_B.to(x_BCSS.device).view(-1, 1)
    return (x_BCSS + noise_BP.view(-1, 1, height, width)).clamp_(0, 1)


def gaussian(key_B: Tensor, count: int) -> Tensor:
    """Standard normal numbers [B, count], a function of key and position: the same on every device, for any split.

    A device's generator would give other numbers on each kind of device and would need a seed per image. This one is
    counter-based: a 32-bit hash mixes position and key (the finaliser "lowbias32", found by a search for low bias:
    nullprogram.com/blog/2018/07/31), and the inverse normal distribution turns 24 bits of the result into a number.

    Args:
        key_B: integers [B] from 0 to 2³¹ − 1.
        count: numbers per key.
    """
    position_P = torch.arange(count, dtype=torch.int32, device=key_B.device)
    mixed_BP = _mix(_mix(position_P) ^ key_B.to(torch.int32).view(-1, 1))
    # 24 bits as the midpoints of 2²⁴ equal parts of (−1, 1): odd numbers, which float32 represents exactly.
    odd_BP = ((mixed_BP >> 8) * 2 + 1).float()
    return odd_BP.mul_(2.0**-24).erfinv_().mul_(math.sqrt(2))


def _mix(x: Tensor) -> Tensor:
    """A permutation of the 32-bit integers in which every bit depends on every other; products wrap around.

    The integers are signed, so a right shift extends the sign; the masks remove it.
    """
    x = x ^ ((x >> 16) & 0xFFFF)
    x *= 0x7FEB352D
    x ^= (x >> 15) & 0x1FFFF
    x *= 0x846CA68B - 2**32
    x ^= (x >> 16) & 0xFFFF
    return x


def gradient_magnitude(x_BCSS: Tensor) -> Tensor:
    """Magnitude of each channel's gradient by the Sobel operator with replicated borders; an edge from 0 to 1 gives 1.

    Diagonal edges, which give up to √20 / 4, are clipped.
    """
    padded = F.pad(x_BCSS, (1, 1, 1, 1), mode="replicate")
    down = padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
    across = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    gradient_x, gradient_y = down[..., 2:] - down[..., :-2], across[..., 2:, :] - across[..., :-2, :]
    return torch.hypot(gradient_x, gradient_y).div_(4).clamp_(max=1)


def cut_out(x_BCSS: Tensor, boxes: Boxes, fill: str) -> Tensor:
    """Paint over a rectangle of each image: the pixels whose centres lie in it.

    Args:
        x_BCSS: float [B, 3, S, S].
        boxes: one rectangle per image.
        fill: "grey" for 0.5, "mean" for the image's mean colour.
    """
    size_px, device = x_BCSS.shape[3], x_BCSS.device
    centre_S = (torch.arange(size_px) + 0.5) / size_px
    rows_BS = (centre_S >= boxes.top_B.view(-1, 1)) & (centre_S < (boxes.top_B + boxes.height_B).view(-1, 1))
    columns_BS = (centre_S >= boxes.left_B.view(-1, 1)) & (centre_S < (boxes.left_B + boxes.width_B).view(-1, 1))
    inside_B1SS = rows_BS.to(device).view(-1, 1, size_px, 1) & columns_BS.to(device).view(-1, 1, 1, size_px)
    if fill == "mean":
        return torch.where(inside_B1SS, x_BCSS.mean((2, 3), keepdim=True), x_BCSS)
    return x_BCSS.masked_fill(inside_B1SS, _GREY)
