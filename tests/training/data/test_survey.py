"""What a look at a folder finds: shapes, borders, the range of 16-bit images; and what the plan makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from embedserve_training.data import folders, survey
from embedserve_training.plan.config import TrainConfig
from embedserve_training.plan.image_facts import PictureFacts, crop_min_of_padded, proposes_pad, value_range
from embedserve_training.plan.plan import Facts, PlanEntry, plan


def look(folder: Path) -> PictureFacts:
    return survey.summarise(folders.scan(folder)).pictures


def entries(seen: PictureFacts, **settings: object) -> dict[str, PlanEntry]:
    facts = Facts(images=3000, median_side_px=100, pictures=seen)
    return {entry.name: entry for entry in plan(TrainConfig(**settings), facts).entries}  # type: ignore[arg-type]


def photos(folder: Path, sizes: list[tuple[int, int]]) -> None:
    generator = np.random.default_rng(0)
    for number, (width, height) in enumerate(sizes):
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")


def product(folder: Path, number: int, border: tuple[int, int, int], *, format: str = "jpg") -> None:
    """A long object on a plain ground, three times as wide as high."""
    image = Image.new("RGB", (180, 60), border)
    ImageDraw.Draw(image).rectangle((10 + number % 5, 15, 165, 45), (20, 90, 160))
    image.save(folder / f"{number:03d}.{format}", quality=85)


def test_the_plan_says_what_a_centre_crop_loses(tmp_path: Path) -> None:
    photos(tmp_path, [(50, 50)] * 13 + [(50, 40)] * 3 + [(60, 40)] * 9)  # 3:2 loses a third, 5:4 exactly a fifth
    seen = look(tmp_path)
    assert (seen.headers, seen.losing, seen.longest_aspect) == (25, 9, 1.5)
    fit = entries(seen)["fit"]
    assert (fit.value, fit.source) == ("crop", "auto")
    assert "36 % of the images lose more than a fifth of their area (25 headers read)" in fit.why


def test_the_shapes_are_those_of_all_images_not_of_the_few_that_are_decoded(tmp_path: Path) -> None:
    photos(tmp_path, [(8, 8)] * 99 + [(20, 8)])
    seen = look(tmp_path)
    assert (seen.headers, seen.losing, seen.sampled) == (100, 1, 64)


@pytest.mark.parametrize("border", [(255, 255, 255), (243, 240, 235)])
def test_pad_is_proposed_for_products_with_the_colour_of_their_ground(
    tmp_path: Path, border: tuple[int, int, int]
) -> None:
    for number in range(20):
        product(tmp_path, number, border)
    seen = look(tmp_path)
    assert (seen.plain, seen.cut) == (20, 20)
    why = entries(seen)["fit"].why
    assert "of 20 looked at 20 have a plain border and 20 an object that is cut: --fit pad shows them whole" in why
    padded = entries(seen, fit="pad")
    found = np.array([int(padded["pad_colour"].value[at : at + 2], 16) for at in (1, 3, 5)])
    assert np.abs(found - border).max() <= 2


def test_pad_is_not_proposed_where_the_ground_is_cut_but_not_the_object(tmp_path: Path) -> None:
    for number in range(20):
        image = Image.new("RGB", (180, 60), "white")
        ImageDraw.Draw(image).rectangle((70, 10, 110, 50), (20, 90, 160))
        image.save(tmp_path / f"{number}.png")
    seen = look(tmp_path)
    assert (seen.plain, seen.cut, proposes_pad(seen)) == (20, 0, False)


def test_pad_is_not_proposed_for_photos(tmp_path: Path) -> None:
    photos(tmp_path, [(60, 40)] * 20)
    seen = look(tmp_path)
    assert (seen.plain, proposes_pad(seen)) == (0, False)
    assert "--fit pad or squeeze keep all of it" in entries(seen)["fit"].why


# --- More than 8 bits ----------------------------------------------------------------------------------------------


def deep(folder: Path, highest: list[int], format: str = "png", **options: Any) -> PictureFacts:
    for number, value in enumerate(highest):
        samples = np.linspace(0, value, 400).reshape(20, 20).astype(np.uint16)
        Image.fromarray(samples).save(folder / f"{number:02d}.{format}", **options)
    return look(folder)


@pytest.mark.parametrize(
    ("highest", "expected", "share"),
    [
        ([4095, 3000], "0,4095", "6 %"),
        ([1000, 1023], "0,1023", "2 %"),
        ([4096, 10], "0,8191", "6 %"),
        ([16_383] * 3, "0,16383", "25 %"),
        ([16_384] * 3, "full", "25 %"),
        ([65_535, 4095], "full", "100 %"),
        ([1], "0,1", "1 %"),
        ([0], "full", "1 %"),
    ],
)
@pytest.mark.parametrize("format", ["png", "tif"])
def test_the_value_range_follows_from_the_samples_of_16_bit_images(
    tmp_path: Path, highest: list[int], expected: str, share: str, format: str
) -> None:
    seen = deep(tmp_path, highest, format)
    entry = entries(seen)["value_range"]
    assert (entry.value, entry.source) == (expected, "auto")
    assert f"16-bit images use {share} of their range" in entry.why


def test_borders_of_16_bit_images_are_not_plain_only_for_being_dark(tmp_path: Path) -> None:
    for number in range(16):
        samples = np.random.default_rng(number).integers(0, 4096, (60, 40)).astype(np.uint16)
        Image.fromarray(samples).save(tmp_path / f"{number}.png")
    assert look(tmp_path).plain == 0


def test_a_range_that_all_images_state_is_followed(tmp_path: Path) -> None:
    entry = entries(deep(tmp_path, [4095, 4000], "tif", tiffinfo={280: 0, 281: 4095}))["value_range"]
    assert (entry.value, entry.why) == ("tag", "all of them state 0–4095; 16-bit images use 6 % of their range")


@pytest.mark.parametrize("stated", [4000, 0])
def test_a_stated_range_that_the_samples_contradict_is_not_followed(tmp_path: Path, stated: int) -> None:
    seen = deep(tmp_path, [4095, 4000], "tif", tiffinfo={280: 0, 281: stated})
    assert entries(seen)["value_range"].value == "0,4095"


def test_ranges_that_differ_from_image_to_image_are_not_followed(tmp_path: Path) -> None:
    deep(tmp_path, [4095], "tif", tiffinfo={280: 0, 281: 4095})
    (tmp_path / "00.tif").rename(tmp_path / "other.tif")
    seen = deep(tmp_path, [1000], "tif", tiffinfo={280: 0, 281: 1023})
    assert entries(seen)["value_range"].value == "0,4095"


def test_images_of_8_bits_leave_the_range_to_what_files_say(tmp_path: Path) -> None:
    photos(tmp_path, [(20, 20)] * 3)
    assert value_range(look(tmp_path)) == ("tag", "no image looked at has more than 8 bits")


def test_what_decoding_decided_is_a_reason_in_the_plan() -> None:
    seen = PictureFacts(sampled=64, notes=(("the fourth band has no name and was left out", 12),))
    assert entries(seen)["bands"].why == (
        "as the files say; 12 of 64 images looked at: the fourth band has no name and was left out"
    )


# --- Views of padded images ----------------------------------------------------------------------------------------


def least_views(share: float) -> Iterator[tuple[float, float]]:
    """Width and height of the views of a share of a square, over all their shapes."""
    for ratio in np.geomspace(3 / 4, 4 / 3, 41):
        yield (share * ratio) ** 0.5, (share / ratio) ** 0.5


@pytest.mark.parametrize("aspect", [1.0, 1.2, 4 / 3, 1.5, 2.0, 3.0, 10.0, 1000.0])
def test_no_view_of_a_padded_image_is_only_padding(aspect: float) -> None:
    share = crop_min_of_padded(aspect)
    assert 0 < share <= 1
    band = (1 - 1 / aspect) / 2
    for width, height in least_views(share):
        # The view in a corner of the square sees the picture beyond the band.
        assert min(width, height) - band >= min(0.1, 1 / aspect) - 1e-9


def test_the_smallest_view_grows_with_the_padding_and_the_plan_says_so(tmp_path: Path) -> None:
    photos(tmp_path, [(90, 30)] * 20)
    seen = look(tmp_path)
    assert entries(seen)["crop_min"].value == 0.08
    padded = entries(seen, fit="pad")["crop_min"]
    assert (padded.value, padded.why) == (0.26, "with less a view could be nothing but padding")
    assert entries(seen, fit="pad", crop_min=0.1)["crop_min"].value == 0.1
