"""Image bytes as they come from outside: what is read, how it is read, and what is refused."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFile

from embedserve.errors import ImageError, ImageFormatError, ImageTooLarge, ImageUndecodable
from embedserve.images import codec
from embedserve.types import Limits

# Four quarters in four colours: every flip and turn of it looks different.
RED, GREEN, BLUE, GREY = (200, 30, 30), (30, 180, 40), (20, 40, 190), (128, 128, 128)
QUARTERS = np.zeros((32, 48, 3), np.uint8)
QUARTERS[:16, :24], QUARTERS[:16, 24:], QUARTERS[16:, :24], QUARTERS[16:, 24:] = RED, GREEN, BLUE, GREY


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def quarters(format: str, **options: object) -> bytes:
    return encoded(Image.fromarray(QUARTERS), format, **options)


def assert_close(ours: NDArray[np.uint8], expected: NDArray[np.uint8], tolerance: float) -> None:
    assert ours.shape == expected.shape
    assert np.abs(ours.astype(int) - expected.astype(int)).mean() <= tolerance


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
        b"\0\0\0\x18ftypheic" + bytes(200),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"GIF",
        b"\0",
    ],
    ids=["text", "pdf", "psd", "heic", "eps", "svg", "three-letters", "one-byte"],
)
def test_bytes_of_another_kind_are_refused_as_a_format_error(data: bytes) -> None:
    with pytest.raises(ImageFormatError):
        codec.decode(data)


def test_zero_bytes_are_refused() -> None:
    with pytest.raises(ImageUndecodable, match="zero bytes"):
        codec.decode(b"")


@pytest.mark.parametrize("format", ["GIF", "WEBP"])
def test_of_an_animation_the_first_frame_counts(format: str) -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in (RED, GREEN, BLUE)]
    options: dict[str, object] = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=50, **options)
    assert codec.decode(data)[5, 5].tolist() == list(RED)


def test_media_type_is_told_by_the_content() -> None:
    assert codec.media_type(quarters("PNG")) == "image/png"
    assert codec.media_type(quarters("JPEG")) == "image/jpeg"
    assert codec.media_type(quarters("WEBP")) == "image/webp"


def with_scans(count: int, *, metadata: bytes = b"") -> bytes:
    """A progressive JPEG whose last scan, of a few bytes, comes so many times more."""
    data = encoded(Image.new("L", (64, 64), 128), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    block = b"\xff\xe5" + struct.pack(">H", len(metadata) + 2) + metadata
    return data[:2] + block + data[2:last] + data[last:-2] * (count + 1) + data[-2:]


def test_a_jpeg_with_more_scans_than_any_encoder_writes_is_refused_since_each_costs_all_pixels_again() -> None:
    assert codec.decode(with_scans(80)).shape == (64, 64, 3)
    with pytest.raises(ImageUndecodable, match="scans"):
        codec.decode(with_scans(100))


def test_what_looks_like_a_scan_in_metadata_is_none() -> None:
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
def test_an_image_cut_within_its_header_is_damaged_and_not_of_another_format(format: str) -> None:
    with pytest.raises(ImageUndecodable):
        codec.decode(quarters(format)[:14])


def test_a_damaged_checksum_is_refused() -> None:
    data = bytearray(quarters("PNG"))
    data[data.index(b"IDAT") + 6] ^= 0xFF
    with pytest.raises(ImageUndecodable):
        codec.decode(bytes(data))


def test_a_damaged_exif_block_does_not_cost_the_image() -> None:
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
    """A PNG that promises so many pixels and holds none."""

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
    ("width", "height"), [(50_000, 50_000), (10_000, 10_000), (7_072, 7_072), (2_000_000_000, 1)], ids=str
)
def test_too_many_pixels_are_refused_from_the_header(width: int, height: int) -> None:
    with pytest.raises(ImageTooLarge, match="50000000"):
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


def test_a_limit_above_pillows_own_is_honoured() -> None:
    # Pillow alone refuses 179 million pixels. The file holds none of them, so that it is damaged, but not too large.
    with pytest.raises(ImageUndecodable):
        codec.decode(png_header(20_000, 10_000), Limits(max_image_pixels=200_000_000))


def test_a_small_limit_leaves_other_users_of_pillow_alone() -> None:
    with pytest.raises(ImageTooLarge):
        codec.decode(png_header(100, 100), Limits(max_image_pixels=10))
    assert Image.MAX_IMAGE_PIXELS is None or Image.MAX_IMAGE_PIXELS >= 50_000_000


def test_a_side_beyond_the_limit_is_refused_whatever_the_number_of_pixels() -> None:
    with pytest.raises(ImageTooLarge, match="100000 × 2 pixels; max_image_side_px is 65535"):
        codec.decode(png_header(100_000, 2))


def test_more_bytes_than_allowed_are_refused_before_they_are_looked_at() -> None:
    with pytest.raises(ImageTooLarge, match="the image has 11 bytes; max_image_bytes is 10"):
        codec.decode(b"not a image", Limits(max_image_bytes=10))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 5000), (5000, 1)])
def test_images_of_extreme_shape_are_read(width: int, height: int) -> None:
    data = encoded(Image.new("RGB", (width, height), RED), "PNG")
    pixels = codec.decode(data)
    assert pixels.shape == (height, width, 3)
    assert pixels[0, 0].tolist() == list(RED)


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


def test_transparent_pixels_are_laid_on_white() -> None:
    rgba = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 128]]], np.uint8)
    assert codec.decode(encoded(Image.fromarray(rgba), "PNG")).tolist() == [[[255, 0, 0], [255, 255, 255], [127] * 3]]


def test_grey_with_alpha_is_laid_on_white() -> None:
    la = Image.merge("LA", [Image.new("L", (2, 1), 40), Image.fromarray(np.array([[255, 0]], np.uint8))])
    assert codec.decode(encoded(la, "PNG")).tolist() == [[[40] * 3, [255] * 3]]


def test_a_transparent_palette_colour_is_laid_on_white() -> None:
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([*RED, *GREEN])
    data = encoded(palette, "PNG", transparency=0)
    assert codec.decode(data).tolist() == [[[255] * 3, list(GREEN)]]


def test_a_transparent_gif_colour_is_laid_on_white() -> None:
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([*RED, *GREEN])
    data = encoded(palette, "GIF", transparency=1)
    assert codec.decode(data).tolist() == [[list(RED), [255] * 3]]


def test_a_colour_that_png_declares_transparent_is_laid_on_white() -> None:
    pixels = np.array([[RED, GREEN]], np.uint8)
    data = encoded(Image.fromarray(pixels), "PNG", transparency=RED)
    assert codec.decode(data).tolist() == [[[255] * 3, list(GREEN)]]


# --- Orientation ---------------------------------------------------------------------------------------------------


def exif_with(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


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
"""By EXIF orientation, how a camera that was held so stores the picture QUARTERS."""


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
    """What Pillow alone makes of a JPEG."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "_simplejpeg", lambda: None)
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


def test_a_jpeg_with_warnings_is_what_pillow_makes_of_it() -> None:
    data = quarters("JPEG")
    garbled = data[:-2] + b"\x00\x17\x42" + data[-2:]  # extraneous bytes before the end: Pillow reads over them
    np.testing.assert_array_equal(codec.decode(garbled), through_pillow(garbled, 0))
