"""The augmentations as a whole: their order, their distribution over images, determinism, and every preset."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from embedserve.errors import InvalidInput
from embedserve_training import augment
from embedserve_training.augment import PRESETS, Augmentation
from embedserve_training.augment.colour import Colour
from embedserve_training.augment.draw import Draw
from embedserve_training.augment.pixels import Pixels, gaussian
from embedserve_training.augment.spatial import Spatial
from embedserve_training.plan import config
from tests.training.pictures import NOTHING, mean_std, picture, picture_CSS, seeded, views

RECIPES = {f"{name}-{view + 1}": recipe for name, preset in PRESETS.items() for view, recipe in enumerate(preset)}
EVERYTHING = Augmentation(
    crop_scale=(0.4, 0.9),
    vertical_flip=0.5,
    quarter_turns=0.75,
    jitter=0.9,
    grayscale=0.3,
    channel_drop=0.3,
    blur_sigma=(0.5, 1.5),
    solarize=0.5,
    noise=0.5,
    sobel=0.3,
    cutout=0.5,
)
"""Except rotation, which resamples a second time and has its own tests."""


def test_without_any_augmentation_the_image_comes_back() -> None:
    torch.testing.assert_close(views(NOTHING, count=2)[1], picture_CSS(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"crop_scale": (0.3, 1.0)},
        {"rotation": 20.0},
        {"flip": 0.5},
        {"vertical_flip": 0.5},
        {"quarter_turns": 0.75},
        {"jitter": 1.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0},
        {"jitter": 1.0, "brightness": 0.0, "saturation": 0.0, "hue": 0.0},
        {"jitter": 1.0, "brightness": 0.0, "contrast": 0.0, "hue": 0.0},
        {"jitter": 1.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0},
        {"grayscale": 0.5},
        {"channel_drop": 1.0},
        {"blur": 0.5},
        {"solarize": 0.5},
        {"noise": 1.0},
        {"sobel": 0.5},
        {"cutout": 1.0},
    ],
    ids=lambda changes: "-".join(name for name in changes),
)
def test_every_augmentation_draws_its_parameters_for_each_image(changes: dict[str, Any]) -> None:
    # Batched ports have often drawn one parameter for a whole batch (kornia's same_on_batch).
    assert mean_std(views(NOTHING)) < 1e-6
    assert mean_std(views(replace(NOTHING, **changes))) > 1e-3


# --- Order ---------------------------------------------------------------------------------------------------------


def one_view(
    image_TTC: np.ndarray, size_px: int, spatial: Spatial, colour: Colour, pixels: Pixels, i: int
) -> np.ndarray:
    """View number ``i`` by one operation after the other, as documented, for one image. Float [3, S, S]."""
    side, crop = len(image_TTC), spatial.crop
    left, top = float(crop.left_B[i]) * side, float(crop.top_B[i]) * side
    box = (left, top, left + float(crop.width_B[i]) * side, top + float(crop.height_B[i]) * side)
    channels = [Image.fromarray(image_TTC[..., c].astype(np.float32) / 255) for c in range(3)]
    view = np.stack([np.asarray(one.resize((size_px, size_px), Image.Resampling.BICUBIC, box)) for one in channels])
    assert spatial.upended_B is not None
    assert spatial.transposed_B is not None
    view = view[:, :: -1 if spatial.upended_B[i] else 1, :: -1 if spatial.mirrored_B[i] else 1]
    view = view.transpose(0, 2, 1) if spatial.transposed_B[i] else view
    for step in range(colour.matrices_BKCC.shape[1]):
        mean_grey = np.array([0.299, 0.587, 0.114]) @ view.reshape(3, -1).mean(1)
        view = np.einsum("dc,cst->dst", colour.matrices_BKCC[i, step].numpy(), view)
        view = view + float(colour.grey_share_BK[i, step]) * mean_grey
    assert colour.kept_BC1 is not None
    view = np.where(colour.kept_BC1[i].numpy()[..., None] > 0, view, 0.5)
    if spatial.blurred_B[i]:
        view = slow_blur(view, float(spatial.sigma_B[i]))
    view = view.clip(0, 1)
    assert pixels.solarized_B is not None
    assert pixels.noisy_B is not None
    assert pixels.sobel_B is not None
    assert pixels.cut_B is not None
    if pixels.solarized_B[i]:
        view = np.where(view >= 0.5, 1 - view, view)
    if pixels.noisy_B[i]:
        assert pixels.noise_key_B is not None
        assert pixels.noise_sigma_B is not None
        noise = gaussian(pixels.noise_key_B[i : i + 1], size_px**2).view(size_px, size_px).numpy()
        view = (view + float(pixels.noise_sigma_B[i]) * noise).clip(0, 1)
    if pixels.sobel_B[i]:
        view = np.stack([slow_sobel(channel) for channel in view])
    if pixels.cut_B[i]:
        assert pixels.boxes is not None
        top, left, height, width = (float(part[i]) * size_px for part in vars(pixels.boxes).values())
        for row in range(size_px):
            for column in range(size_px):
                if top <= row + 0.5 < top + height and left <= column + 0.5 < left + width:
                    view[:, row, column] = 0.5
    return view


def slow_blur(view_CSS: np.ndarray, sigma: float) -> np.ndarray:
    """A Gaussian over a tenth of the view; pixels outside have no weight."""
    size_px = view_CSS.shape[2]
    radius = max(size_px // 20, 1)
    blurred = np.zeros_like(view_CSS)
    for row in range(size_px):
        for column in range(size_px):
            rows = np.arange(max(row - radius, 0), min(row + radius + 1, size_px))
            columns = np.arange(max(column - radius, 0), min(column + radius + 1, size_px))
            squares = (rows[:, None] - row) ** 2 + (columns - column) ** 2
            weights = np.exp(-squares / (2 * sigma**2))
            blurred[:, row, column] = (weights * view_CSS[:, rows][:, :, columns]).sum((1, 2)) / weights.sum()
    return blurred


def slow_sobel(channel_SS: np.ndarray) -> np.ndarray:
    """A quarter of the gradient's magnitude, pixel by pixel."""
    kernel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    padded = np.pad(channel_SS, 1, mode="edge")
    result = np.zeros_like(channel_SS)
    for row, column in np.ndindex(channel_SS.shape):
        around = padded[row : row + 3, column : column + 3]
        result[row, column] = np.sqrt((around * kernel).sum() ** 2 + (around * kernel.T).sum() ** 2) / 4
    return result.clip(max=1)


def test_operations_come_in_the_documented_order_as_applied_one_by_one_to_each_image() -> None:
    count, side, size_px = 24, 40, 24
    images = np.stack([picture(side, seed) for seed in range(count)])
    ours = augment.augment(torch.from_numpy(images), size_px, EVERYTHING, seeded(1))
    draw = Draw(seeded(1), count, 0, count)
    drawn = (Spatial.draw(EVERYTHING, draw), Colour.draw(EVERYTHING, draw), Pixels.draw(EVERYTHING, draw))
    theirs = np.stack([one_view(images[i], size_px, *drawn, i) for i in range(count)])
    # Contrast pivots about the mean grey of the blurred view here and of the sharp one there. And at the threshold of
    # solarization a rounding error inverts a value: both results are right.
    distance = np.abs(ours.numpy() - theirs)
    assert (distance > 5e-4).mean() < 1e-3
    assert np.median(distance.max((1, 2, 3))) < 5e-5


def test_grayscale_before_the_jitter_equals_grayscale_after_it() -> None:
    # MoCo v1 does the former, all others the latter.
    pixels_BCP = torch.rand(64, 3, 50, generator=seeded(1))
    jitter = Colour.draw(replace(PRESETS["moco-v1"][0], grayscale=0.0), Draw(seeded(2), 64, 0, 64))
    grey_CC = torch.tensor([0.299, 0.587, 0.114]).expand(3, 3)
    torch.testing.assert_close(
        jitter.apply(grey_CC @ pixels_BCP), grey_CC @ jitter.apply(pixels_BCP), atol=1e-5, rtol=0
    )


# --- Distribution --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("flip", {}),
        ("vertical_flip", {}),
        ("quarter_turns", {}),
        ("jitter", {"contrast": 0.0, "saturation": 0.0, "hue": 0.0}),
        ("grayscale", {}),
        ("channel_drop", {}),
        ("blur", {"blur_sigma": (1.0, 2.0)}),
        ("solarize", {}),
        ("noise", {}),
        ("sobel", {}),
        ("cutout", {}),
    ],
)
def test_an_operation_applies_to_the_share_of_views_that_the_recipe_says(name: str, changes: dict[str, Any]) -> None:
    view = views(replace(NOTHING, **{name: 0.3, **changes}), count=1000, size_px=16)
    unchanged = views(NOTHING, count=1, size_px=16)
    changed = (view - unchanged).abs().amax((1, 2, 3)) > 1e-3
    assert 0.25 < float(changed.float().mean()) < 0.35  # 3.4 standard deviations


# --- Determinism ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_the_same_generator_state_gives_the_same_views(name: str) -> None:
    assert torch.equal(views(RECIPES[name], seed=3), views(RECIPES[name], seed=3))
    assert not torch.equal(views(RECIPES[name], seed=3), views(RECIPES[name], seed=4))


@pytest.mark.parametrize("name", [*RECIPES, "everything"])
def test_processes_that_share_a_batch_get_the_views_of_one_process_that_has_it_all(name: str) -> None:
    recipe = RECIPES.get(name, replace(EVERYTHING, rotation=20.0))
    images = torch.from_numpy(np.stack([picture(32, seed) for seed in range(12)]))
    generators = [seeded(5) for _ in range(4)]
    whole = augment.augment(images, 28, recipe, generators[0])
    parts = [
        augment.augment(images[start:end], 28, recipe, generator, first=start, total=12)
        for (start, end), generator in zip([(0, 5), (5, 6), (6, 12)], generators[1:], strict=True)
    ]
    # Near the threshold of solarization a rounding error would show; these sums have none.
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=0)
    assert len({tuple(generator.get_state().tolist()) for generator in generators}) == 1  # the next view agrees as well


@pytest.mark.parametrize(("first", "total"), [(-1, None), (0, 3), (5, 8)])
def test_images_outside_their_batch_are_refused(first: int, total: int | None) -> None:
    images = torch.zeros(4, 16, 16, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match="are not in a batch"):
        augment.augment(images, 16, NOTHING, seeded(), first=first, total=total)


def test_operations_that_a_recipe_does_not_use_draw_no_random_numbers() -> None:
    # So presets keep their views when an operation is added to the package.
    plain, unused = seeded(3), seeded(3)
    images = torch.from_numpy(picture()).expand(4, 32, 32, 3)
    augment.augment(images, 32, PRESETS["photo"][0], plain)
    augment.augment(images, 32, replace(PRESETS["photo"][0], noise_sigma=(0.1, 0.2), cutout_area=(0.1, 0.2)), unused)
    assert torch.equal(plain.get_state(), unused.get_state())


@pytest.mark.parametrize(
    ("name", "expected"), [("photo-1", [0.5053, 0.4234, 0.1232]), ("small-1", [0.5053, 0.5781, 0.2494])]
)
def test_a_seed_gives_the_views_that_it_gave_in_version_0_1(name: str, expected: list[float]) -> None:
    # One pixel of three views: a change in the order of the draws changes every measured run.
    torch.testing.assert_close(views(RECIPES[name], count=3)[:, 1, 7, 21], torch.tensor(expected), atol=2e-4, rtol=0)


# --- Presets -------------------------------------------------------------------------------------------------------


def test_the_names_in_the_configuration_are_those_of_the_presets() -> None:
    assert set(config.AUGMENTATIONS) == PRESETS.keys()


@pytest.mark.parametrize(("side", "size_px", "count"), [(28, 28, 64), (256, 224, 3)])
@pytest.mark.parametrize("name", RECIPES)
def test_views_stay_within_zero_and_one_in_channels_last(name: str, side: int, size_px: int, count: int) -> None:
    view = views(RECIPES[name], count=count, side=side, size_px=size_px)
    assert view.shape == (count, 3, size_px, size_px)
    assert view.is_contiguous(memory_format=torch.channels_last)
    assert 0 <= float(view.min()) <= float(view.max()) <= 1
    assert mean_std(view) > 1e-2


@pytest.mark.parametrize("name", RECIPES)
def test_grey_images_stay_grey(name: str) -> None:
    grey = torch.from_numpy(picture()[..., :1].repeat(3, axis=2)).expand(64, 32, 32, 3)
    view = augment.augment(grey, 32, RECIPES[name], seeded())
    torch.testing.assert_close(view[:, :1].expand_as(view), view, atol=1e-5, rtol=0)
    assert mean_std(view) > 1e-2


def test_a_run_chooses_the_least_crop_and_nothing_else_of_a_preset() -> None:
    first, second = augment.recipes_for("barlow-twins", 0.5)
    assert (first, second) == tuple(replace(recipe, crop_scale=(0.5, 1.0)) for recipe in PRESETS["barlow-twins"])
    [cpc] = augment.recipes_for("cpc", 0.9)  # its greatest crop is smaller than that
    assert cpc.crop_scale == (0.9, 0.9)


def test_barlow_twins_views_differ_in_blur_and_solarization_only() -> None:
    first, second = PRESETS["barlow-twins"]
    assert (first.blur, first.solarize, second.blur, second.solarize) == (1.0, 0.0, 0.1, 0.2)
    assert replace(first, blur=0.1, solarize=0.2) == second


def test_radiographs_are_never_mirrored_nor_rotated_far() -> None:
    [recipe] = PRESETS["xray"]
    assert (recipe.flip, recipe.vertical_flip, recipe.quarter_turns) == (0, 0, 0)
    assert recipe.rotation <= 10
    assert recipe.crop_scale[0] >= 0.3


def test_under_a_microscope_all_eight_orientations_are_equally_likely() -> None:
    [recipe] = PRESETS["microscopy"]
    orientations = replace(
        NOTHING, flip=recipe.flip, vertical_flip=recipe.vertical_flip, quarter_turns=recipe.quarter_turns
    )
    view = views(orientations, count=1600)
    turned = [torch.rot90(picture_CSS(), k, (1, 2)) for k in range(4)]
    found = [int(((view - one).abs().amax((1, 2, 3)) < 1e-5).sum()) for base in turned for one in (base, base.flip(2))]
    assert sum(found) == 1600
    assert all(150 < times < 250 for times in found)  # 200 ± 13


# --- Recipes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"flip": 1.5},
        {"noise": -0.1},
        {"crop_scale": (0.0, 1.0)},
        {"crop_scale": (0.5, 0.2)},
        {"cutout_area": (0.1, 1.2)},
        {"crop_ratio": (0.0, 1.0)},
        {"blur_sigma": (2.0, 1.0)},
        {"contrast": -1.0},
        {"hue": 0.6},
        {"rotation": 270.0},
        {"cutout_fill": "black"},
        {"brightness": math.nan},
    ],
    ids=str,
)
def test_an_invalid_recipe_is_refused(changes: dict[str, Any]) -> None:
    [name] = changes
    with pytest.raises(InvalidInput, match=f"^{name} of an augmentation is "):
        Augmentation(**changes)
