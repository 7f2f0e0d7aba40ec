"""Colour jitter, grayscale and channel drop, compared with torchvision and with one operation after the other."""

from __future__ import annotations

from dataclasses import replace

import torch
from torchvision.transforms.v2 import functional as tv

from embedserve_training.augment import PRESETS
from embedserve_training.augment.colour import LUMA, Colour, hue_rotation
from embedserve_training.augment.draw import Draw
from tests.training.pictures import NOTHING, picture_CSS, seeded, views

PHOTO = PRESETS["photo"][0]


def test_brightness_contrast_and_saturation_are_those_of_torchvision() -> None:
    image = picture_CSS() * 0.4 + 0.3  # far from the bounds: nothing is clipped
    pixels_1CP = image.flatten(1).unsqueeze(0)
    grey = torch.tensor(LUMA).expand(3, 3)
    for factor, operation in [(0.8, tv.adjust_brightness), (0.6, tv.adjust_contrast), (1.3, tv.adjust_saturation)]:
        matrix = factor * torch.eye(3)
        share = 0.0
        if operation is tv.adjust_contrast:
            share = 1 - factor
        elif operation is tv.adjust_saturation:
            matrix = matrix + (1 - factor) * grey
        colour = Colour(matrices_BKCC=matrix.view(1, 1, 3, 3), grey_share_BK=torch.tensor([[share]]))
        ours = colour.apply(pixels_1CP).view_as(image)
        # torchvision's grey has its weights rounded to four digits.
        torch.testing.assert_close(ours, operation(image, factor), atol=1e-3, rtol=0)


def test_one_matrix_equals_the_colour_operations_one_after_the_other() -> None:
    pixels_BCP = torch.rand(32, 3, 50, generator=seeded(1))
    colour = Colour.draw(PHOTO, Draw(seeded(2), 32, 0, 32))
    slow = pixels_BCP.clone()
    for step in range(5):
        for image in range(32):
            x = slow[image]
            mean_grey = float((torch.tensor(LUMA) @ x).mean())
            slow[image] = colour.matrices_BKCC[image, step] @ x + colour.grey_share_BK[image, step] * mean_grey
    torch.testing.assert_close(colour.apply(pixels_BCP), slow, atol=1e-4, rtol=1e-4)


def test_the_order_of_the_colour_operations_differs_between_images() -> None:
    colour = Colour.draw(replace(PHOTO, jitter=1.0), Draw(seeded(), 200, 0, 200))
    contrast_comes_at = colour.grey_share_BK.abs().argmax(1)
    assert set(contrast_comes_at.tolist()) == {0, 1, 2, 3}


def test_three_hue_rotations_by_a_third_of_a_turn_are_the_identity() -> None:
    third = hue_rotation(torch.tensor([2 * torch.pi / 3]))[0]
    torch.testing.assert_close(third @ third @ third, torch.eye(3), atol=1e-5, rtol=0)
    assert float((third - torch.eye(3)).abs().max()) > 0.5


def test_grayscale_gives_the_luma_in_all_channels() -> None:
    [view] = views(replace(NOTHING, grayscale=1.0), count=1)
    grey = (torch.tensor(LUMA).view(3, 1, 1) * picture_CSS()).sum(0)
    torch.testing.assert_close(view, grey.expand(3, 32, 32), atol=1e-5, rtol=0)


def test_channel_drop_keeps_each_channel_equally_often_and_makes_the_others_grey() -> None:
    view = views(replace(NOTHING, channel_drop=1.0), count=600)
    kept_B = torch.zeros(3)
    for channel in range(3):
        expected = torch.full((3, 32, 32), 0.5)
        expected[channel] = picture_CSS()[channel]
        kept_B[channel] = ((view - expected).abs().amax((1, 2, 3)) < 1e-5).sum()
    assert int(kept_B.sum()) == 600
    assert bool(((kept_B > 150) & (kept_B < 250)).all())  # 200 ± 12


def test_channels_are_dropped_after_the_jitter() -> None:
    # Jitter would mix the grey of a dropped channel into the one that is kept.
    view = views(replace(PHOTO, jitter=1.0, blur=0.0, grayscale=0.0, channel_drop=1.0), count=50)
    grey_channels = ((view - 0.5).abs().amax((2, 3)) < 1e-6).sum(1)
    assert grey_channels.tolist() == [2] * 50
