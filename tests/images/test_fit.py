"""How a picture that is not square meets the encoder's square: its centre, squeezed or padded."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embedserve.errors import EncoderFileError
from embedserve.images import preprocess
from embedserve.images.pixel_rule import STORED
from embedserve.images.preprocess import PreprocessSpec, padded_size

RED, CREAM = (255, 0, 0), (255, 250, 240)


def padded(width: int, height: int, filter: str = "bicubic", colour: tuple[int, int, int] = CREAM) -> np.ndarray:
    spec = PreprocessSpec(size_px=32, fit="pad", pad_colour=colour, filter=filter)
    return preprocess.apply(spec, np.full((height, width, 3), RED, np.uint8))


@pytest.mark.parametrize("filter", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("width", "height", "rows", "columns"),
    [
        (64, 32, (8, 24), (0, 32)),
        (32, 64, (0, 32), (8, 24)),
        (16, 8, (8, 24), (0, 32)),  # enlarged
        (50, 50, (0, 32), (0, 32)),
        (96, 32, (10, 21), (0, 32)),  # 32/3 rounds to 11; the odd row of padding is below
        (3200, 10, (15, 16), (0, 32)),  # never less than one row
    ],
)
def test_the_whole_picture_lies_in_the_middle_and_no_colour_of_the_padding_mixes_with_it(
    width: int, height: int, rows: tuple[int, int], columns: tuple[int, int], filter: str
) -> None:
    expected = np.full((32, 32, 3), CREAM, np.uint8)
    expected[slice(*rows), slice(*columns)] = RED
    np.testing.assert_array_equal(padded(width, height, filter), expected)


def test_what_is_within_the_padding_is_the_picture_resized_as_a_whole() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    square = preprocess.apply(PreprocessSpec(size_px=30, fit="pad", filter="bicubic"), pixels)
    resized = Image.fromarray(pixels).resize((30, 20), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(square[5:25], np.asarray(resized))
    assert (square[:5] == 255).all()
    assert (square[25:] == 255).all()


def test_a_square_picture_is_the_same_padded_squeezed_and_cropped() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    one, two, three = (
        preprocess.apply(spec, pixels)
        for spec in (
            PreprocessSpec(size_px=24, fit="pad"),
            PreprocessSpec(size_px=24, fit="squeeze"),
            PreprocessSpec(size_px=24, resize_px=24, fit="crop"),
        )
    )
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one, three)


@pytest.mark.parametrize("shape", [(1, 1), (1, 60_000), (60_000, 1), (7, 5), (5, 7), (4096, 4095)])
def test_a_padded_picture_has_at_least_one_row_and_column_and_fills_the_longer_side(shape: tuple[int, int]) -> None:
    inner = padded_size(*shape, 224)
    assert max(inner) == 224
    assert min(inner) >= 1


def test_a_jpeg_that_is_decoded_at_a_part_of_its_size_is_padded_alike() -> None:
    y, x = np.mgrid[0:1200, 0:2400]
    pixels = np.stack([x * 255 // 2400, y * 255 // 1200, (x + y) * 255 // 3600], axis=2).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=95)
    spec = PreprocessSpec(size_px=128, fit="pad", filter="bicubic")
    drift = np.abs(preprocess.load(spec, out.getvalue()).astype(int) - preprocess.apply(spec, pixels).astype(int))
    assert drift.max() <= 6


# --- As a document -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"size_px": 8}, '{"size_px": 8, "resize_px": 0, "filter": "bilinear"}'),
        ({"size_px": 8, "fit": "squeeze"}, '{"size_px": 8, "resize_px": 0, "filter": "bilinear"}'),
        ({"size_px": 8, "resize_px": 9}, '{"size_px": 8, "resize_px": 9, "filter": "bilinear"}'),
        (
            {"size_px": 8, "fit": "pad"},
            '{"size_px": 8, "resize_px": 0, "filter": "bilinear", "fit": "pad", "pad_colour": [255, 255, 255]}',
        ),
    ],
)
def test_only_padding_adds_to_the_document_so_that_older_fingerprints_stay(spec: dict[str, Any], expected: str) -> None:
    assert json.dumps(PreprocessSpec(**spec, pixels=STORED).to_json()) == expected


def test_a_document_from_before_fit_is_cropped_with_a_resize_px_and_else_squeezed() -> None:
    assert PreprocessSpec.from_json({"size_px": 8, "resize_px": 9}).fit == "crop"
    assert PreprocessSpec.from_json({"size_px": 8, "resize_px": 0}).fit == "squeeze"


def test_a_padding_rule_comes_back_from_json_as_it_was() -> None:
    spec = PreprocessSpec(size_px=64, fit="pad", pad_colour=CREAM)
    assert PreprocessSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fit": "stretch"}, "fit is 'stretch'"),
        ({"fit": ["pad"]}, "fit is"),
        ({"fit": None}, "fit is None"),
        ({"fit": "pad", "resize_px": 8}, "resize_px is 8"),
        ({"fit": "squeeze", "resize_px": 8}, "resize_px is 8"),
        ({"fit": "crop"}, "resize_px is 0"),
        ({"fit": "pad", "pad_colour": [255, 255]}, "pad_colour is"),
        ({"fit": "pad", "pad_colour": [255, 255, 256]}, "pad_colour is"),
        ({"fit": "pad", "pad_colour": [255, 255, True]}, "pad_colour is"),
        ({"fit": "pad", "pad_colour": "white"}, "pad_colour is 'white'"),
        ({"fit": "pad", "pad_colour": {}}, "pad_colour is"),
        ({"pad_colour": [0, 0, 0]}, "no meaning"),
    ],
)
def test_a_rule_that_contradicts_itself_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(EncoderFileError, match=message):
        PreprocessSpec.from_json({"size_px": 8, **fields})


def test_the_rule_in_words_says_all_of_it() -> None:
    assert PreprocessSpec(size_px=8, fit="pad", pad_colour=CREAM).in_words() == (
        "padded to the square with #fffaf0, colours as sRGB, value range tag"
    )
    assert PreprocessSpec(size_px=8, resize_px=9, pixels=STORED).in_words() == (
        "shorter side to 9 px, centre 8 px, colours as stored, value range full"
    )
