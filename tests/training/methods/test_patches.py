"""The positions of patches, and the part of them that training shows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from embedserve_training.distributed.collectives import SINGLE_PROCESS, Processes
from embedserve_training.methods.patches import Patches, crop_and_pad
from tests.training.method_cases import seeded


def numbered(batch: int, side: int) -> Tensor:
    """Images in which every pixel has a different value within 0–1: float [B, 3, S, S]."""
    count = batch * 3 * side * side
    return (torch.arange(count, dtype=torch.float64) / count).view(batch, 3, side, side)


@pytest.mark.parametrize(
    ("size_px", "patch_px", "grid", "firsts"),
    [
        (20, 12, 3, [0, 4, 8]),
        (256, 64, 7, [0, 32, 64, 96, 128, 160, 192]),  # arXiv 1807.03748, section 3.2: 7 × 7 patches, 32 px overlap
        (28, 12, 5, [0, 4, 8, 12, 16]),
        (10, 4, 3, [0, 3, 6]),
        (9, 4, 3, [0, 3, 5]),  # 2.5 is rounded up
        (16, 16, 2, [0, 0]),
    ],
)
def test_patches_are_spread_evenly_and_cut_row_by_row(
    size_px: int, patch_px: int, grid: int, firsts: list[int]
) -> None:
    images_BCSS = numbered(2, size_px)
    patches_NCPP = Patches(size_px=size_px, patch_px=patch_px, grid=grid).cut(images_BCSS)
    expected = [
        images_BCSS[image, :, y : y + patch_px, x : x + patch_px] for image in range(2) for y in firsts for x in firsts
    ]
    assert torch.equal(patches_NCPP, torch.stack(expected))


@pytest.mark.parametrize("size_px", range(12, 40))
@pytest.mark.parametrize("grid", [2, 3, 5, 7])
def test_patches_cover_the_borders_at_every_size(size_px: int, grid: int) -> None:
    images_BCSS = numbered(1, size_px)
    patches_NCPP = Patches(size_px=size_px, patch_px=12, grid=grid).cut(images_BCSS)
    assert patches_NCPP.shape == (grid**2, 3, 12, 12)
    assert torch.equal(patches_NCPP[0, :, 0, 0], images_BCSS[0, :, 0, 0])
    assert torch.equal(patches_NCPP[-1, :, -1, -1], images_BCSS[0, :, -1, -1])
    assert torch.equal(patches_NCPP[grid - 1, :, 0, -1], images_BCSS[0, :, 0, -1])


def slowly(patches_NCPP: Tensor, generator: torch.Generator, total: int, first: int) -> Tensor:
    """Pixel by pixel: grey, and in the middle the crop at a drawn position."""
    count, _, side, _ = patches_NCPP.shape
    kept = round(side * 60 / 64)
    margin = (side - kept) // 2
    offsets = torch.randint(side - kept + 1, (total, 2), generator=generator)[first : first + count].tolist()
    shown_NCPP = torch.full_like(patches_NCPP, 0.5)
    for number, (down, right) in enumerate(offsets):
        for y in range(kept):
            for x in range(kept):
                shown_NCPP[number, :, margin + y, margin + x] = patches_NCPP[number, :, down + y, right + x]
    return shown_NCPP


@pytest.mark.parametrize("side", [9, 12, 16, 64])
def test_60_of_64_pixels_at_a_random_place_are_shown_with_grey_around(side: int) -> None:
    patches_NCPP = numbered(5, side)
    shown_NCPP = crop_and_pad(patches_NCPP, seeded(2), SINGLE_PROCESS)
    assert torch.equal(shown_NCPP, slowly(patches_NCPP, seeded(2), 5, 0))


def test_of_64_pixels_60_are_shown_and_all_25_places_occur() -> None:
    patches_NCPP = numbered(1, 64).expand(500, -1, -1, -1)
    shown_NCPP = crop_and_pad(patches_NCPP, seeded(), SINGLE_PROCESS)
    assert torch.equal(shown_NCPP[:, :, :2], torch.full_like(shown_NCPP[:, :, :2], 0.5))
    assert torch.equal(shown_NCPP[:, :, :, 62:], torch.full_like(shown_NCPP[:, :, :, 62:], 0.5))
    corners = {float(corner) for corner in shown_NCPP[:, 0, 2, 2]}
    assert corners == {float(patches_NCPP[0, 0, y, x]) for y in range(5) for x in range(5)}


def test_patches_in_two_processes_equal_those_in_one() -> None:
    patches_NCPP = numbered(6, 16)
    whole_NCPP = crop_and_pad(patches_NCPP, seeded(1), SINGLE_PROCESS)
    parts = [crop_and_pad(patches_NCPP.chunk(3)[rank], seeded(1), Processes(rank, 3)) for rank in range(3)]
    assert torch.equal(torch.cat(parts), whole_NCPP)
