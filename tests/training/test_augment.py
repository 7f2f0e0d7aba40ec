"""The augmentations: distribution over images, determinism, and agreement with Pillow and torchvision."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from embedserve_training import augment
from embedserve_training.augment import PRESETS, Augmentation

NOTHING = Augmentation(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0, jitter=0.0, grayscale=0.0, blur=0.0)


def picture(side: int = 32, seed: int = 0) -> np.ndarray:
    """A smooth colour picture, uint8 [S, S, 3]."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return np.array(small.resize((side, side), Image.Resampling.BICUBIC))


def views(recipe: Augmentation, count: int = 64, side: int = 32, size_px: int = 32, seed: int = 0) -> torch.Tensor:
    """``count`` views of one and the same picture, float [count, 3, S, S]."""
    images = torch.from_numpy(picture(side)).expand(count, side, side, 3)
    return augment.augment(images, size_px, recipe, torch.Generator().manual_seed(seed))


def spread(view_BCSS: torch.Tensor) -> float:
    """Mean over pixels of the standard deviation over the batch."""
    return float(view_BCSS.std(0).mean())


def test_without_any_augmentation_the_image_comes_back() -> None:
    expected = torch.from_numpy(picture()).permute(2, 0, 1) / 255
    torch.testing.assert_close(views(NOTHING, count=2)[1], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"crop_scale": (0.3, 1.0)},
        {"flip": 0.5},
        {"jitter": 1.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0},
        {"jitter": 1.0, "brightness": 0.0, "saturation": 0.0, "hue": 0.0},
        {"jitter": 1.0, "brightness": 0.0, "contrast": 0.0, "hue": 0.0},
        {"jitter": 1.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0},
        {"grayscale": 0.5},
        {"blur": 0.5},
    ],
    ids=["crop", "flip", "brightness", "contrast", "saturation", "hue", "grayscale", "blur"],
)
def test_every_augmentation_draws_its_parameters_for_each_image(changes: dict[str, object]) -> None:
    assert spread(views(NOTHING)) < 1e-6
    assert spread(views(replace(NOTHING, **changes))) > 1e-3


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_the_same_generator_state_gives_the_same_views(preset: str) -> None:
    assert torch.equal(views(PRESETS[preset][0], seed=3), views(PRESETS[preset], seed=3))
    assert not torch.equal(views(PRESETS[preset][0], seed=3), views(PRESETS[preset][0], seed=4))


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_views_stay_within_zero_and_one(preset: str) -> None:
    view = views(PRESETS[preset][0], count=256)
    assert view.shape == (256, 3, 32, 32)
    assert float(view.min()) >= 0
    assert float(view.max()) <= 1


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_grey_images_stay_grey(preset: str) -> None:
    grey = torch.from_numpy(picture()[..., :1].repeat(3, axis=2)).expand(64, 32, 32, 3)
    view = augment.augment(grey, 32, PRESETS[preset][0], torch.Generator().manual_seed(0))
    torch.testing.assert_close(view[:, :1].expand_as(view), view, atol=1e-5, rtol=0)
    assert spread(view) > 1e-2


@pytest.mark.parametrize(("start", "extent"), [(0.0, 1.0), (0.2, 0.5), (0.6, 0.31), (0.05, 0.9)])
@pytest.mark.parametrize("size_px", [8, 20, 48])
def test_crop_and_resize_are_those_of_pillow_up_and_down(start: float, extent: float, size_px: int) -> None:
    source = picture(40)
    rows = augment._resampling(torch.tensor([start]), torch.tensor([extent]), 40, size_px, torch.device("cpu"))[0]
    ours = torch.einsum("sh,hwc,tw->stc", rows, torch.from_numpy(source).float(), rows).clamp(0, 255)
    box = (start * 40, start * 40, (start + extent) * 40, (start + extent) * 40)
    theirs = np.asarray(Image.fromarray(source).resize((size_px, size_px), Image.Resampling.BICUBIC, box))
    # Pillow rounds and clips to whole numbers after each axis; beyond that the two agree.
    difference = np.abs(ours.numpy() - theirs)
    assert difference.max() <= 4
    assert difference.mean() < 0.5


def test_crops_cover_the_area_and_shape_that_the_recipe_allows() -> None:
    recipe = replace(NOTHING, crop_scale=(0.08, 1.0), crop_ratio=(3 / 4, 4 / 3))
    top, left, height, width = augment._draw_crops(5000, recipe, torch.Generator().manual_seed(0))
    area, ratio = height * width, width / height
    assert 0.08 <= float(area.min()) < 0.09
    assert 0.95 < float(area.max()) <= 1.0
    assert float(ratio.min()) >= 0.75 - 1e-6
    assert float(ratio.max()) <= 4 / 3 + 1e-6
    assert float((top + height).max()) <= 1 + 1e-6
    assert float((left + width).max()) <= 1 + 1e-6


def test_flips_mirror_left_and_right_in_about_half_of_the_views() -> None:
    view = views(replace(NOTHING, flip=0.5), count=400)
    straight = torch.from_numpy(picture()).permute(2, 0, 1) / 255
    flipped = (view - straight.flip(2)).abs().amax((1, 2, 3)) < 1e-5
    unchanged = (view - straight).abs().amax((1, 2, 3)) < 1e-5
    assert bool((flipped ^ unchanged).all())
    assert 0.4 < float(flipped.float().mean()) < 0.6


def test_brightness_contrast_and_saturation_are_those_of_torchvision() -> None:
    image = torch.from_numpy(picture()).permute(2, 0, 1) / 255 * 0.4 + 0.3  # far from the bounds: nothing is clipped
    pixels_1CP = image.flatten(1).unsqueeze(0)
    grey = torch.tensor(augment._LUMA).expand(3, 3)
    for factor, operation in [(0.8, tv.adjust_brightness), (0.6, tv.adjust_contrast), (1.3, tv.adjust_saturation)]:
        matrix = factor * torch.eye(3)
        share = 0.0
        if operation is tv.adjust_contrast:
            share = 1 - factor
        elif operation is tv.adjust_saturation:
            matrix = matrix + (1 - factor) * grey
        colour = augment._Colour(matrix.view(1, 1, 3, 3), torch.tensor([[share]]), grey)
        ours = colour.apply(pixels_1CP).view_as(image)
        # torchvision's grey has its weights rounded to four digits.
        torch.testing.assert_close(ours, operation(image, factor), atol=1e-3, rtol=0)


def test_colour_operations_in_one_matrix_are_the_operations_one_after_the_other() -> None:
    pixels_BCP = torch.rand(32, 3, 50, generator=torch.Generator().manual_seed(1))
    colour = augment._draw_colour(32, PRESETS["photo"][0], torch.Generator().manual_seed(2))
    slow = pixels_BCP.clone()
    for step in range(5):
        for image in range(32):
            x = slow[image]
            mean_grey = float((torch.tensor(augment._LUMA) @ x).mean())
            slow[image] = colour.matrices_BKCC[image, step] @ x + colour.grey_share_BK[image, step] * mean_grey
    torch.testing.assert_close(colour.apply(pixels_BCP), slow, atol=1e-4, rtol=1e-4)


def test_the_order_of_the_colour_operations_differs_between_images() -> None:
    colour = augment._draw_colour(200, replace(PRESETS["photo"][0], jitter=1.0), torch.Generator().manual_seed(0))
    contrast_comes_at = colour.grey_share_BK.abs().argmax(1)
    assert set(contrast_comes_at.tolist()) == {0, 1, 2, 3}


def test_a_third_of_a_turn_of_the_hue_three_times_is_no_turn() -> None:
    third = augment._hue_rotation(torch.tensor([2 * torch.pi / 3]))[0]
    torch.testing.assert_close(third @ third @ third, torch.eye(3), atol=1e-5, rtol=0)
    assert float((third - torch.eye(3)).abs().max()) > 0.5


def test_blur_is_the_gaussian_of_torchvision_inside_of_the_borders() -> None:
    image = torch.from_numpy(picture(64)).permute(2, 0, 1) / 255
    matrix = augment._blurring(torch.tensor([1.1]), 64)[0]
    ours = torch.einsum("sh,chw,tw->cst", matrix, image, matrix)
    theirs = tv.gaussian_blur(image, [7, 7], [1.1, 1.1])
    torch.testing.assert_close(ours[:, 3:-3, 3:-3], theirs[:, 3:-3, 3:-3], atol=1e-4, rtol=0)


def test_a_view_smaller_than_the_cached_image_shows_no_moire() -> None:
    # An eighth of the resolution cannot show stripes of one pixel: their mean is all that may be left.
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    view = augment.augment(torch.from_numpy(stripes)[None], 8, NOTHING, torch.Generator().manual_seed(0))
    torch.testing.assert_close(view, torch.full_like(view, 0.5), atol=0.02, rtol=0)
