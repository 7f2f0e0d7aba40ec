"""Brightness, contrast, saturation, hue, grayscale and channel drop: affine maps of a pixel.

So all of them, in each image's random order, are one 3 × 3 matrix and one offset. As in NVIDIA DALI, the hue is rotated
in the YIQ plane instead of HSV, and values are clipped once at the end instead of after each operation.

Shapes: B images, C = 3 channels, P pixels, O = 4 operations of jitter, K operations in all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from embedserve_training.augment.draw import Draw
from embedserve_training.augment.recipe import Augmentation

LUMA = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in the grey of a pixel (ITU-R BT.601)."""
_GREY = 0.5


@dataclass(frozen=True, kw_only=True)
class Colour:
    """The colour operations of each image, in the image's own order.

    Each is ``x → M·x``; contrast also adds ``(1 − factor)`` times the mean grey of its input.
    """

    matrices_BKCC: Tensor
    grey_share_BK: Tensor
    kept_BC1: Tensor | None = None
    """1 for channels that are kept, 0 for those that become grey in the last step; None if all are kept."""

    @classmethod
    def draw(cls, recipe: Augmentation, draw: Draw) -> Colour:
        """Jitter in a random order for each image, then grayscale, then channel drop."""
        grey_CC = torch.tensor(LUMA).expand(3, 3)
        identity_CC = torch.eye(3)
        jitter_B = draw.applies(recipe.jitter)

        def factor(strength: float) -> Tensor:
            factor_B = draw.uniform(max(0.0, 1 - strength), 1 + strength)
            return torch.where(jitter_B, factor_B, 1.0).view(-1, 1, 1)

        brightness, contrast, saturation = factor(recipe.brightness), factor(recipe.contrast), factor(recipe.saturation)
        angle_B = draw.uniform(-recipe.hue, recipe.hue) * 2 * math.pi
        matrices_BOCC = torch.stack(
            [
                brightness * identity_CC,
                contrast * identity_CC,
                saturation * identity_CC + (1 - saturation) * grey_CC,
                hue_rotation(torch.where(jitter_B, angle_B, 0.0)),
            ],
            dim=1,
        )
        grey_share_BO = torch.zeros(draw.count, 4)
        grey_share_BO[:, 1] = 1 - contrast.view(-1)
        order_BO = draw.uniform(0, 1, 4).argsort(1)
        matrices_BOCC = matrices_BOCC.gather(1, order_BO.view(-1, 4, 1, 1).expand(-1, -1, 3, 3))
        grey_share_BO = grey_share_BO.gather(1, order_BO)

        grayscale_B11 = draw.applies(recipe.grayscale).view(-1, 1, 1)
        last_B1CC = torch.where(grayscale_B11, grey_CC, identity_CC).unsqueeze(1)
        kept_BC1 = None
        if recipe.channel_drop:
            dropped_B1 = draw.applies(recipe.channel_drop).view(-1, 1)
            kept_BC1 = torch.where(dropped_B1, F.one_hot(draw.integers(3), 3), 1).float().unsqueeze(2)
        return cls(
            matrices_BKCC=torch.cat([matrices_BOCC, last_B1CC], dim=1),
            grey_share_BK=F.pad(grey_share_BO, (0, 1)),
            kept_BC1=kept_BC1,
        )

    def apply(self, x_BCP: Tensor) -> Tensor:
        """Apply the operations to float [B, 3, P], as one matrix and one offset per image, without clipping."""
        device = x_BCP.device
        matrices_BKCC, grey_share_BK = self.matrices_BKCC.to(device), self.grey_share_BK.to(device)
        luma_C = torch.tensor(LUMA, device=device)
        mean_BC1 = x_BCP.mean(2, keepdim=True)
        matrix_BCC = torch.eye(3, device=device).expand(len(x_BCP), 3, 3)
        offset_BC1 = torch.zeros(len(x_BCP), 3, 1, device=device)
        for step in range(matrices_BKCC.shape[1]):
            mean_now_BC = (matrix_BCC @ mean_BC1 + offset_BC1).squeeze(2)
            added_B = grey_share_BK[:, step] * (mean_now_BC @ luma_C)
            matrix_BCC = matrices_BKCC[:, step] @ matrix_BCC
            offset_BC1 = matrices_BKCC[:, step] @ offset_BC1 + added_B.view(-1, 1, 1)
        if self.kept_BC1 is not None:
            kept_BC1 = self.kept_BC1.to(device)
            matrix_BCC = kept_BC1 * matrix_BCC
            offset_BC1 = kept_BC1 * offset_BC1 + (1 - kept_BC1) * _GREY
        return torch.baddbmm(offset_BC1, matrix_BCC, x_BCP)


def hue_rotation(angle_B: Tensor) -> Tensor:
    """Matrices [B, 3, 3] that rotate the colour plane of YIQ and preserve grey."""
    to_yiq = torch.tensor([LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)])
    # The rows of I and Q must sum to exactly zero, or grey would get a tint.
    to_yiq[1:] -= to_yiq[1:].mean(1, keepdim=True)
    turn_BCC = torch.zeros(len(angle_B), 3, 3)
    turn_BCC[:, 0, 0] = 1
    turn_BCC[:, 1, 1] = turn_BCC[:, 2, 2] = angle_B.cos()
    turn_BCC[:, 1, 2], turn_BCC[:, 2, 1] = -angle_B.sin(), angle_B.sin()
    rotation_BCC: Tensor = torch.linalg.inv(to_yiq) @ turn_BCC @ to_yiq
    return rotation_BCC
