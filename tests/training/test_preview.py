"""The preview of a folder: it shows what training sees, in the right places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from embedserve.errors import DataError, InvalidInput
from embedserve_training import augment
from embedserve_training.augment import PRESETS, Augmentation
from embedserve_training.plan.config import TrainConfig
from embedserve_training.preview import Group, Preview, captions, draw, preview, summary

TILE, GAP, LINE = 96, 4, 18


def render(
    folder: Path, out: Path, *, images: int = 3, views: int = 2, all_: bool = False, **values: object
) -> Preview:
    lines: list[str] = []
    config = TrainConfig(device="cpu", **values)  # type: ignore[arg-type]
    return preview(folder, out, config=config, images=images, views=views, every_preset=all_, report=lines.append)


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def tile(picture: np.ndarray, row: int, column: int, *, rows: int, side: int = 16) -> np.ndarray:
    """The pixels of one tile of a picture of one group, without the enlargement: column 0 is the original."""
    top = len(picture) - GAP - (rows - row) * (TILE + GAP)  # captions may take one line or more
    left = GAP if column == 0 else (TILE + GAP) * column + 3 * GAP
    enlarged = picture[top : top + TILE, left : left + TILE]
    scale = TILE // side
    small = enlarged[::scale, ::scale]
    assert (enlarged == small.repeat(scale, 0).repeat(scale, 1)).all()
    return small


def test_the_first_column_holds_the_images_and_the_others_their_views(image_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.png"
    result = render(image_folder, out, seed=7)
    assert result.images == ("checks/00.png", "discs/07.png", "stripes/15.png")  # first, middle and last of 48
    picture = read(out)
    originals = np.stack([read(image_folder / name) for name in result.images])
    generator = torch.Generator().manual_seed(7)
    [recipe] = augment.recipes_for("small", 0.08)
    views = [augment.augment(torch.from_numpy(originals), 16, recipe, generator) for _ in range(2)]
    for row in range(3):
        assert np.array_equal(tile(picture, row, 0, rows=3), originals[row])
        for column, view in enumerate(views, start=1):
            expected = (view[row].permute(1, 2, 0) * 255).round().byte().numpy()
            assert np.array_equal(tile(picture, row, column, rows=3), expected)


def test_the_picture_has_room_for_every_row_and_column(image_folder: Path, tmp_path: Path) -> None:
    render(image_folder, tmp_path / "p.png", images=2, views=9)
    # Ten tiles with their gaps and four gaps more; a line of caption, one of headings, two tiles and two gaps more.
    assert read(tmp_path / "p.png").shape == (2 * 18 + 2 * 100 + 8, 10 * 100 + 16, 3)


def test_the_same_seed_gives_the_same_file_and_another_one_another(image_folder: Path, tmp_path: Path) -> None:
    for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
        render(image_folder, tmp_path / f"{name}.png", seed=seed)
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c


def test_without_a_preset_the_views_are_those_that_training_would_use(image_folder: Path, tmp_path: Path) -> None:
    assert render(image_folder, tmp_path / "p.png").augmentations == ("small",)  # 16 px
    large = tmp_path / "large"
    large.mkdir()
    for number in range(3):
        Image.new("RGB", (200, 150), (number, 50, 200)).save(large / f"{number}.png")
    for method, preset in [("simclr", "photo"), ("barlow-twins", "barlow-twins"), ("cpc", "moco-v1")]:
        result = render(large, tmp_path / f"{method}.png", method=method)
        assert (result.augmentations, result.size_px) == ((preset,), 96)


def test_all_presets_can_be_drawn_at_once(image_folder: Path, tmp_path: Path) -> None:
    result = render(image_folder, tmp_path / "p.png", images=1, views=1, all_=True)
    assert result.augmentations == tuple(PRESETS)


def test_an_image_that_cannot_be_read_is_named_and_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(folder / f"{number}.png")
    (folder / "1.png").write_bytes(b"\x89PNG and no more")
    result = render(folder, tmp_path / "p.png")
    assert result.images == ("0.png", "2.png")
    assert [entry.path for entry in result.skipped] == ["1.png"]


def test_one_image_is_enough(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("L", (20, 30), 90).save(folder / "only.png")
    assert render(folder, tmp_path / "p.png", images=8).images == ("only.png",)


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir], ids=["missing", "empty"])
def test_a_folder_without_images_is_an_error(make: object, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    make(folder)  # type: ignore[operator]
    with pytest.raises(DataError, match=r"images (does not exist|has no images)"):
        render(folder, tmp_path / "p.png")
    assert not (tmp_path / "p.png").exists()


def test_a_path_that_cannot_be_written_is_an_error_and_leaves_nothing(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "taken.png").mkdir()
    (tmp_path / "file.txt").write_text("no folder")
    for out in (tmp_path / "nowhere" / "p.png", tmp_path / "taken.png", tmp_path / "file.txt" / "p.png"):
        with pytest.raises(DataError, match=r"cannot be written|already exists") as refused:
            render(image_folder, out)
        assert "choose" in refused.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.txt", "taken.png"]


@pytest.mark.parametrize("out", ["", ".", "/", ".."])
def test_a_path_without_a_file_name_is_refused_before_anything_is_read(out: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="has no file name") as refused:
        render(tmp_path / "missing", Path(out))
    assert "-o preview.png" in refused.value.hint


def test_an_unknown_preset_is_refused(image_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="'sepia'"):
        render(image_folder, tmp_path / "p.png", augmentation="sepia")


# --- Drawing -------------------------------------------------------------------------------------------------------


def group(recipes: Sequence[Augmentation], *, size_px: int, views: int = 1, count: int = 1) -> Group:
    return Group(
        name="mine", recipes=tuple(recipes), views_NVSSC=np.zeros((count, views, size_px, size_px, 3), np.uint8)
    )


@pytest.mark.parametrize(("size_px", "tile_px"), [(28, 112), (48, 96), (96, 96), (224, 224)])
def test_small_views_are_enlarged_by_an_integer_factor(size_px: int, tile_px: int) -> None:
    recipe = Augmentation(jitter=0.0)
    drawn = draw(np.zeros((1, size_px + 5, size_px + 5, 3), np.uint8), [group([recipe], size_px=size_px)])
    assert drawn.width == 2 * (tile_px + GAP) + 16


def test_no_caption_is_wider_than_the_grid() -> None:
    recipe = replace(PRESETS["product"][0], noise=0.5, sobel=0.1)
    drawn = np.asarray(draw(np.zeros((1, 96, 96, 3), np.uint8), [group([recipe], size_px=96)]))
    assert bool((drawn[:, -2:] == 255).all())
    assert bool((drawn[GAP : GAP + LINE] < 128).any())  # there is text


# --- Captions ------------------------------------------------------------------------------------------------------


def test_a_caption_lists_the_operations_in_the_order_of_their_application() -> None:
    recipe = Augmentation(
        crop_scale=(0.3, 1.0),
        rotation=10,
        flip=0,
        vertical_flip=0.5,
        hue=0.0,
        grayscale=0.125,
        blur=0.5,
        noise=0.3,
        cutout=0.25,
    )
    assert summary(recipe) == (
        "crop 30–100 %, rotation ±10°, vertical flip 50 %, jitter 80 % (brightness 0.8, contrast 0.8, saturation 0.8),"
        " grayscale 12.5 %, blur 50 % (sigma 0.1–2 px), noise 30 % (sigma 0.01–0.05), cutout 25 % (2–33 %)"
    )


def test_a_recipe_that_does_nothing_shows_the_whole_image() -> None:
    nothing = Augmentation(crop_scale=(1.0, 1.0), flip=0, jitter=0, grayscale=0, blur=0)
    assert summary(nothing) == "whole image"


def test_a_caption_names_every_operation_that_a_preset_uses() -> None:
    probabilities = ("vertical_flip", "quarter_turns", "channel_drop", "solarize", "noise", "sobel", "cutout")
    on: dict[str, Any] = dict.fromkeys(probabilities, 0.5)
    everything = replace(Augmentation(), **on)
    for name in ("flip", "jitter", "grayscale", "blur", *probabilities):
        assert f" {name.replace('_', ' ')} " in summary(everything)


def test_first_and_second_view_have_captions_of_their_own_where_they_differ() -> None:
    lines = captions(group(PRESETS["barlow-twins"], size_px=28))
    assert [line.partition(":")[0] for line in lines] == ["mine, first view", "mine, second view"]
    assert "solarize" not in lines[0]
    assert lines[1].endswith("solarize 20 %")


def test_the_font_has_every_character_of_the_captions() -> None:
    font = ImageFont.load_default(13)
    missing = bytes(font.getmask("\ue000"))
    written = {
        character
        for name, preset in PRESETS.items()
        for line in captions(Group(name=name, recipes=preset, views_NVSSC=np.zeros((1, 1, 8, 8, 3), np.uint8)))
        for character in line.replace("–", "-")
    }
    assert [character for character in sorted(written) if bytes(font.getmask(character)) == missing] == []
    assert bytes(font.getmask("–")) == missing  # so it is replaced
