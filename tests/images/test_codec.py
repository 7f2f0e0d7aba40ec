"""Untrusted image bytes: what is read, and what is refused."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from embedserve.errors import ImageError, ImageFormatError, ImageTooLarge, ImageUndecodable
from embedserve.images import codec
from embedserve.types import Limits
from tests.images.quarters import BLUE, GREEN, QUARTERS, RED, assert_close, encoded, exif_with, quarters

# --- Formats -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_give_back_every_pixel(format: str) -> None:
    np.testing.assert_array_equal(codec.decode(quarters(format)), QUARTERS)


def test_lossless_webp_gives_back_every_pixel() -> None:
    np.testing.assert_array_equal(codec.decode(quarters("WEBP", lossless=True)), QUARTERS)


def test_a_jpeg_gives_back_the_picture() -> None:
    assert_close(codec.decode(quarters("JPEG", quality=95, subsampling=0)), QUARTERS, tolerance=2)


def test_the_pixels_are_writable_and_contiguous() -> None:
    pixels = codec.decode(quarters("PNG"))
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("format", ["PPM", "ICO", "TGA", "PCX", "DDS", "SGI"])
def test_formats_that_are_not_on_the_list_are_refused_although_pillow_reads_them(format: str) -> None:
    with pytest.raises(ImageFormatError, match="not a readable image") as caught:
        codec.decode(quarters(format))
    assert "JPEG" in caught.value.hint


@pytest.mark.parametrize(
    "data",
    [
        b"hello, this is not an image",
        b"%PDF-1.7 ...",
        b"8BPS\0\1" + bytes(200),
        b"\0\0\0\x18ftypavci" + bytes(200),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"GIF",
        b"\0",
    ],
    ids=["text", "pdf", "psd", "heif", "eps", "svg", "three-letters", "one-byte"],
)
def test_bytes_of_another_kind_are_refused_as_a_format_error(data: bytes) -> None:
    with pytest.raises(ImageFormatError):
        codec.decode(data)


def test_zero_bytes_are_refused() -> None:
    with pytest.raises(ImageUndecodable, match="zero bytes"):
        codec.decode(b"")


@pytest.mark.parametrize("format", ["GIF", "WEBP"])
def test_an_animation_is_its_first_frame(format: str) -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in (RED, GREEN, BLUE)]
    options: dict[str, object] = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=50, **options)
    assert codec.decode(data)[5, 5].tolist() == list(RED)


def test_the_media_type_comes_from_the_content() -> None:
    assert codec.media_type(quarters("PNG")) == "image/png"
    assert codec.media_type(quarters("JPEG")) == "image/jpeg"
    assert codec.media_type(quarters("WEBP")) == "image/webp"


def with_scans(count: int, *, metadata: bytes = b"") -> bytes:
    """A progressive JPEG whose last scan, of a few bytes, is repeated."""
    data = encoded(Image.new("L", (64, 64), 128), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    block = b"\xff\xe5" + struct.pack(">H", len(metadata) + 2) + metadata
    return data[:2] + block + data[2:last] + data[last:-2] * (count + 1) + data[-2:]


def test_a_jpeg_with_more_scans_than_any_encoder_writes_is_refused() -> None:
    assert codec.decode(with_scans(80)).shape == (64, 64, 3)
    with pytest.raises(ImageUndecodable, match="scans"):
        codec.decode(with_scans(100))


def test_bytes_in_metadata_that_look_like_scans_are_not_counted() -> None:
    assert codec.decode(with_scans(1, metadata=b"\xff\xda" * 5000)).shape == (64, 64, 3)


# --- Damage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("percent", range(10, 100, 10))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_truncated_image_is_refused_wherever_it_is_cut(format: str, percent: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), format)
    with pytest.raises(ImageUndecodable, match="damaged"):
        codec.decode(data[: len(data) * percent // 100])


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
def test_an_image_truncated_within_its_header_is_damaged_and_not_of_another_format(format: str) -> None:
    with pytest.raises(ImageUndecodable):
        codec.decode(quarters(format)[:14])


def test_a_damaged_checksum_is_refused() -> None:
    data = bytearray(quarters("PNG"))
    data[data.index(b"IDAT") + 6] ^= 0xFF
    with pytest.raises(ImageUndecodable):
        codec.decode(bytes(data))


def test_an_image_with_a_damaged_exif_block_is_read() -> None:
    data = quarters("JPEG", quality=95, subsampling=0, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\x99" * 30)
    assert_close(codec.decode(data), QUARTERS, tolerance=2)


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_an_orientation_that_does_not_exist_leaves_the_image_as_it_is(orientation: int) -> None:
    np.testing.assert_array_equal(codec.decode(quarters("PNG", exif=exif_with(orientation))), QUARTERS)


SEEDS = {
    "JPEG": quarters("JPEG", quality=80, exif=b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"),
    "progressive JPEG": quarters("JPEG", progressive=True),
    "PNG": quarters("PNG"),
    "palette PNG": encoded(Image.fromarray(QUARTERS).quantize(8), "PNG", transparency=0),
    "WEBP": quarters("WEBP", quality=70),
    "GIF": quarters("GIF"),
    "BMP": quarters("BMP"),
    "TIFF": quarters("TIFF"),
    "LZW TIFF": quarters("TIFF", compression="tiff_lzw"),
    "AVIF": quarters("AVIF"),
}


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    changes=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=4)), max_size=6),
    cut=st.one_of(st.none(), st.floats(0, 1)),
)
def test_whatever_happens_to_the_bytes_they_are_decoded_or_refused(
    seed: bytes, changes: list[tuple[float, bytes]], cut: float | None
) -> None:
    data = bytearray(seed)
    for place, new in changes:
        at = int(place * (len(data) - 1))
        data[at : at + len(new)] = new
    if cut is not None:
        del data[int(cut * len(data)) :]
    try:
        pixels = codec.decode(bytes(data), Limits(max_image_pixels=4_000_000))
    except ImageError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3


@given(data=st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_random_bytes_are_never_an_image(data: bytes) -> None:
    with pytest.raises(ImageError):
        codec.decode(data)


# --- Limits --------------------------------------------------------------------------------------------------------


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares this many pixels and holds none."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


@pytest.fixture
def _decoding_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(image: ImageFile.ImageFile) -> None:
        raise AssertionError("decoding began")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)


@pytest.mark.usefixtures("_decoding_is_an_error")
@pytest.mark.parametrize(
    ("width", "height"), [(50_000, 50_000), (10_000, 10_000), (8_001, 8_001), (2_000_000_000, 1)], ids=str
)
def test_too_many_pixels_are_refused_from_the_header(width: int, height: int) -> None:
    with pytest.raises(ImageTooLarge, match="64000000"):
        codec.decode(png_header(width, height))


@pytest.mark.usefixtures("_decoding_is_an_error")
def test_refusing_a_picture_of_billions_of_pixels_takes_no_memory() -> None:
    data = png_header(50_000, 50_000)
    tracemalloc.start()
    try:
        with pytest.raises(ImageTooLarge):
            codec.decode(data)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 5_000_000


def test_a_webp_canvas_beyond_the_limit_is_refused() -> None:
    side = (16_383).to_bytes(3, "little")
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes(4) + side + side
    with pytest.raises(ImageTooLarge):
        codec.decode(b"RIFF" + struct.pack("<I", 4 + len(canvas)) + b"WEBP" + canvas)


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}])
def test_the_size_of_every_kind_of_webp_is_read_from_its_header(options: dict[str, object]) -> None:
    out = io.BytesIO()
    Image.new("RGB", (300, 17), RED).save(out, "WEBP", **options)
    assert codec._webp_canvas(out.getvalue()) == (300, 17)
    with pytest.raises(ImageTooLarge, match="300 × 17 = 5100 pixels"):
        codec.decode(out.getvalue(), Limits(max_image_pixels=5099))


def test_exactly_the_allowed_pixels_are_read_and_one_more_is_not() -> None:
    data = quarters("PNG")
    assert codec.decode(data, Limits(max_image_pixels=32 * 48)).shape == (32, 48, 3)
    with pytest.raises(ImageTooLarge, match="max_image_pixels is 1535"):
        codec.decode(data, Limits(max_image_pixels=32 * 48 - 1))


def test_a_limit_above_that_of_pillow_is_respected() -> None:
    # Pillow alone refuses 179 million pixels. The file holds none of them, so it is damaged, but not too large.
    with pytest.raises(ImageUndecodable):
        codec.decode(png_header(20_000, 10_000), Limits(max_image_pixels=200_000_000))


def test_a_small_limit_leaves_other_users_of_pillow_alone() -> None:
    with pytest.raises(ImageTooLarge):
        codec.decode(png_header(100, 100), Limits(max_image_pixels=10))
    assert Image.MAX_IMAGE_PIXELS is None or Image.MAX_IMAGE_PIXELS >= 64_000_000


def test_a_side_beyond_the_limit_is_refused_whatever_the_number_of_pixels() -> None:
    with pytest.raises(ImageTooLarge, match="100000 × 2 pixels; max_image_side_px is 65535"):
        codec.decode(png_header(100_000, 2))


def test_more_bytes_than_allowed_are_refused_before_they_are_parsed() -> None:
    with pytest.raises(ImageTooLarge, match="the image has 11 bytes; max_image_bytes is 10"):
        codec.decode(b"not a image", Limits(max_image_bytes=10))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 5000), (5000, 1)])
def test_images_of_extreme_shape_are_read(width: int, height: int) -> None:
    data = encoded(Image.new("RGB", (width, height), RED), "PNG")
    pixels = codec.decode(data)
    assert pixels.shape == (height, width, 3)
    assert pixels[0, 0].tolist() == list(RED)
