"""SimCLR's augmentations, batched on the training device, with parameters of their own for every image.

The spatial ones (crop, resize, flip, blur) are linear maps along each axis, so a view is ``A_y · image · A_xᵀ`` with
one pair of small matrices per image: exact antialiased resampling at any scale, as Pillow computes it, in two batched
matrix products. The colour ones (brightness, contrast, saturation, hue, grayscale) are affine maps of a pixel, so their
product in each image's random order is one 3 × 3 matrix and one offset. Blurring leaves constants as they are, so the
two parts may be exchanged, and blur joins the resampling.

Two things differ from the authors' code: values are clipped to [0, 1] once at the end and not after each colour
operation, and hue turns in the YIQ plane, not in HSV. Both are what NVIDIA DALI does for the same recipe.

Shapes: B images, C = 3 channels, T side of the cached image, S side of the view.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from embedserve_training.augment.presets import PRESETS as PRESETS
from embedserve_training.augment.recipe import Augmentation as Augmentation

_LUMA = (0.299, 0.587, 0.114)
_ATTEMPTS = 10


def augment(
    images_BTTC: Tensor,
    size_px: int,
    recipe: Augmentation,
    generator: torch.Generator,
    *,
    first: int = 0,
    total: int | None = None,
) -> Tensor:
    """One view of each image.

    All random numbers are drawn on the CPU, so that a seed gives the same views on every device.

    Args:
        images_BTTC: uint8 [B, T, T, 3].
        size_px: S.
        recipe: what applies.
        generator: a CPU generator; the views are a function of its state.
        first: position of the first of these images in the whole batch, if other processes hold the rest of it.
        total: size of the whole batch; B if left out.

    Returns:
        Float [B, 3, S, S] within [0, 1], in channels-last memory format.
    """
    batch, source_px = images_BTTC.shape[0], images_BTTC.shape[1]
    device = images_BTTC.device
    top_B, left_B, height_B, width_B = _draw_crops(batch, recipe, generator)
    flip_B = torch.rand(batch, generator=generator) < recipe.flip
    sigma_B = _draw_blur(batch, recipe, generator)
    colour = _draw_colour(batch, recipe, generator).to(device)

    rows_BST = _resampling(top_B, height_B, source_px, size_px, device)
    columns_BST = _resampling(left_B, width_B, source_px, size_px, device)
    columns_BST = torch.where(flip_B.to(device).view(-1, 1, 1), columns_BST.flip(1), columns_BST)
    if recipe.blur > 0:
        blur_BSS = _blurring(sigma_B.to(device), size_px)
        rows_BST, columns_BST = blur_BSS @ rows_BST, blur_BSS @ columns_BST

    x_BCTT = images_BTTC.permute(0, 3, 1, 2).float().div_(255)
    x_BCTS = (x_BCTT.reshape(batch, -1, source_px) @ columns_BST.mT).view(batch, 3, source_px, size_px)
    x_BCSS = rows_BST.unsqueeze(1) @ x_BCTS
    view_BCP = colour.apply(x_BCSS.flatten(2)).clamp_(0, 1)
    return view_BCP.view(batch, 3, size_px, size_px).contiguous(memory_format=torch.channels_last)


def _uniform(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator) * (high - low) + low


def _draw_crops(batch: int, recipe: Augmentation, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Top, left, height and width of each crop, [B], as shares of the image's side.

    As RandomResizedCrop: area and shape are drawn up to ten times until the crop fits, else the whole image is used.
    """
    shape = (batch, _ATTEMPTS)
    area = _uniform(*recipe.crop_scale, shape, generator)
    ratio = _uniform(math.log(recipe.crop_ratio[0]), math.log(recipe.crop_ratio[1]), shape, generator).exp()
    width, height = (area * ratio).sqrt(), (area / ratio).sqrt()
    fits = (width <= 1) & (height <= 1)
    first = fits.int().argmax(1, keepdim=True)
    never_B = ~fits.any(1)
    width_B = width.gather(1, first).squeeze(1).masked_fill(never_B, 1.0)
    height_B = height.gather(1, first).squeeze(1).masked_fill(never_B, 1.0)
    top_B = torch.rand(batch, generator=generator) * (1 - height_B)
    left_B = torch.rand(batch, generator=generator) * (1 - width_B)
    return top_B, left_B, height_B, width_B


def _resampling(start_B: Tensor, extent_B: Tensor, source_px: int, size_px: int, device: torch.device) -> Tensor:
    """Matrices [B, S, T] that resample a stretch of T pixels to S: bicubic with antialiasing, as Pillow does it.

    The kernel (a = −0.5) is as wide as a target pixel where that is wider than a source pixel. Weights outside of the
    image are left out and the rest scaled up to a sum of one.
    """
    start_B11 = (start_B * source_px).to(device).view(-1, 1, 1)
    scale_B11 = (extent_B * source_px / size_px).to(device).view(-1, 1, 1)
    target_S1 = torch.arange(size_px, device=device).view(-1, 1) + 0.5
    source_T = torch.arange(source_px, device=device) + 0.5
    distance_BST = ((source_T - (start_B11 + target_S1 * scale_B11)) / scale_B11.clamp(min=1)).abs()
    weight_BST = _bicubic(distance_BST)
    return weight_BST / weight_BST.sum(2, keepdim=True)


def _bicubic(x: Tensor) -> Tensor:
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _draw_blur(batch: int, recipe: Augmentation, generator: torch.Generator) -> Tensor:
    """Standard deviations [B] in pixels; zero where a view is not blurred."""
    applies_B = torch.rand(batch, generator=generator) < recipe.blur
    return torch.where(applies_B, _uniform(*recipe.blur_sigma, (batch,), generator), 0.0)


def _blurring(sigma_B: Tensor, size_px: int) -> Tensor:
    """Matrices [B, S, S] that blur along one axis; the identity where sigma is zero."""
    radius = max(size_px // 20, 1)
    position_S = torch.arange(size_px, device=sigma_B.device)
    offset_SS = (position_S.view(-1, 1) - position_S).abs()
    exponent_BSS = -0.5 * (offset_SS / sigma_B.clamp(min=1e-3).view(-1, 1, 1)) ** 2
    weight_BSS = exponent_BSS.exp().masked_fill(offset_SS > radius, 0.0)
    return weight_BSS / weight_BSS.sum(2, keepdim=True)


@dataclass(frozen=True)
class _Colour:
    """The colour operations of each image in its own order.

    Each is ``x → M·x``; contrast also adds ``(1 − factor)`` times the mean grey of what it is given.
    """

    matrices_BKCC: Tensor
    grey_share_BK: Tensor
    grey_CC: Tensor

    def to(self, device: torch.device) -> _Colour:
        return _Colour(self.matrices_BKCC.to(device), self.grey_share_BK.to(device), self.grey_CC.to(device))

    def apply(self, x_BCP: Tensor) -> Tensor:
        """The operations applied to float [B, 3, pixels], as one matrix and one offset per image."""
        luma_C = self.grey_CC[0]
        mean_BC = x_BCP.mean(2)
        matrix_BCC = torch.eye(3, device=x_BCP.device).expand(len(x_BCP), 3, 3)
        offset_BC1 = torch.zeros(len(x_BCP), 3, 1, device=x_BCP.device)
        for step in range(self.matrices_BKCC.shape[1]):
            mean_now_BC = (matrix_BCC @ mean_BC.unsqueeze(2) + offset_BC1).squeeze(2)
            added_B = self.grey_share_BK[:, step] * (mean_now_BC @ luma_C)
            matrix_BCC = self.matrices_BKCC[:, step] @ matrix_BCC
            offset_BC1 = self.matrices_BKCC[:, step] @ offset_BC1 + added_B.view(-1, 1, 1)
        return torch.baddbmm(offset_BC1, matrix_BCC, x_BCP)


def _draw_colour(batch: int, recipe: Augmentation, generator: torch.Generator) -> _Colour:
    """Brightness, contrast, saturation and hue in a random order for each image, then grayscale."""
    grey_CC = torch.tensor(_LUMA).expand(3, 3)
    identity_CC = torch.eye(3)
    jitter_B = torch.rand(batch, generator=generator) < recipe.jitter

    def factor(strength: float) -> Tensor:
        factor_B = _uniform(max(0.0, 1 - strength), 1 + strength, (batch,), generator)
        return torch.where(jitter_B, factor_B, 1.0).view(-1, 1, 1)

    brightness, contrast, saturation = factor(recipe.brightness), factor(recipe.contrast), factor(recipe.saturation)
    angle_B = _uniform(-recipe.hue, recipe.hue, (batch,), generator) * 2 * math.pi
    matrices_BOCC = torch.stack(
        [
            brightness * identity_CC,
            contrast * identity_CC,
            saturation * identity_CC + (1 - saturation) * grey_CC,
            _hue_rotation(torch.where(jitter_B, angle_B, 0.0)),
        ],
        dim=1,
    )
    grey_share_BO = torch.zeros(batch, 4)
    grey_share_BO[:, 1] = 1 - contrast.view(-1)
    order_BO = torch.rand(batch, 4, generator=generator).argsort(1)
    matrices_BOCC = matrices_BOCC.gather(1, order_BO.view(batch, 4, 1, 1).expand(-1, -1, 3, 3))
    grey_share_BO = grey_share_BO.gather(1, order_BO)

    grayscale_B = torch.rand(batch, generator=generator) < recipe.grayscale
    last_B1CC = torch.where(grayscale_B.view(-1, 1, 1), grey_CC, identity_CC).unsqueeze(1)
    return _Colour(
        torch.cat([matrices_BOCC, last_B1CC], dim=1), torch.cat([grey_share_BO, torch.zeros(batch, 1)], dim=1), grey_CC
    )


def _hue_rotation(angle_B: Tensor) -> Tensor:
    """Matrices [B, 3, 3] that turn the colour plane of YIQ; they leave grey as it is."""
    to_yiq = torch.tensor([_LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)])
    # The rows of I and Q have to sum to exactly zero, or grey would take on a tint.
    to_yiq[1:] -= to_yiq[1:].mean(1, keepdim=True)
    turn_BCC = torch.zeros(len(angle_B), 3, 3)
    turn_BCC[:, 0, 0] = 1
    turn_BCC[:, 1, 1] = turn_BCC[:, 2, 2] = angle_B.cos()
    turn_BCC[:, 1, 2], turn_BCC[:, 2, 1] = -angle_B.sin(), angle_B.sin()
    rotation_BCC: Tensor = torch.linalg.inv(to_yiq) @ turn_BCC @ to_yiq
    return rotation_BCC
