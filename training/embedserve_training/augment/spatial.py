"""Crop, resize, rotation, flips, quarter turns and blur: operations that move or mix pixels and preserve constants.

Crop, resize, flips and blur are linear maps along each axis, so they are ``A_y · image · A_xᵀ`` with one pair of small
matrices per image: exact antialiased resampling at any scale, as in Pillow, in two batched matrix products. A rotation
is no such product. It is a second resampling, of a view with a margin; at equal pixel pitch it needs no antialiasing.
Quarter turns are flips and a transposition, which move pixels unchanged.

Shapes: B images, C = 3 channels, T side of the cached image, S side of the view, E side of the view before rotation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from embedserve_training.augment.draw import Boxes, Draw
from embedserve_training.augment.recipe import Augmentation


@dataclass(frozen=True, kw_only=True)
class Spatial:
    """The source of the pixels of each view."""

    crop: Boxes
    mirrored_B: Tensor
    """Whether columns are reversed, by flips and quarter turns together."""
    upended_B: Tensor | None
    """Whether rows are reversed, in the same way; None if no view's are."""
    transposed_B: Tensor | None
    """Whether rows become columns, in the last step; None if no view is transposed."""
    angle_B: Tensor | None
    """Radians, counter-clockwise, after the flips; None if no view is rotated."""
    max_angle: float
    """Largest angle that the recipe allows, in radians."""
    blurred_B: Tensor
    sigma_B: Tensor
    """Standard deviation of the blur, in pixels."""

    @classmethod
    def draw(cls, recipe: Augmentation, draw: Draw) -> Spatial:
        """Parameters for each image. Operations that the recipe does not use draw no random numbers."""
        crop = draw.boxes(recipe.crop_scale, recipe.crop_ratio)
        mirrored_B = draw.applies(recipe.flip)
        upended_B = draw.applies(recipe.vertical_flip) if recipe.vertical_flip else None
        transposed_B = angle_B = None
        if recipe.quarter_turns:
            turns_B = (1 + draw.integers(3)) * draw.applies(recipe.quarter_turns)
            # A turn by 90° reverses columns, then transposes; one by 270° reverses rows, then transposes.
            mirrored_B = mirrored_B ^ (turns_B == 1) ^ (turns_B == 2)
            upended_B = (turns_B >= 2) if upended_B is None else upended_B ^ (turns_B >= 2)
            transposed_B = turns_B % 2 == 1
        if recipe.rotation:
            angle_B = draw.uniform(-math.radians(recipe.rotation), math.radians(recipe.rotation))
            # Flips are computed first; a rotation before a flip equals the opposite rotation after it.
            one_flip_B = mirrored_B if upended_B is None else mirrored_B ^ upended_B
            angle_B = torch.where(one_flip_B, -angle_B, angle_B)
        blurred_B = draw.applies(recipe.blur)
        return cls(
            crop=crop,
            mirrored_B=mirrored_B,
            upended_B=upended_B,
            transposed_B=transposed_B,
            angle_B=angle_B,
            max_angle=math.radians(recipe.rotation),
            blurred_B=blurred_B,
            sigma_B=draw.uniform(*recipe.blur_sigma),
        )

    def apply(self, images_BTTC: Tensor, size_px: int) -> Tensor:
        """The views, float [B, 3, S, S]; bicubic weights exceed 0–1 a little.

        Args:
            images_BTTC: uint8 [B, T, T, 3].
            size_px: S.
        """
        batch, source_px = images_BTTC.shape[:2]
        device = images_BTTC.device
        margin = 0 if self.angle_B is None else rotation_margin(size_px, self.max_angle)
        where = (source_px, size_px, margin, device)
        rows_BET = resampling(self.crop.top_B, self.crop.height_B, self.upended_B, *where)
        columns_BET = resampling(self.crop.left_B, self.crop.width_B, self.mirrored_B, *where)

        blurred = self.blurred_B.nonzero().squeeze(1)
        if len(blurred):
            blur_BEE = blurring(self.sigma_B[blurred].to(device), size_px, margin)
            rows_BET = where_applies(self.blurred_B, rows_BET, lambda some_BET: blur_BEE @ some_BET)
            columns_BET = where_applies(self.blurred_B, columns_BET, lambda some_BET: blur_BEE @ some_BET)

        side = size_px + 2 * margin
        x_BCTT = images_BTTC.permute(0, 3, 1, 2).float().div_(255)
        x_BCTE = (x_BCTT.reshape(batch, -1, source_px) @ columns_BET.mT).view(batch, 3, source_px, side)
        x_BCEE = rows_BET.unsqueeze(1) @ x_BCTE
        x_BCSS = x_BCEE if self.angle_B is None else rotated(x_BCEE, self.angle_B.to(device), size_px)
        if self.transposed_B is not None:
            x_BCSS = torch.where(self.transposed_B.to(device).view(-1, 1, 1, 1), x_BCSS.mT, x_BCSS)
        return x_BCSS


def where_applies(applies_B: Tensor, x_BX: Tensor, operation: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply ``operation`` to the chosen images of a batch, without spending time on the others.

    Args:
        applies_B: bool [B], on the CPU, so that nothing waits for a GPU.
        x_BX: [B, …]; may be changed in place.
        operation: takes and returns [b, …].
    """
    chosen = applies_B.nonzero().squeeze(1)
    if len(chosen) == len(x_BX):
        return operation(x_BX)
    if len(chosen):
        chosen = chosen.to(x_BX.device)
        x_BX[chosen] = operation(x_BX[chosen])
    return x_BX


def resampling(
    start_B: Tensor,
    extent_B: Tensor,
    reversed_B: Tensor | None,
    source_px: int,
    size_px: int,
    margin: int,
    device: torch.device,
) -> Tensor:
    """Matrices [B, E, T] that resample an interval of T pixels to S: bicubic with antialiasing, as in Pillow.

    The kernel (a = −0.5) is as wide as a target pixel if that is wider than a source pixel. Weights outside the image
    are dropped and the others rescaled to a sum of one.

    Args:
        start_B: start of the interval, as a share of the side.
        extent_B: its length, as a share of the side.
        reversed_B: whether the S pixels are in reverse order; None if no image's are.
        source_px: T.
        size_px: S.
        margin: pixels added on both sides, E = S + 2 · margin; beyond the image they mirror it.
        device: device of the matrices.
    """
    start_B11 = (start_B * source_px).to(device).view(-1, 1, 1)
    scale_B11 = (extent_B * source_px / size_px).to(device).view(-1, 1, 1)
    target_E1 = torch.arange(-margin, size_px + margin, device=device).view(-1, 1) + 0.5
    if reversed_B is not None:
        target_E1 = torch.where(reversed_B.to(device).view(-1, 1, 1), size_px - target_E1, target_E1)
    centre_BE1 = start_B11 + target_E1 * scale_B11
    if margin:
        centre_BE1 = source_px - (source_px - centre_BE1.remainder(2 * source_px)).abs()
    source_T = torch.arange(source_px, device=device) + 0.5
    distance_BET = ((source_T - centre_BE1) / scale_B11.clamp(min=1)).abs()
    weight_BET = _bicubic(distance_BET)
    return weight_BET / weight_BET.sum(2, keepdim=True)


def _bicubic(x: Tensor) -> Tensor:
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def blurring(sigma_B: Tensor, size_px: int, margin: int = 0) -> Tensor:
    """Matrices [B, E, E] that blur views of E = S + 2 · margin pixels along one axis."""
    radius = max(size_px // 20, 1)
    position_E = torch.arange(size_px + 2 * margin, device=sigma_B.device)
    offset_EE = (position_E.view(-1, 1) - position_E).abs()
    exponent_BEE = -0.5 * (offset_EE / sigma_B.clamp(min=1e-3).view(-1, 1, 1)) ** 2
    weight_BEE = exponent_BEE.exp().masked_fill(offset_EE > radius, 0.0)
    return weight_BEE / weight_BEE.sum(2, keepdim=True)


def rotation_margin(size_px: int, max_angle: float) -> int:
    """Pixels to add on each side of a view of S so that it stays filled when rotated by ``max_angle`` radians."""
    angle = min(max_angle, math.pi / 4)  # a square's corners reach farthest at 45°
    # Two more for the kernel.
    return math.ceil(size_px / 2 * (math.cos(angle) + math.sin(angle) - 1)) + 2


def rotated(x_BCEE: Tensor, angle_B: Tensor, size_px: int) -> Tensor:
    """The central S × S pixels after a rotation of each image about its centre: float [B, 3, S, S], bicubic.

    Args:
        x_BCEE: float [B, 3, E, E].
        angle_B: radians, counter-clockwise.
        size_px: S.
    """
    # In units of grid_sample, where −1 and 1 are the borders of the larger image.
    cos_B, sin_B = angle_B.cos() * size_px / x_BCEE.shape[3], angle_B.sin() * size_px / x_BCEE.shape[3]
    zero_B = torch.zeros_like(angle_B)
    turn_B23 = torch.stack([cos_B, -sin_B, zero_B, sin_B, cos_B, zero_B], dim=1).view(-1, 2, 3)
    grid_BSS2 = F.affine_grid(turn_B23, [len(angle_B), 3, size_px, size_px], align_corners=False)
    return F.grid_sample(x_BCEE, grid_BSS2, mode="bicubic", padding_mode="border", align_corners=False)
