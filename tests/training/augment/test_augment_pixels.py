"""Solarize, noise, Sobel and cutout, compared with Pillow, NumPy and the statistics of many draws."""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from embedserve_training import augment
from embedserve_training.augment.draw import Boxes
from embedserve_training.augment.pixels import cut_out, gaussian, gradient_magnitude, solarized, with_noise
from tests.training.pictures import NOTHING, picture, picture_CSS, seeded, views

# --- Solarize ------------------------------------------------------------------------------------------------------


def test_solarize_is_that_of_pillow() -> None:
    [view] = views(replace(NOTHING, solarize=1.0), count=1)
    theirs = torch.from_numpy(np.array(ImageOps.solarize(Image.fromarray(picture()), 128)))
    # Resampling rounds in the seventh digit; no 8-bit value is that close to one half.
    torch.testing.assert_close(view, theirs.permute(2, 0, 1) / 255, atol=1e-5, rtol=0)


def test_the_threshold_itself_is_solarized() -> None:
    x = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    assert solarized(x, 0.5).tolist() == [0.0, 0.25, 0.5, 0.25, 0.0]
    assert solarized(x, 0.75).tolist() == [0.0, 0.25, 0.5, 0.25, 0.0]
    assert solarized(x, 0.25).tolist() == [0.0, 0.75, 0.5, 0.25, 0.0]


# --- Noise ---------------------------------------------------------------------------------------------------------


def test_noise_has_the_moments_and_the_tails_of_the_normal_distribution() -> None:
    z = gaussian(torch.randint(2**31 - 1, (40,), generator=seeded()), 25_000).double()
    # A million numbers: four standard errors of each.
    assert abs(float(z.mean())) < 4e-3
    assert abs(float(z.var()) - 1) < 4 * 2**0.5 * 1e-3
    assert abs(float((z**3).mean())) < 4 * 15**0.5 * 1e-3
    assert abs(float((z**4).mean()) - 3) < 4 * 96**0.5 * 1e-3
    for bound, share in [(0.0, 0.5), (1.0, 0.158655), (2.0, 0.022750), (3.0, 0.001350)]:
        error = 4 * (share * (1 - share)) ** 0.5 * 1e-3
        assert abs(float((z > bound).double().mean()) - share) < error
        assert abs(float((z < -bound).double().mean()) - share) < error


def test_noise_is_independent_between_pixels_and_between_images() -> None:
    # Consecutive keys too: images of a batch must not share a pattern.
    z = gaussian(torch.arange(1000), 1000).double()
    for lag in (1, 2, 28, 32):
        assert abs(float((z[:, lag:] * z[:, :-lag]).mean())) < 5e-3  # five standard errors
        assert abs(float((z[lag:] * z[:-lag]).mean())) < 5e-3
    correlation = (z @ z.T / 1000).fill_diagonal_(0)
    assert float(correlation.abs().max()) < 0.18  # half a million pairs, standard error 0.032: 5.7 of them
    between = (z.T @ z / 1000).fill_diagonal_(0)
    assert float(between.abs().max()) < 0.18


def test_noise_is_a_function_of_key_and_position() -> None:
    assert torch.equal(gaussian(torch.tensor([7, 8]), 50)[:, :20], gaussian(torch.tensor([7, 8]), 20))
    # The hash as published, in unsigned integers that do not overflow.
    assert gaussian(torch.tensor([12345]), 4)[0].tolist() == pytest.approx(
        [slow_gaussian(12345, position) for position in range(4)], abs=2e-5
    )


def slow_gaussian(key: int, position: int) -> float:
    mixed = lowbias32(lowbias32(position) ^ key)
    signed = mixed - 2**32 if mixed >= 2**31 else mixed
    return NormalDist().inv_cdf(((signed >> 8) + 2**23 + 0.5) / 2**24)


def lowbias32(x: int) -> int:
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    return x ^ (x >> 16)


def test_the_extremes_of_the_noise_are_finite() -> None:
    # 24 bits reach 5.4 standard deviations, not infinity.
    ends = torch.tensor([-(2.0**24) + 1, 2.0**24 - 1]) * 2.0**-24
    assert ends.abs().max() < 1
    assert bool(ends.erfinv().isfinite().all())
    assert float(gaussian(torch.arange(2000), 5000).abs().max()) < 5.5


def test_the_strength_of_the_noise_is_within_the_recipe_and_differs_between_images() -> None:
    recipe = replace(NOTHING, noise=1.0, noise_sigma=(0.02, 0.06), solarize=0.0)
    grey = torch.full((400, 32, 32, 3), 128, dtype=torch.uint8)
    sigma_B = augment.augment(grey, 32, recipe, seeded())[:, 0].flatten(1).std(1)
    # 1024 pixels: a standard error of 2.2 %.
    assert 0.018 < float(sigma_B.min()) < 0.023
    assert 0.057 < float(sigma_B.max()) < 0.066
    assert float(sigma_B.mean()) == pytest.approx(0.04, abs=0.003)


def test_noise_is_the_same_in_all_channels_and_clipped() -> None:
    x_BCSS = torch.rand(3, 1, 20, 20, generator=seeded()).expand(3, 3, 20, 20)
    noisy = with_noise(x_BCSS, torch.full((3,), 0.5), torch.arange(3))
    assert torch.equal(noisy[:, 0], noisy[:, 1])
    assert torch.equal(noisy[:, 0], noisy[:, 2])
    assert (float(noisy.min()), float(noisy.max())) == (0.0, 1.0)


# --- Sobel ---------------------------------------------------------------------------------------------------------


def test_sobel_is_the_length_of_the_gradient_of_each_channel() -> None:
    image = picture_CSS(20)
    kernel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    padded = np.pad(image.numpy(), ((0, 0), (1, 1), (1, 1)), mode="edge")
    expected = np.zeros_like(image.numpy())
    for channel, row, column in np.ndindex(expected.shape):
        around = padded[channel, row : row + 3, column : column + 3]
        expected[channel, row, column] = np.sqrt((around * kernel).sum() ** 2 + (around * kernel.T).sum() ** 2) / 4
    ours = gradient_magnitude(image[None])[0]
    torch.testing.assert_close(ours, torch.from_numpy(expected.clip(max=1)), atol=1e-5, rtol=0)


def test_an_edge_from_black_to_white_gives_one_on_both_sides_and_a_plain_area_zero() -> None:
    edge = torch.zeros(1, 1, 6, 6)
    edge[..., 3:] = 1
    for turned in (edge, edge.mT):
        expected = torch.zeros(1, 1, 6, 6)
        expected[..., 2:4] = 1
        torch.testing.assert_close(gradient_magnitude(turned), expected if turned is edge else expected.mT)


def test_a_corner_steeper_than_an_edge_is_clipped() -> None:
    corner = torch.zeros(1, 1, 4, 4)
    corner[..., 2:, 2:] = 1
    assert float(gradient_magnitude(corner).max()) == 1.0


# --- Cutout --------------------------------------------------------------------------------------------------------


def box(top: float, left: float, height: float, width: float) -> Boxes:
    return Boxes(
        top_B=torch.tensor([top]),
        left_B=torch.tensor([left]),
        height_B=torch.tensor([height]),
        width_B=torch.tensor([width]),
    )


def test_cutout_paints_the_pixels_whose_centres_lie_in_the_rectangle() -> None:
    x_BCSS = torch.rand(1, 3, 10, 10, generator=seeded())
    expected = x_BCSS.clone()
    expected[..., 2:5, 6:8] = 0.5
    assert torch.equal(cut_out(x_BCSS, box(0.2, 0.6, 0.3, 0.2), "grey"), expected)
    assert torch.equal(cut_out(x_BCSS, box(0.16, 0.64, 0.3, 0.2), "grey"), expected)  # less than half a pixel away


def test_cutout_with_the_mean_leaves_the_mean_colour_of_the_view() -> None:
    x_BCSS = torch.rand(1, 3, 10, 10, generator=seeded())
    cut = cut_out(x_BCSS, box(0.2, 0.6, 0.3, 0.2), "mean")
    torch.testing.assert_close(cut[0, :, 3, 7], x_BCSS[0].mean((1, 2)))
    assert int((cut != x_BCSS).any(1).sum()) == 6


def test_cutout_covers_the_areas_and_shapes_that_the_recipe_allows() -> None:
    recipe = replace(NOTHING, cutout=1.0, cutout_area=(0.05, 0.25), cutout_ratio=(0.5, 2.0))
    view = views(recipe, count=2000, size_px=64, side=64)
    # Without the few pixels that are 0.5 anyway.
    painted_BSS = ((view - 0.5).abs() < 1e-6).all(1)
    area_B = painted_BSS.float().mean((1, 2))
    height_B, width_B = painted_BSS.any(2).sum(1), painted_BSS.any(1).sum(1)
    assert 0.04 < float(area_B.min()) < 0.06
    assert 0.23 < float(area_B.max()) < 0.26
    assert float(area_B.mean()) == pytest.approx(0.15, abs=0.005)  # standard error 0.0013
    ratio_B = width_B / height_B
    assert 0.44 < float(ratio_B.min()) < 0.56
    assert 1.8 < float(ratio_B.max()) < 2.3
    # They reach every border.
    covered_SS = painted_BSS.any(0)
    assert all(bool(border.any()) for border in (covered_SS[0], covered_SS[-1], covered_SS[:, 0], covered_SS[:, -1]))


def test_cutout_is_the_last_operation() -> None:
    view = views(replace(NOTHING, cutout=1.0, noise=1.0, sobel=1.0, solarize=1.0), count=50)
    assert bool(((view == 0.5).all(1).float().mean((1, 2)) > 0.015).all())
