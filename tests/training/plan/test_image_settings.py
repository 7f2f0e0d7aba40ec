"""The settings about images: how they are written, what is refused, and the rule that they make."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedserve.errors import InvalidInput
from embedserve.images.pixel_rule import PixelRule
from embedserve.images.preprocess import PreprocessSpec
from embedserve_training.plan.config import Settings, TrainConfig
from embedserve_training.plan.image_settings import BEFORE, parse_bands, parse_colour, parse_value_range, preprocess_of
from embedserve_training.plan.plan import Facts, plan

FACTS = Facts(images=3000, median_side_px=28)


@pytest.mark.parametrize(
    ("text", "colour"),
    [
        ("white", (255, 255, 255)),
        ("Black", (0, 0, 0)),
        ("#fffaF0", (255, 250, 240)),
        ("255, 250,240", (255, 250, 240)),
        ("0,0,0", (0, 0, 0)),
    ],
)
def test_a_colour_is_a_word_hexadecimal_or_three_numbers(text: str, colour: tuple[int, int, int]) -> None:
    assert parse_colour(text) == colour


@pytest.mark.parametrize("text", ["", "#fff", "#ggffee", "1,2", "1,2,256", "-1,2,3", "1,2,3,4", "beige", "٣,٣,٣"])
def test_another_colour_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="pad_colour is"):
        TrainConfig(fit="pad", pad_colour=text)


def test_a_value_range_is_a_word_or_two_numbers() -> None:
    assert parse_value_range("full") == "full"
    assert parse_value_range("tag") == "tag"
    assert parse_value_range("0,4095") == (0, 4095)
    assert parse_value_range("-1000, 2.5") == (-1000, 2.5)


@pytest.mark.parametrize("text", ["", "auto-ish", "4095", "4095,0", "0,0", "0,nan", "nan,1", "0,inf", "0,1,2"])
def test_another_value_range_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="value_range is"):
        TrainConfig(value_range=text)


def test_bands_are_one_or_three_numbers_or_none() -> None:
    assert (parse_bands(""), parse_bands("2"), parse_bands("4, 3,2")) == ((), (2,), (4, 3, 2))


@pytest.mark.parametrize("text", ["0", "1,2", "1,2,3,4", "red", "-1", "1,2,99999", ",", "1,,2"])
def test_other_bands_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="bands is"):
        TrainConfig(bands=text)


@pytest.mark.parametrize("name", ["fit", "colour"])
def test_an_unknown_word_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(InvalidInput, match=f"{name} is 'x'") as refused:
        TrainConfig(**{name: "x"})  # type: ignore[arg-type]
    assert "one of: " in refused.value.hint


@pytest.mark.parametrize("fit", [None, "crop", "squeeze"])
def test_a_colour_without_padding_is_refused_with_what_to_add(fit: str | None) -> None:
    with pytest.raises(InvalidInput, match="pad_colour is 'black', but fit is") as refused:
        plan(TrainConfig(fit=fit, pad_colour="black"), FACTS)
    assert "--fit pad" in refused.value.hint


def test_the_settings_make_the_rule_of_the_encoder() -> None:
    config = TrainConfig(
        fit="pad", pad_colour="#fffaf0", value_range="0,4095", bands="4,3,2", colour="stored", size_px=32
    )
    assert preprocess_of(plan(config, FACTS).settings, 37) == PreprocessSpec(
        size_px=32,
        filter="bicubic",
        fit="pad",
        pad_colour=(255, 250, 240),
        pixels=PixelRule(colour="stored", value_range=(0, 4095), bands=(4, 3, 2)),
    )
    cropped = preprocess_of(plan(TrainConfig(size_px=32), FACTS).settings, 37)
    assert cropped == PreprocessSpec(size_px=32, resize_px=37, filter="bicubic", fit="crop")
    squeezed = preprocess_of(plan(TrainConfig(size_px=32, fit="squeeze"), FACTS).settings, 37)
    assert (squeezed.fit, squeezed.resize_px) == ("squeeze", 0)


def test_a_recipe_may_set_them_and_the_plan_prints_each_with_its_source(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('method = "simclr"\nfit = "pad"\npad_colour = { value = "black", source = "X-rays" }\n')
    the_plan = plan(TrainConfig(recipe=str(recipe), bands="1"), FACTS)
    lines = {line.split()[0]: line.split(maxsplit=2)[1:] for line in the_plan.lines()}
    assert lines["fit"] == ["pad", "file"]
    assert lines["pad_colour"] == ["black", "file: X-rays"]
    assert lines["bands"] == ["1", "flag"]
    assert lines["colour"][0] == "srgb"
    assert lines["value_range"][0] == "tag"


def test_pad_colour_is_not_printed_where_nothing_is_padded() -> None:
    assert "pad_colour" not in {line.split()[0] for line in plan(TrainConfig(), FACTS).lines()}


def test_settings_from_before_are_what_was_done_then() -> None:
    document = plan(TrainConfig(), FACTS).settings.to_json()
    before = {name: value for name, value in document.items() if name not in BEFORE}
    settings = Settings.from_json(before)
    assert {name: getattr(settings, name) for name in BEFORE} == {
        "fit": "crop",
        "pad_colour": "white",
        "colour": "stored",
        "value_range": "full",
        "bands": "",
    }
