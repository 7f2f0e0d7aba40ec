"""Crop, resize, rotation, flips, quarter turns and blur, compared with Pillow, torchvision and hand calculation."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from embedserve_training import augment
from embedserve_training.augment import Augmentation
from embedserve_training.augment.draw import Draw
from embedserve_training.augment.spatial import (
    Spatial,
    blurring,
    resampling,
    rotated,
    rotation_margin,
    where_applies,
)
from tests.training.pictures import NOTHING, picture, picture_CSS, seeded, views

CPU = torch.device("cpu")


def matrix(start: float, extent: float, source_px: int, size_px: int, margin: int = 0) -> torch.Tensor:
    """One resampling matrix [E, T]."""
    return resampling(torch.tensor([start]), torch.tensor([extent]), None, source_px, size_px, margin, CPU)[0]


# --- Crop and resize -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "extent"), [(0.0, 1.0), (0.2, 0.5), (0.6, 0.31), (0.05, 0.9)])
@pytest.mark.parametrize("size_px", [8, 20, 48])
def test_crop_and_resize_are_those_of_pillow_up_and_down(start: float, extent: float, size_px: int) -> None:
    source = picture(40)
    rows = matrix(start, extent, 40, size_px)
    ours = torch.einsum("sh,hwc,tw->stc", rows, torch.from_numpy(source).float(), rows).clamp(0, 255)
    box = (start * 40, start * 40, (start + extent) * 40, (start + extent) * 40)
    theirs = np.asarray(Image.fromarray(source).resize((size_px, size_px), Image.Resampling.BICUBIC, box))
    # Pillow rounds and clips to integers after each axis; otherwise the two agree.
    difference = np.abs(ours.numpy() - theirs)
    assert difference.max() <= 4
    assert difference.mean() < 0.5


def test_crops_cover_the_area_and_shape_that_the_recipe_allows() -> None:
    crop = Draw(seeded(), 5000, 0, 5000).boxes((0.08, 1.0), (3 / 4, 4 / 3))
    area, ratio = crop.height_B * crop.width_B, crop.width_B / crop.height_B
    assert 0.08 <= float(area.min()) < 0.09
    assert 0.95 < float(area.max()) <= 1.0
    assert float(ratio.min()) >= 0.75 - 1e-6
    assert float(ratio.max()) <= 4 / 3 + 1e-6
    assert float(crop.top_B.min()) >= 0
    assert float(crop.left_B.min()) >= 0
    assert float((crop.top_B + crop.height_B).max()) <= 1 + 1e-6
    assert float((crop.left_B + crop.width_B).max()) <= 1 + 1e-6


def test_a_crop_that_cannot_fit_is_the_whole_image() -> None:
    crop = Draw(seeded(), 3, 0, 3).boxes((0.9, 0.9), (4.0, 4.0))
    assert crop.width_B.tolist() == crop.height_B.tolist() == [1.0] * 3
    assert crop.top_B.tolist() == crop.left_B.tolist() == [0.0] * 3


def test_a_view_smaller_than_the_cached_image_shows_no_moire() -> None:
    # An eighth of the resolution cannot show stripes of one pixel, only their mean.
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    view = augment.augment(torch.from_numpy(stripes)[None], 8, NOTHING, seeded())
    torch.testing.assert_close(view, torch.full_like(view, 0.5), atol=0.02, rtol=0)


def test_a_rotated_view_smaller_than_the_cached_image_shows_no_moire() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    images = torch.from_numpy(stripes).expand(8, 64, 64, 3)
    view = augment.augment(images, 8, replace(NOTHING, rotation=45.0), seeded())
    torch.testing.assert_close(view, torch.full_like(view, 0.5), atol=0.04, rtol=0)


# --- Flips and quarter turns ---------------------------------------------------------------------------------------


def test_flips_mirror_left_and_right_in_about_half_of_the_views() -> None:
    view = views(replace(NOTHING, flip=0.5), count=400)
    flipped = (view - picture_CSS().flip(2)).abs().amax((1, 2, 3)) < 1e-5
    unchanged = (view - picture_CSS()).abs().amax((1, 2, 3)) < 1e-5
    assert bool((flipped ^ unchanged).all())
    assert 0.4 < float(flipped.float().mean()) < 0.6


def test_a_vertical_flip_turns_the_image_upside_down() -> None:
    [view] = views(replace(NOTHING, vertical_flip=1.0), count=1)
    torch.testing.assert_close(view, picture_CSS().flip(1), atol=1e-5, rtol=0)


def test_quarter_turns_come_in_thirds_and_after_the_flips() -> None:
    view = views(replace(NOTHING, flip=1.0, quarter_turns=1.0), count=900)
    turned = [torch.rot90(picture_CSS().flip(2), k, (1, 2)) for k in (1, 2, 3)]
    found = [int(((view - one).abs().amax((1, 2, 3)) < 1e-5).sum()) for one in turned]
    assert sum(found) == 900
    assert all(240 < times < 360 for times in found)  # 300 ± 14


# --- Rotation ------------------------------------------------------------------------------------------------------


def disc(size_px: int) -> np.ndarray:
    """Pixels that stay in a view at any rotation, at some distance from its border: bool [S, S]."""
    offset = np.arange(size_px) - (size_px - 1) / 2
    return np.hypot(offset[:, None], offset) < size_px / 2 - 3


@pytest.mark.parametrize("degrees", [-170.0, -30.0, 5.0, 45.0, 90.0])
def test_a_rotation_is_that_of_pillow(degrees: float) -> None:
    source = picture(64)
    margin = rotation_margin(64, math.radians(180))
    rows = matrix(0.0, 1.0, 64, 64, margin)
    wide = torch.einsum("eh,hwc,fw->cef", rows, torch.from_numpy(source).float(), rows)
    [ours] = rotated(wide[None], torch.tensor([math.radians(degrees)]), 64)
    channels = [Image.fromarray(source[..., c].astype(np.float32)) for c in range(3)]
    theirs = np.stack([np.asarray(one.rotate(degrees, Image.Resampling.BICUBIC)) for one in channels])
    difference = np.abs(ours.numpy() - theirs)[:, disc(64)]
    # Two kernels: Pillow's a is −1 here and torch's −0.75. Of 255.
    assert difference.max() < 3
    assert difference.mean() < 0.4


def test_an_angle_of_zero_is_the_identity() -> None:
    x_BCEE = torch.rand(2, 3, 30, 30, generator=seeded())
    torch.testing.assert_close(rotated(x_BCEE, torch.zeros(2), 20), x_BCEE[..., 5:25, 5:25], atol=1e-5, rtol=0)


def test_a_recipe_without_rotation_neither_draws_angles_nor_resamples_twice() -> None:
    assert Spatial.draw(NOTHING, Draw(seeded(), 4, 0, 4)).angle_B is None


def test_angles_reach_the_limits_of_the_recipe_both_ways() -> None:
    angle_B = Spatial.draw(replace(NOTHING, rotation=10.0), Draw(seeded(), 2000, 0, 2000)).angle_B
    assert angle_B is not None
    degrees_B = angle_B.rad2deg()
    assert -10 <= float(degrees_B.min()) < -9.9
    assert 9.9 < float(degrees_B.max()) <= 10
    assert abs(float(degrees_B.mean())) < 0.5


@pytest.mark.parametrize(
    ("flip", "vertical_flip", "dims"), [(1.0, 0.0, [3]), (0.0, 1.0, [2]), (1.0, 1.0, [2, 3])], ids=str
)
def test_flips_come_after_the_rotation(flip: float, vertical_flip: float, dims: list[int]) -> None:
    recipe = replace(NOTHING, rotation=60.0, flip=flip, vertical_flip=vertical_flip)
    images = torch.from_numpy(picture()).expand(8, 32, 32, 3)
    flipped = Spatial.draw(recipe, Draw(seeded(), 8, 0, 8)).apply(images, 31)
    # The same draws by hand, for the angle before any flip.
    by_hand = Draw(seeded(), 8, 0, 8)
    by_hand.boxes(recipe.crop_scale, recipe.crop_ratio)
    by_hand.applies(flip)
    if vertical_flip:
        by_hand.applies(vertical_flip)
    angle_B = by_hand.uniform(-math.radians(60), math.radians(60))
    turned = Spatial.draw(replace(NOTHING, rotation=60.0), Draw(seeded(), 8, 0, 8))
    only_turned = replace(turned, angle_B=angle_B).apply(images, 31)
    torch.testing.assert_close(flipped, only_turned.flip(dims), atol=1e-4, rtol=0)


@pytest.mark.parametrize("size_px", [9, 28, 32])
@pytest.mark.parametrize("degrees", [3.0, 30.0, 45.0, 120.0])
def test_no_rotation_reaches_beyond_the_margin(size_px: int, degrees: float) -> None:
    margin = rotation_margin(size_px, math.radians(degrees))
    corner = (size_px - 1) / 2
    farthest = max(
        corner * (abs(math.cos(angle)) + abs(math.sin(angle))) for angle in np.linspace(0, math.radians(degrees), 200)
    )
    # A cubic kernel takes two pixels on each side.
    assert farthest + 2 <= corner + margin


def test_beyond_the_image_a_rotated_view_mirrors_it() -> None:
    source = picture(16)
    rows = matrix(0.0, 1.0, 16, 16, 5)
    wide = torch.einsum("eh,hwc,fw->efc", rows, torch.from_numpy(source).float(), rows)
    torch.testing.assert_close(wide.numpy(), np.pad(source, ((5, 5), (5, 5), (0, 0)), "symmetric").astype(np.float32))


def test_the_corners_of_a_rotated_crop_show_the_image_around_it() -> None:
    # A ramp continues beyond the crop; rotated about the crop's centre it is a ramp in the rotated direction.
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None], (64, 64, 3))
    recipe = replace(NOTHING, crop_scale=(0.16, 0.16), rotation=180.0)
    draw = Draw(seeded(3), 200, 0, 200)
    spatial = Spatial.draw(recipe, draw)
    assert spatial.angle_B is not None
    view = spatial.apply(torch.from_numpy(ramp.copy()).expand(200, 64, 64, 3), 16)
    left_B, top_B, side = 64 * spatial.crop.left_B, 64 * spatial.crop.top_B, 64 * 0.4
    reach = side / 2 * 2**0.5 + 4
    inside_B = (
        (left_B + side / 2 > reach) & (left_B + side / 2 < 64 - reach)
        & (top_B + side / 2 > reach) & (top_B + side / 2 < 64 - reach)
    )  # fmt: skip
    assert int(inside_B.sum()) > 5
    offset = (torch.arange(16) - 7.5) * side / 16
    for i in inside_B.nonzero().flatten().tolist():
        angle = float(spatial.angle_B[i])
        across = math.cos(angle) * offset.view(1, -1) - math.sin(angle) * offset.view(-1, 1)
        expected = (float(left_B[i]) + side / 2 - 0.5 + across) / 255
        torch.testing.assert_close(view[i, 0], expected, atol=2e-3, rtol=0)


# --- Blur ----------------------------------------------------------------------------------------------------------


def test_blur_is_the_gaussian_of_torchvision_inside_the_borders() -> None:
    image = picture_CSS(64)
    blur = blurring(torch.tensor([1.1]), 64)[0]
    ours = torch.einsum("sh,chw,tw->cst", blur, image, blur)
    theirs = tv.gaussian_blur(image, [7, 7], [1.1, 1.1])
    torch.testing.assert_close(ours[:, 3:-3, 3:-3], theirs[:, 3:-3, 3:-3], atol=1e-4, rtol=0)


def test_blur_and_rotation_commute() -> None:
    # The blur is computed before the rotation; a round kernel is not affected.
    recipe = replace(NOTHING, rotation=40.0, blur=1.0, blur_sigma=(1.0, 1.0))
    images = torch.from_numpy(picture(64)).expand(4, 64, 64, 3)
    spatial = Spatial.draw(recipe, Draw(seeded(), 4, 0, 4))
    blurred_then_turned = spatial.apply(images, 64)
    turned = replace(spatial, blurred_B=torch.zeros(4, dtype=torch.bool)).apply(images, 64)
    turned_then_blurred = tv.gaussian_blur(turned, [7, 7], [1.0, 1.0])
    torch.testing.assert_close(
        blurred_then_turned[..., 3:-3, 3:-3], turned_then_blurred[..., 3:-3, 3:-3], atol=1e-2, rtol=0
    )


# --- A part of a batch ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("applies", [[True, False, True], [False] * 3, [True] * 3])
def test_an_operation_gets_only_the_images_that_it_applies_to(applies: list[bool]) -> None:
    seen: list[int] = []

    def operation(x_bX: torch.Tensor) -> torch.Tensor:
        seen.append(len(x_bX))
        return x_bX + 10

    x_BX = torch.arange(6.0).view(3, 2)
    result = where_applies(torch.tensor(applies), x_BX.clone(), operation)
    assert sum(seen) == sum(applies)
    torch.testing.assert_close(result, x_BX + 10 * torch.tensor(applies).view(3, 1))


def test_the_defaults_of_a_recipe_are_those_of_simclr_on_imagenet() -> None:
    recipe = Augmentation()
    assert (recipe.crop_scale, recipe.crop_ratio, recipe.flip) == ((0.08, 1.0), (3 / 4, 4 / 3), 0.5)
    assert (recipe.jitter, recipe.brightness, recipe.contrast, recipe.saturation) == (0.8, 0.8, 0.8, 0.8)
    assert (recipe.hue, recipe.grayscale, recipe.blur, recipe.blur_sigma) == (0.2, 0.2, 0.5, (0.1, 2.0))
    unused = ("rotation", "vertical_flip", "quarter_turns", "channel_drop", "solarize", "noise", "sobel", "cutout")
    assert {name: getattr(recipe, name) for name in unused} == dict.fromkeys(unused, 0.0)
