"""Encoders from before the pixel rule keep their pixels; bad profiles, bytes between segments, bands of others."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from embedserve.errors import ImageFormatError
from embedserve.images import codec
from embedserve.images.pixel_rule import STORED, PixelRule
from tests.images.quarters import QUARTERS, encoded, quarters

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def sixteen(bands: int) -> NDArray[np.uint16]:
    """uint16 [17, 23, bands]: values whose lower byte says that they are rounded up, and others."""
    return np.random.default_rng(3).integers(0, 65_536, (17, 23, bands), dtype=np.uint16)


def png_of(samples: NDArray[np.uint16]) -> bytes:
    height, width, bands = samples.shape
    colours = {3: 2, 4: 6, 2: 4, 1: 0}[bands]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, colours, 0, 0, 0)
    return SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff_of(samples: NDArray[np.uint16], **options: Any) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, samples, photometric="rgb", metadata=None, **options)
    return out.getvalue()


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
def test_sixteen_bit_colours_of_a_tiff_keep_their_higher_byte_for_an_older_encoder(compression: str | None) -> None:
    samples = sixteen(3)
    data = tiff_of(samples, compression=compression)
    np.testing.assert_array_equal(codec.decode(data, rule=STORED), samples >> 8)
    np.testing.assert_array_equal(codec.decode(data), (samples.astype(int) + 128) // 257)


def test_sixteen_bit_colours_of_a_png_keep_their_higher_byte_for_an_older_encoder() -> None:
    samples = sixteen(3)
    data = png_of(samples)
    np.testing.assert_array_equal(codec.decode(data, rule=STORED), samples >> 8)
    np.testing.assert_array_equal(codec.decode(data), (samples.astype(int) + 128) // 257)


def test_sixteen_bit_grey_is_rounded_under_every_rule_as_it_was() -> None:
    samples = sixteen(1)
    expected = np.repeat((samples.astype(int) + 128) // 257, 3, axis=2)
    for rule in (STORED, PixelRule()):
        np.testing.assert_array_equal(codec.decode(png_of(samples), rule=rule), expected)


# --- Profiles that cannot be read ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"big\0\0" + zlib.compress(bytes(2 << 20)),
        b"method\0\1" + zlib.compress(bytes(200)),
        b"",
        b"no zero byte",
        b"cut\0\0" + zlib.compress(bytes(range(256)))[:20],
    ],
    ids=["larger than Pillow takes", "another compression", "empty", "without an end of its name", "cut"],
)
def test_a_png_is_not_damaged_because_its_profile_is(body: bytes) -> None:
    plain = quarters("PNG")
    after_header = 8 + 25
    data = plain[:after_header] + chunk(b"iCCP", body) + plain[after_header:]
    np.testing.assert_array_equal(codec.decode(data), QUARTERS)


def test_that_a_profile_was_left_out_is_noted() -> None:
    plain, notes = quarters("PNG"), list[str]()
    codec.decode(plain[:33] + chunk(b"iCCP", b"") + plain[33:], notes=notes)
    assert len(notes) == 1
    assert "profile" in notes[0]


def test_a_damaged_png_with_a_profile_is_still_damaged() -> None:
    plain = quarters("PNG")
    data = plain[:33] + chunk(b"iCCP", b"") + plain[33:-30]
    with pytest.raises(Exception, match="damaged"):
        codec.decode(data)


# --- JPEG ----------------------------------------------------------------------------------------------------------


def test_bytes_between_the_segments_of_a_jpeg_do_not_cost_the_scaled_decode() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize((400, 300))
    plain = encoded(picture, "JPEG", quality=90)
    after_first = 4 + int.from_bytes(plain[4:6], "big")
    data = plain[:after_first] + b"\x00\x17\x42" + plain[after_first:]
    assert codec.decode(data, min_side_px=40).shape == codec.decode(plain, min_side_px=40).shape == (75, 100, 3)
    np.testing.assert_allclose(codec.decode(data), codec.decode(plain), atol=2)


# --- Bands of files that are no TIFF -------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP"])
def test_bands_choose_among_the_colours_of_any_format(format: str) -> None:
    options: dict[str, object] = {"lossless": True} if format == "WEBP" else {}
    data = quarters(format, **options)
    plain = codec.decode(data)
    np.testing.assert_array_equal(codec.decode(data, rule=PixelRule(bands=(3, 2, 1))), plain[..., ::-1])
    np.testing.assert_array_equal(codec.decode(data, rule=PixelRule(bands=(2,))), plain[..., [1, 1, 1]])


def test_bands_that_a_picture_does_not_have_are_refused_by_their_number() -> None:
    with pytest.raises(ImageFormatError, match="has 3 bands, and the rule takes band 4"):
        codec.decode(quarters("PNG"), rule=PixelRule(bands=(4, 3, 2)))
    grey = encoded(Image.new("L", (8, 8), 90), "PNG")
    with pytest.raises(ImageFormatError, match="has 1 band, and the rule takes band 2"):
        codec.decode(grey, rule=PixelRule(bands=(2,)))
    assert codec.decode(grey, rule=PixelRule(bands=(1,)))[0, 0].tolist() == [90, 90, 90]
