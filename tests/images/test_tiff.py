"""TIFF: directories, bands, ranges, and the refusals; all combinations of samples are in ``test_tiff_table``."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from embedserve.errors import ImageFormatError, ImageTooLarge, ImageUndecodable
from embedserve.images import codec
from embedserve.images.pixel_rule import STORED, PixelRule

SLOPE = np.linspace(0, 65_535, 20 * 30 * 3).astype(np.uint16).reshape(20, 30, 3)
"""[20, 30, 3], 16 bits."""


def tiff(array: NDArray[Any], **options: Any) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, array, metadata=None, **options)
    return out.getvalue()


def pages(*parts: tuple[NDArray[Any], dict[str, Any]]) -> bytes:
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as writer:
        for array, options in parts:
            writer.write(array, metadata=None, **options)
    return out.getvalue()


def raw(fields: Mapping[int, Any], body: bytes = b"") -> bytes:
    """A little-endian TIFF whose directory has these fields; the body begins at byte 8."""
    start = 8 + len(body)
    entries, more = b"", b""
    for tag, value in sorted(fields.items()):
        values = value if isinstance(value, tuple) else (value,)
        packed = struct.pack(f"<{len(values)}I", *values)
        if len(packed) > 4:
            place = start + 2 + 12 * len(fields) + 4 + len(more)
            more += packed
            packed = struct.pack("<I", place)
        entries += struct.pack("<HHI", tag, 4, len(values)) + packed
    return b"II*\0" + struct.pack("<I", start) + body + struct.pack("<H", len(fields)) + entries + bytes(4) + more


GREY: dict[int, Any] = {256: 4, 257: 2, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 2, 279: 8}
"""The fields of 4 × 2 grey pixels of 8 bits."""
EIGHT = bytes(range(0, 80, 10))


def rounded(values: NDArray[Any]) -> NDArray[Any]:
    return (values.astype(np.uint32) + 128) // 257


# --- Samples and ranges --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [PixelRule(), STORED], ids=["new", "stored"])
def test_sixteen_bit_rgb_in_separate_planes_is_the_same_picture(rule: PixelRule) -> None:
    data = tiff(np.moveaxis(SLOPE, -1, 0).copy(), photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(codec.decode(data, rule=rule), rounded(SLOPE))


@pytest.mark.parametrize("order", "<>")
def test_sixteen_bit_white_is_zero_is_not_a_negative(order: str) -> None:
    data = tiff(SLOPE[..., 0], photometric="miniswhite", byteorder=order)
    np.testing.assert_array_equal(codec.decode(data)[..., 0], 255 - rounded(SLOPE[..., 0]))


def test_packed_twelve_bits_reach_from_black_to_white() -> None:
    data = tiff(np.array([[0, 2048, 4095]], np.uint16), photometric="minisblack", bitspersample=12)
    assert codec.decode(data)[0, :, 0].tolist() == [0, 128, 255]


def test_twelve_bits_in_sixteen_follow_max_sample_value_where_the_rule_says_tag() -> None:
    values = np.array([[0, 2048, 4095]], np.uint16)
    data = tiff(values, photometric="minisblack", extratags=[(280, 3, 1, 0, True), (281, 3, 1, 4095, True)])
    assert codec.decode(data)[0, :, 0].tolist() == [0, 128, 255]
    assert codec.decode(data, rule=PixelRule(value_range="full"))[0, :, 0].tolist() == [0, 8, 16]
    assert codec.decode(data, rule=PixelRule(value_range=(0, 2048)))[0, :, 0].tolist() == [0, 255, 255]


def test_a_range_that_is_empty_or_not_finite_is_not_taken() -> None:
    values = np.array([[0, 65_535]], np.uint16)
    for low, high in ((9, 9), (9, 2)):
        data = tiff(values, photometric="minisblack", extratags=[(280, 3, 1, low, True), (281, 3, 1, high, True)])
        assert codec.decode(data)[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize(("dtype", "name"), [("i2", "16-bit signed"), ("f4", "32-bit float"), ("f2", "16-bit float")])
def test_samples_without_a_range_are_refused_by_name_and_decoded_with_one(dtype: str, name: str) -> None:
    data = tiff(np.array([[0, 50, 100]], dtype), photometric="minisblack")
    with pytest.raises(ImageFormatError, match=name) as caught:
        codec.decode(data)
    assert "value_range" in caught.value.hint
    assert codec.decode(data, rule=PixelRule(value_range=(0, 100)))[0, :, 0].tolist() == [0, 128, 255]


def test_reversed_bits_are_turned_back() -> None:
    mirrored = bytes(int(f"{value:08b}"[::-1], 2) for value in EIGHT)
    assert codec.decode(raw(GREY | {266: 2}, mirrored))[..., 0].tobytes() == EIGHT


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt"])
def test_ccitt_files_are_read(compression: str) -> None:
    bits = np.random.default_rng(1).integers(0, 2, (16, 40)).astype(bool)
    out = io.BytesIO()
    Image.fromarray(bits).save(out, "TIFF", compression=compression)
    np.testing.assert_array_equal(codec.decode(out.getvalue())[..., 0], bits * 255)


def test_cmyk_in_jpeg_is_read() -> None:
    out = io.BytesIO()
    Image.new("CMYK", (16, 16), (200, 30, 60, 40)).save(out, "TIFF", compression="jpeg")
    assert np.abs(codec.decode(out.getvalue()).astype(int) - [46, 190, 164]).max() <= 1  # (255 − C)(255 − K) / 255


def test_a_big_endian_bigtiff_is_read() -> None:
    data = tiff(SLOPE, photometric="rgb", bigtiff=True, byteorder=">")
    np.testing.assert_array_equal(codec.decode(data), rounded(SLOPE))
    assert codec.media_type(data) == "image/tiff"


def test_tall_pictures_are_put_together_from_groups_of_strips_and_tiles() -> None:
    tall = np.random.default_rng(0).integers(0, 65_536, (3000, 700, 3)).astype(np.uint16)
    for options in ({"rowsperstrip": 7}, {"tile": (48, 32)}, {"planarconfig": "separate", "rowsperstrip": 7}):
        array = np.moveaxis(tall, -1, 0).copy() if "planarconfig" in options else tall
        np.testing.assert_array_equal(codec.decode(tiff(array, photometric="rgb", **options)), rounded(tall))


@pytest.mark.parametrize("compressed", [False, True])
def test_ycbcr_without_subsampling_is_read(compressed: bool) -> None:
    triples = np.array([[[76, 85, 255], [150, 44, 21], [29, 255, 107], [255, 128, 128]]] * 2, np.uint8)
    body = zlib.compress(triples.tobytes()) if compressed else triples.tobytes()
    fields = {258: (8,) * 3, 259: 8 if compressed else 1, 262: 6, 277: 3, 279: len(body), 530: (1, 1)}
    pixels = codec.decode(raw(GREY | fields, body))
    wanted = [[254, 0, 0], [0, 255, 1], [0, 0, 254], [255, 255, 255]]  # BT.601, by hand
    assert np.abs(pixels[0].astype(int) - wanted).max() <= 1


def test_compressed_ycbcr_may_be_subsampled() -> None:
    body = zlib.compress(bytes([76, 76, 76, 76, 85, 255, 255, 255, 255, 255, 128, 128]))
    fields = {258: (8,) * 3, 259: 8, 262: 6, 277: 3, 279: len(body), 530: (2, 2)}
    pixels = codec.decode(raw(GREY | fields, body))
    assert np.abs(pixels[1].astype(int) - [[254, 0, 0], [254, 0, 0], [255, 255, 255], [255, 255, 255]]).max() <= 1


# --- Bands ---------------------------------------------------------------------------------------------------------

FOUR = np.concatenate([SLOPE, 65_535 - SLOPE[..., :1]], axis=-1)


def test_a_fourth_band_that_nobody_calls_transparency_is_left_out_and_noted() -> None:
    notes: list[str] = []
    data = tiff(FOUR, photometric="rgb", extrasamples=["unspecified"])
    np.testing.assert_array_equal(codec.decode(data, notes=notes), rounded(SLOPE))
    assert notes == ["of the 4 bands of the TIFF the first 3 were taken (bands 1,2,3 leaves the others out)"]


def test_a_fourth_band_without_extra_samples_is_left_out_and_noted() -> None:
    notes: list[str] = []
    body = bytes(range(32))
    data = raw(GREY | {258: (8,) * 4, 262: 2, 277: 4, 279: 32}, body)
    assert codec.decode(data, notes=notes).tobytes() == bytes(v for v in body if v % 4 != 3)
    assert len(notes) == 1


def test_a_fourth_band_called_transparency_is_noted_and_bands_leaves_it_out() -> None:
    notes: list[str] = []
    data = tiff(FOUR, photometric="rgb", extrasamples=["unassalpha"])
    assert not np.array_equal(codec.decode(data, notes=notes), rounded(SLOPE))
    assert "taken for transparency" in notes[0]
    np.testing.assert_array_equal(codec.decode(data, rule=PixelRule(bands=(1, 2, 3))), rounded(SLOPE))


@pytest.mark.parametrize("planar", [False, True])
def test_bands_choose_and_order(planar: bool) -> None:
    array = np.moveaxis(FOUR, -1, 0).copy() if planar else FOUR
    data = tiff(array, photometric="rgb", planarconfig="separate" if planar else "contig", extrasamples=[0])
    np.testing.assert_array_equal(codec.decode(data, rule=PixelRule(bands=(4, 2, 1))), rounded(FOUR)[..., [3, 1, 0]])
    np.testing.assert_array_equal(codec.decode(data, rule=PixelRule(bands=(4,)))[..., 2], rounded(FOUR)[..., 3])


def test_bands_that_are_not_there_are_named() -> None:
    with pytest.raises(ImageFormatError, match="has 3 bands, and the rule takes band 7"):
        codec.decode(tiff(SLOPE, photometric="rgb"), rule=PixelRule(bands=(7, 2, 1)))


# --- Directories ---------------------------------------------------------------------------------------------------


def test_the_full_image_is_taken_where_the_first_directory_is_a_thumbnail() -> None:
    notes: list[str] = []
    small = (SLOPE[::4, ::4].copy(), {"photometric": "rgb", "subfiletype": 1})
    data = pages(small, (SLOPE, {"photometric": "rgb"}))
    np.testing.assert_array_equal(codec.decode(data, notes=notes), rounded(SLOPE))
    assert "thumbnail" in notes[0]
    inside = pages(
        (SLOPE[::4, ::4].copy(), {"photometric": "rgb", "subfiletype": 1, "subifds": 1}),
        (SLOPE, {"photometric": "rgb"}),
    )
    np.testing.assert_array_equal(codec.decode(inside), rounded(SLOPE))


def test_of_a_raw_file_the_thumbnail_is_not_taken() -> None:
    small = (SLOPE[::4, ::4].copy(), {"photometric": "rgb", "subfiletype": 1, "subifds": 1})
    with pytest.raises(ImageFormatError, match="colour filter array"):
        codec.decode(pages(small, (SLOPE[..., 0].copy(), {"photometric": "cfa"})))


def test_only_thumbnails_are_refused_and_the_first_of_several_pages_is_noted() -> None:
    small = (SLOPE[::4, ::4].copy(), {"photometric": "rgb", "subfiletype": 1})
    with pytest.raises(ImageFormatError, match="2 thumbnails or masks and no full image"):
        codec.decode(pages(small, small))
    notes: list[str] = []
    codec.decode(pages((SLOPE, {"photometric": "rgb"}), (SLOPE, {"photometric": "rgb"})), notes=notes)
    assert notes == ["the TIFF has more than one page; the first was taken"]


def test_directories_in_a_circle_end() -> None:
    data = bytearray(raw(GREY | {254: 1}, EIGHT))
    data[-4:] = data[4:8]
    assert codec.decode(bytes(data)).shape == (2, 4, 3)


# --- Refused by name, damaged, too large ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({259: 6}, "old-style JPEG"),
        ({259: 34661}, "JBIG"),
        ({259: 34677}, "SGILog24"),
        ({259: 50001}, "WebP"),
        ({259: 4711}, "unknown compression .number 4711"),
        ({262: 8, 277: 3, 258: (16, 16, 16)}, "CIE Lab"),
        ({262: 32845}, "LogLuv"),
        ({262: 2, 277: 3, 258: (5, 6, 5)}, "different types"),
        ({262: 6, 277: 3, 258: (8, 8, 8)}, "YCbCr samples subsampled 2 × 2"),
        ({339: 6, 258: 64}, "64-bit complex"),
    ],
)
def test_what_is_not_read_is_refused_by_its_name(fields: dict[int, Any], name: str) -> None:
    with pytest.raises(ImageFormatError, match=name) as caught:
        codec.decode(raw(GREY | fields, EIGHT * 8))
    assert caught.value.hint


def test_lossless_jpeg_in_a_tiff_is_refused_by_name() -> None:
    data = tiff(
        SLOPE[..., 0].astype(np.uint8), photometric="minisblack", compression="jpeg", compressionargs={"lossless": True}
    )
    with pytest.raises(ImageFormatError, match="lossless JPEG"):
        codec.decode(data)


@pytest.mark.parametrize("compression", [None, "lzw", "deflate"])
def test_a_file_that_is_cut_off_is_damaged(compression: str | None) -> None:
    data = tiff(SLOPE, photometric="rgb", compression=compression)
    for length in (4, 7, 9, len(data) // 2, len(data) - 1):
        with pytest.raises(ImageUndecodable):
            codec.decode(data[:length])


@pytest.mark.parametrize(
    "fields",
    [{256: 0}, {258: 0, 277: 0}, {278: 0}, {273: 2**31}, {273: (8, 8), 278: 1, 279: (4, 0)}, {277: 3, 262: 2, 258: 8}],
)
def test_headers_that_contradict_themselves_end_in_an_error_of_ours(fields: dict[int, Any]) -> None:
    with pytest.raises((ImageUndecodable, ImageFormatError)):
        codec.decode(raw(GREY | fields, EIGHT))


def test_sizes_in_the_header_are_refused_before_memory_is_taken() -> None:
    for fields in ({256: 60_000, 257: 60_000}, {277: 65_535, 256: 8100, 257: 8000}):
        with pytest.raises(ImageTooLarge):
            codec.decode(raw(GREY | fields | {258: 8}, EIGHT))
    huge = {key: value for key, value in GREY.items() if key not in (273, 278, 279)}
    with pytest.raises(ImageTooLarge, match="tiles of the TIFF are 1048576 × 1048576"):
        codec.decode(raw(huge | {322: 1 << 20, 323: 1 << 20, 324: 8, 325: 8, 259: 8}, EIGHT))
