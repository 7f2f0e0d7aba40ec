"""How stored samples become RGB: which rules are possible, and how they travel in encoder files."""

from __future__ import annotations

from typing import Any

import pytest

from embedserve.errors import EncoderFileError
from embedserve.images.pixel_rule import STORED, PixelRule
from embedserve.images.preprocess import PreprocessSpec

RULES = [
    PixelRule(),
    STORED,
    PixelRule(value_range=(0, 4095)),
    PixelRule(value_range=(-0.5, 1.25), bands=(4, 3, 2)),
    PixelRule(colour="stored", value_range="tag", bands=(7,)),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_rule_comes_back_from_json_as_it_was(rule: PixelRule) -> None:
    spec = PreprocessSpec(size_px=64, resize_px=74, filter="bicubic", pixels=rule)
    assert PreprocessSpec.from_json(spec.to_json()) == spec


def test_a_rule_of_before_is_written_as_it_was_so_that_fingerprints_stay() -> None:
    spec = PreprocessSpec(size_px=64, resize_px=74, filter="bicubic", pixels=STORED)
    assert spec.to_json() == {"size_px": 64, "resize_px": 74, "filter": "bicubic"}


def test_a_file_without_a_rule_has_that_of_before() -> None:
    assert PreprocessSpec.from_json({"size_px": 64}).pixels == STORED


def test_new_rules_convert_colours_and_heed_the_range_that_a_file_states() -> None:
    assert PreprocessSpec(size_px=64).to_json() == {
        "size_px": 64,
        "resize_px": 0,
        "filter": "bilinear",
        "colour": "srgb",
        "value_range": "tag",
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("colour", value) for value in ("sRGB", "", None, 1, ["srgb"])],
        *[
            ("value_range", value)
            for value in ("", "0-4095", 4095, [0], [0, 1, 2], [5, 5], [9, 2], [0, "1"], [0, True])
        ],
        *[
            ("value_range", value)
            for value in ([0, float("nan")], [float("-inf"), 1], [0, 10**400], [-(10**400), 0], None, {"min": 0})
        ],
        *[
            ("bands", value)
            for value in ([0, 1, 2], [1, 2], [1, 2, 3, 4], ["1"], [1.0], [True], 3, "1", None, [70_000])
        ],
    ],
)
def test_a_rule_that_is_not_possible_is_named(field: str, value: Any) -> None:
    with pytest.raises(EncoderFileError, match=f"preprocess.{field} is "):
        PreprocessSpec.from_json({"size_px": 64, field: value})


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(EncoderFileError, match="not understood"):
        PreprocessSpec.from_json({"size_px": 64, "gamma": 2.2})
    with pytest.raises(EncoderFileError, match="not understood"):
        PreprocessSpec.from_json({"size_px": 64, "pixels": {}})
