"""PNG of 16 bits, transparency of few bits, and GIF frames that are smaller than their canvas."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageCms

from embedserve.errors import ImageUndecodable
from embedserve.images import codec
from embedserve.images.pixel_rule import STORED, PixelRule
from tests.images.quarters import encoded


def png(samples_HWB: NDArray[np.uint16], colours: int, depth: int = 16, transparent: tuple[int, ...] = ()) -> bytes:
    """A PNG of these samples; of fewer than 8 bits, they fill whole bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width, _ = samples_HWB.shape
    if depth == 16:
        rows = [row.astype(">u2").tobytes() for row in samples_HWB]
    else:
        bits = np.arange(depth)[::-1]
        rows = [np.packbits(row.reshape(-1, 1) >> bits & 1).tobytes() for row in samples_HWB]
    header = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    body = b"".join(b"\0" + row for row in rows)
    extra = chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)) if transparent else b""
    chunks = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize(("colours", "bands"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_are_rounded_alike_in_every_kind_of_colour(colours: int, bands: int) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (300, 40, bands), dtype=np.uint16)
    if colours in (4, 6):
        values[..., -1] = 65535
    expected = (values[..., : 3 if bands > 2 else 1].astype(np.uint32) + 128) // 257
    np.testing.assert_array_equal(codec.decode(png(values, colours)), np.broadcast_to(expected, (300, 40, 3)))


@pytest.mark.parametrize(("colours", "bands"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_the_value_range_holds_for_png(colours: int, bands: int) -> None:
    values = np.full((1, 3, bands), 65535, np.uint16)
    values[0, :, : 3 if bands > 2 else 1] = np.array([[0], [2048], [4095]])
    pixels = codec.decode(png(values, colours), rule=PixelRule(value_range=(0, 4095)))
    assert pixels[0, :, 0].tolist() == pixels[0, :, 2].tolist() == [0, 128, 255]


@pytest.mark.parametrize(("colours", "bands"), [(0, 1), (2, 3)])
def test_the_transparent_colour_of_sixteen_bits_is_compared_in_all_of_them(colours: int, bands: int) -> None:
    values = np.array([[[1000] * bands, [1001] * bands]], np.uint16)
    pixels = codec.decode(png(values, colours, transparent=(1000,) * bands))
    assert pixels.tolist() == [[[255] * 3, [4] * 3]]


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_transparent_grey_of_few_bits_becomes_white(depth: int) -> None:
    highest = (1 << depth) - 1
    for clear in {0, 1, highest // 2, highest}:
        values = np.arange(8, dtype=np.uint16).reshape(1, 8, 1) % (highest + 1)
        values[0, -1] = clear
        expected = np.where(values == clear, 255, values * 255 // highest)
        pixels = codec.decode(png(values, 0, depth, transparent=(clear,)))
        np.testing.assert_array_equal(pixels, np.broadcast_to(expected, (1, 8, 3)))


@pytest.mark.parametrize("transparent", [True, False])
@pytest.mark.parametrize("background", [0, 1])
def test_what_is_around_the_frame_of_a_gif_is_white(background: int, transparent: bool) -> None:
    image = Image.fromarray(np.array([[0, 1, 2, 2], [2, 2, 1, 0]], np.uint8), "P")
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    data = bytearray(encoded(image, "GIF", **({"transparency": 1} if transparent else {})))
    frame = data.index(b",\0\0\0\0\4\0\2\0")
    data[frame + 1 : frame + 5] = struct.pack("<HH", 3, 1)
    data[6:10] = struct.pack("<HH", 9, 5)
    data[11] = background
    expected = np.full((5, 9, 3), 255, np.uint8)
    expected[1:3, 3:7] = np.asarray(image.convert("RGB"))
    if transparent:
        expected[1:3, 3:7][np.asarray(image) == 1] = 255
    np.testing.assert_array_equal(codec.decode(bytes(data)), expected)


def with_chunk(data: bytes, kind: bytes, body: bytes) -> bytes:
    """A PNG with one more chunk, behind its header."""
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return data[:33] + chunk + data[33:]


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (b"iCCP", b"name\0\0" + zlib.compress(bytes(2 << 20))),
        (b"iCCP", b"name\0\0" + zlib.compress(bytes(5 << 20))),
        (b"iCCP", b"name\0\1" + zlib.compress(b"profile")),
        (b"iCCP", b"name\0\0not deflated"),
        (b"iCCP", b"name\0"),
        (b"iCCP", b"name"),
        (b"iCCP", b""),
        (b"zTXt", b"name\0\0" + zlib.compress(bytes(2 << 20))),
        (b"zTXt", b"name\0\1"),
        (b"pHYs", b""),
        (b"sRGB", b""),
    ],
)
def test_a_chunk_beside_the_picture_does_not_make_it_damaged(kind: bytes, body: bytes, depth: int) -> None:
    values = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint16)
    plain = encoded(Image.fromarray(values.astype(np.uint8)), "PNG") if depth == 8 else png(values * 257, 2)
    notes: list[str] = []
    pixels = codec.decode(with_chunk(plain, kind, body), notes=notes)
    np.testing.assert_array_equal(pixels, values)
    assert ["profile was left out" in note for note in notes] == ([True] if kind == b"iCCP" else [])


def test_a_profile_of_more_than_a_mebibyte_is_used() -> None:
    values = np.arange(0, 240, dtype=np.uint8).reshape(8, 10, 3)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # Red and blue exchanged, which no one takes for sRGB.
    profile = profile.replace(b"rXYZ", b"tmp ").replace(b"bXYZ", b"rXYZ").replace(b"tmp ", b"bXYZ")
    padded = profile + bytes(3 << 20)
    padded = len(padded).to_bytes(4, "big") + padded[4:]
    plain = encoded(Image.fromarray(values), "PNG")
    small, large = (with_chunk(plain, b"iCCP", b"n\0\0" + zlib.compress(icc)) for icc in (profile, padded))
    assert not np.array_equal(codec.decode(small), values)
    np.testing.assert_array_equal(codec.decode(large), codec.decode(small))


def test_a_damaged_chunk_beside_the_picture_is_still_damage() -> None:
    data = bytearray(with_chunk(encoded(Image.new("RGB", (4, 5)), "PNG"), b"iCCP", b"name\0\1"))
    data[42] ^= 1
    with pytest.raises(ImageUndecodable):
        codec.decode(bytes(data))


@pytest.mark.parametrize(("colours", "bands"), [(2, 3), (4, 2), (6, 4)])
def test_encoders_from_before_the_rule_meet_the_higher_byte(colours: int, bands: int) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (30, 40, bands), dtype=np.uint16)
    if colours != 2:
        values[..., -1] = 65535
    expected = np.broadcast_to(values[..., : 3 if bands > 2 else 1] >> 8, (30, 40, 3))
    np.testing.assert_array_equal(codec.decode(png(values, colours), rule=STORED), expected)
    if colours == 2:
        clear = tuple(int(value) for value in values[0, 0])
        pixels = codec.decode(png(values, colours, transparent=clear), rule=STORED)
        assert pixels[0, 0].tolist() == [255] * 3
        np.testing.assert_array_equal(pixels[1:], expected[1:])


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_encoders_from_before_the_rule_meet_the_higher_byte_of_a_tiff(compression: str | None, order: str) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (30, 40, 3), dtype=np.uint16)
    out = io.BytesIO()
    tifffile.imwrite(out, values, photometric="rgb", compression=compression, byteorder=order)  # type: ignore[arg-type]
    np.testing.assert_array_equal(codec.decode(out.getvalue(), rule=STORED), values >> 8)
