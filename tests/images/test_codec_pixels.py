"""The pixels of an image: pixel types, transparency, orientation, scaled decoding."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFile

from embedserve.errors import ImageFormatError
from embedserve.images import codec, jpeg
from tests.images.quarters import GREEN, QUARTERS, RED, assert_close, encoded, exif_with, quarters

# --- Pixel types ---------------------------------------------------------------------------------------------------


def test_grey_becomes_three_equal_channels() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pixels = codec.decode(encoded(Image.fromarray(grey), "PNG"))
    np.testing.assert_array_equal(pixels, np.stack([grey] * 3, axis=-1))


def test_black_and_white_becomes_0_and_255() -> None:
    bits = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1")
    assert codec.decode(encoded(bits, "PNG"))[..., 0].tolist() == [[0, 255], [255, 0]]


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("byte_order", ["<u2", ">u2"])
def test_sixteen_bit_grey_is_scaled_to_eight_by_257(format: str, byte_order: str) -> None:
    values = np.array([[0, 128, 129, 257], [32767, 32896, 65406, 65535]], np.uint16)
    data = encoded(Image.fromarray(values.astype(byte_order)), format)
    assert codec.decode(data)[..., 0].tolist() == [[0, 0, 1, 1], [127, 128, 254, 255]]


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_turned_upright_too(format: str) -> None:
    values = np.array([[0, 257], [514, 771], [1028, 1285]], np.uint16)
    data = encoded(Image.fromarray(values), format, exif=exif_with(6))
    assert codec.decode(data)[..., 1].tolist() == [[4, 2, 0], [5, 3, 1]]


@pytest.mark.parametrize("values", [np.zeros((4, 4), np.int32), np.zeros((4, 4), np.float32)], ids=["int", "float"])
def test_thirty_two_bit_pixels_are_refused_because_their_range_is_unknown(values: NDArray[np.generic]) -> None:
    with pytest.raises(ImageFormatError, match="32-bit") as caught:
        codec.decode(encoded(Image.fromarray(values), "TIFF"))
    assert "8 or 16 bits" in caught.value.hint


def test_cmyk_tiff_becomes_rgb() -> None:
    cmyk = Image.merge("CMYK", [Image.new("L", (8, 8), value) for value in (0, 255, 255, 0)])
    assert codec.decode(encoded(cmyk, "TIFF"))[4, 4].tolist() == [255, 0, 0]


@pytest.mark.parametrize("adobe", [True, False])
def test_cmyk_jpeg_is_not_inverted(adobe: bool) -> None:
    cmyk = Image.merge("CMYK", [Image.new("L", (16, 16), value) for value in (0, 255, 255, 0)])
    data = encoded(cmyk, "JPEG", quality=95)
    at = data.index(b"\xff\xee")
    assert data[at + 4 : at + 9] == b"Adobe"
    if not adobe:
        data = data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]
    red, green, blue = codec.decode(data)[8, 8].tolist()
    assert red > 245
    assert green < 10
    assert blue < 10


def test_transparent_pixels_are_composed_on_white() -> None:
    rgba = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 128]]], np.uint8)
    assert codec.decode(encoded(Image.fromarray(rgba), "PNG")).tolist() == [[[255, 0, 0], [255, 255, 255], [127] * 3]]


def test_grey_with_alpha_is_composed_on_white() -> None:
    la = Image.merge("LA", [Image.new("L", (2, 1), 40), Image.fromarray(np.array([[255, 0]], np.uint8))])
    assert codec.decode(encoded(la, "PNG")).tolist() == [[[40] * 3, [255] * 3]]


def test_a_transparent_palette_colour_is_composed_on_white() -> None:
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([*RED, *GREEN])
    data = encoded(palette, "PNG", transparency=0)
    assert codec.decode(data).tolist() == [[[255] * 3, list(GREEN)]]


def test_a_transparent_gif_colour_is_composed_on_white() -> None:
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([*RED, *GREEN])
    data = encoded(palette, "GIF", transparency=1)
    assert codec.decode(data).tolist() == [[list(RED), [255] * 3]]


def test_a_colour_that_png_declares_transparent_is_composed_on_white() -> None:
    pixels = np.array([[RED, GREEN]], np.uint8)
    data = encoded(Image.fromarray(pixels), "PNG", transparency=RED)
    assert codec.decode(data).tolist() == [[[255] * 3, list(GREEN)]]


# --- Orientation ---------------------------------------------------------------------------------------------------


STORED = {
    1: QUARTERS,
    2: QUARTERS[:, ::-1],
    3: QUARTERS[::-1, ::-1],
    4: QUARTERS[::-1],
    5: QUARTERS.transpose(1, 0, 2),
    6: np.rot90(QUARTERS, 1),
    7: np.rot90(QUARTERS, 2).transpose(1, 0, 2),
    8: np.rot90(QUARTERS, -1),
}
"""By EXIF orientation, QUARTERS as a camera held that way stores it."""


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_from_a_turned_camera_comes_out_upright(orientation: int) -> None:
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    data = encoded(stored, "JPEG", quality=95, subsampling=0, exif=exif_with(orientation))
    assert_close(codec.decode(data), QUARTERS, tolerance=2)


@pytest.mark.parametrize(("format", "orientation"), [("PNG", 6), ("WEBP", 8), ("TIFF", 5), ("TIFF", 6)])
def test_other_formats_are_turned_once_as_well(format: str, orientation: int) -> None:
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    options: dict[str, object] = {"lossless": True} if format == "WEBP" else {}
    data = encoded(stored, format, exif=exif_with(orientation), **options)
    np.testing.assert_array_equal(codec.decode(data), QUARTERS)


# --- Scaled decoding and thumbnails --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "min_side_px", "expected"),
    [
        ((1600, 1200), 0, (1600, 1200)),
        ((1600, 1200), 600, (800, 600)),
        ((1600, 1200), 601, (1600, 1200)),
        ((1600, 1200), 100, (200, 150)),
        ((1601, 1203), 100, (201, 151)),
        ((1600, 90), 100, (1600, 90)),
    ],
)
def test_a_jpeg_is_decoded_small_as_long_as_both_sides_stay_large_enough(
    size: tuple[int, int], min_side_px: int, expected: tuple[int, int]
) -> None:
    data = encoded(Image.new("RGB", size, GREEN), "JPEG")
    height, width, _ = codec.decode(data, min_side_px=min_side_px).shape
    assert (width, height) == expected


def test_other_formats_are_decoded_in_full() -> None:
    data = encoded(Image.new("RGB", (800, 600), GREEN), "PNG")
    assert codec.decode(data, min_side_px=50).shape == (600, 800, 3)


def test_a_scaled_decode_is_turned_upright_too() -> None:
    data = encoded(Image.new("RGB", (800, 400), GREEN), "JPEG", exif=exif_with(6))
    assert codec.decode(data, min_side_px=100).shape == (200, 100, 3)


def test_a_thumbnail_is_a_jpeg_of_at_most_256_pixels_with_the_same_aspect() -> None:
    thumbnail = codec.thumbnail(np.full((300, 1200, 3), 90, np.uint8))
    with Image.open(io.BytesIO(thumbnail)) as image:
        assert image.format == "JPEG"
        assert image.size == (256, 64)


def test_a_small_image_is_its_own_thumbnail() -> None:
    with Image.open(io.BytesIO(codec.thumbnail(np.zeros((20, 30, 3), np.uint8)))) as image:
        assert image.size == (30, 20)


# --- simplejpeg beside Pillow ---------------------------------------------------------------------------------------


def through_pillow(data: bytes, min_side_px: int) -> NDArray[np.uint8]:
    """A JPEG as Pillow alone decodes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jpeg, "_simplejpeg", lambda: None)
        return codec.decode(data, min_side_px=min_side_px)


@settings(max_examples=150, deadline=None)
@given(
    width=st.integers(1, 700),
    height=st.integers(1, 700),
    mode=st.sampled_from(["RGB", "L", "CMYK"]),
    quality=st.integers(5, 100),
    subsampling=st.integers(0, 2),
    progressive=st.booleans(),
    orientation=st.sampled_from([None, *range(1, 9)]),
    min_side_px=st.sampled_from([0, 1, 16, 64, 100, 256]),
    seed=st.integers(0, 9),
)
def test_a_jpeg_has_the_same_pixels_with_and_without_simplejpeg(
    width: int,
    height: int,
    mode: str,
    quality: int,
    subsampling: int,
    progressive: bool,
    orientation: int | None,
    min_side_px: int,
    seed: int,
) -> None:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 9 + 1, width // 9 + 1, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    data = encoded(
        picture,
        "JPEG",
        quality=quality,
        subsampling=subsampling,
        progressive=progressive,
        **({} if orientation is None else {"exif": exif}),
    )
    np.testing.assert_array_equal(codec.decode(data, min_side_px=min_side_px), through_pillow(data, min_side_px))


def test_an_ordinary_jpeg_does_not_go_through_pillows_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    data = quarters("JPEG")
    expected = codec.decode(data)

    def load(self: object) -> None:
        raise AssertionError("Pillow decodes")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    np.testing.assert_array_equal(codec.decode(data), expected)


def test_a_jpeg_with_warnings_is_decoded_by_pillow() -> None:
    data = quarters("JPEG")
    garbled = data[:-2] + b"\x00\x17\x42" + data[-2:]  # extraneous bytes before the end, which Pillow skips
    np.testing.assert_array_equal(codec.decode(garbled), through_pillow(garbled, 0))
