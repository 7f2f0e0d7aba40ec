"""Random numbers for the images of a batch, drawn on the CPU so that a seed gives the same on every device."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_ATTEMPTS = 10


class Draw:
    """Draws for all images of the global batch, and returns the numbers of those in this process.

    Args:
        generator: a CPU generator.
        count: images in this process, B.
        first: position of the first of them in the global batch.
        total: size of the global batch.
    """

    def __init__(self, generator: torch.Generator, count: int, first: int, total: int) -> None:
        self.generator = generator
        self.count = count
        self.total = total
        self._own = slice(first, first + count)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Float [B, *shape] within low–high."""
        drawn = torch.rand(self.total, *shape, generator=self.generator)
        return drawn[self._own] * (high - low) + low

    def applies(self, probability: float) -> Tensor:
        """Bool [B], each True with this probability."""
        return torch.rand(self.total, generator=self.generator)[self._own] < probability

    def integers(self, end: int) -> Tensor:
        """Int64 [B] from 0 to ``end`` − 1."""
        return torch.randint(end, (self.total,), generator=self.generator)[self._own]

    def boxes(self, area: tuple[float, float], ratio: tuple[float, float]) -> Boxes:
        """Rectangles in a square, as RandomResizedCrop draws them.

        Area and aspect ratio are drawn up to ten times until the rectangle fits; otherwise it is the whole square.

        Args:
            area: minimum and maximum share of the square's area.
            ratio: minimum and maximum width / height; log-uniform.
        """
        area_BA = self.uniform(*area, _ATTEMPTS)
        ratio_BA = self.uniform(math.log(ratio[0]), math.log(ratio[1]), _ATTEMPTS).exp()
        width_BA, height_BA = (area_BA * ratio_BA).sqrt(), (area_BA / ratio_BA).sqrt()
        fits_BA = (width_BA <= 1) & (height_BA <= 1)
        first_B1 = fits_BA.int().argmax(1, keepdim=True)
        never_B = ~fits_BA.any(1)
        width_B = width_BA.gather(1, first_B1).squeeze(1).masked_fill(never_B, 1.0)
        height_B = height_BA.gather(1, first_B1).squeeze(1).masked_fill(never_B, 1.0)
        top_B = self.uniform(0, 1) * (1 - height_B)
        left_B = self.uniform(0, 1) * (1 - width_B)
        return Boxes(top_B=top_B, left_B=left_B, height_B=height_B, width_B=width_B)


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """One rectangle per image, in shares of the square's side."""

    top_B: Tensor
    left_B: Tensor
    height_B: Tensor
    width_B: Tensor

    def of(self, chosen_B: Tensor) -> Boxes:
        """The rectangles of the chosen images."""
        return Boxes(
            top_B=self.top_B[chosen_B],
            left_B=self.left_B[chosen_B],
            height_B=self.height_B[chosen_B],
            width_B=self.width_B[chosen_B],
        )
