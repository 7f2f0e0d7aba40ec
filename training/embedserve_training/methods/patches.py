"""Images as grids of overlapping patches.

Shapes: B images, C = 3 channels, S side of the image, G × G patches of P × P pixels in each, N = B·G·G patches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from embedserve_training.distributed.collectives import Processes

_KEPT = 60 / 64
"""Share of a patch's side that training shows (arXiv 1807.03748, section 3.2)."""


@dataclass(frozen=True, kw_only=True)
class Patches:
    """How an image is cut: the first and last patch touch the borders, the others are evenly spaced between them."""

    size_px: int
    """S."""
    patch_px: int
    """P."""
    grid: int
    """G."""

    def _positions(self, device: torch.device) -> Tensor:
        """The pixels of each patch along one side, [G, P]."""
        # In integers: devices may round a half differently, and would cut different patches.
        room, gaps = self.size_px - self.patch_px, self.grid - 1
        first_G = (2 * room * torch.arange(self.grid, device=device) + gaps) // (2 * gaps)
        return first_G.view(-1, 1) + torch.arange(self.patch_px, device=device)

    def cut(self, images_BCSS: Tensor) -> Tensor:
        """The patches of each image, row by row: float [B, 3, S, S] → [N, 3, P, P]."""
        position_GP = self._positions(images_BCSS.device)
        patches_BCGPGP = images_BCSS[:, :, position_GP][..., position_GP]
        return patches_BCGPGP.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def crop_and_pad(patches_NCPP: Tensor, generator: torch.Generator, processes: Processes) -> Tensor:
    """Show a random crop of 60 of the 64 pixels along each side of a patch, padded with grey.

    So the encoder cannot recognise neighbours by edges that continue from one to the other (arXiv 1807.03748,
    section 3.2).

    Args:
        patches_NCPP: float [N, 3, P, P] within [0, 1].
        generator: a CPU generator, in the same state in every process.
        processes: random numbers are drawn for all of them, and each takes its own.
    """
    count, side = patches_NCPP.shape[0], patches_NCPP.shape[2]
    kept = round(side * _KEPT)
    before = (side - kept) // 2
    drawn_M2 = torch.randint(side - kept + 1, (count * processes.count, 2), generator=generator)
    offset_N2 = processes.own_rows(drawn_M2).to(patches_NCPP.device)
    place_P = torch.arange(side, device=patches_NCPP.device) - before
    shown_P = (place_P >= 0) & (place_P < kept)
    source_N2P = (offset_N2.unsqueeze(2) + place_P).clamp(0, side - 1)
    rows_N1P1, columns_N11P = source_N2P[:, 0, None, :, None], source_N2P[:, 1, None, None, :]
    moved_NCPP = patches_NCPP.gather(2, rows_N1P1.expand_as(patches_NCPP)).gather(
        3, columns_N11P.expand_as(patches_NCPP)
    )
    return torch.where(shown_P.view(-1, 1) & shown_P, moved_NCPP, 0.5)
