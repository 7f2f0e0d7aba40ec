"""JPEGs that are not ordinary: decoded rightly without the fast ways, or refused by name, large and small."""

from __future__ import annotations

import contextlib

import imagecodecs
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from embedserve.errors import ImageError, ImageFormatError
from embedserve.images import codec, jpeg
from embedserve.images.jpeg_header import read_header
from tests.images.quarters import assert_close, encoded

SIDES = [48, 400]


def picture(side: int) -> NDArray[np.uint8]:
    y, x = np.meshgrid(*[np.linspace(0, 255, side)] * 2, indexing="ij")
    return np.stack([x, y, (x + y) / 2], axis=-1).astype(np.uint8)


def plain(side: int = 48, **options: object) -> bytes:
    return encoded(Image.fromarray(picture(side)), "JPEG", quality=97, subsampling=0, **options)


def with_frame(data: bytes, at: int, value: bytes) -> bytes:
    """The JPEG with other bytes in its frame, counted from its marker."""
    frame = data.index(b"\xff\xc0") + at
    return data[:frame] + value + data[frame + len(value) :]


@pytest.mark.parametrize("min_side_px", [0, 32])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("grey", [True, False])
def test_lossless_jpeg_gives_back_every_pixel(side: int, grey: bool, min_side_px: int) -> None:
    pixels = picture(side)
    stored = pixels[..., 0].copy() if grey else pixels
    data = bytes(imagecodecs.jpeg8_encode(stored, lossless=True))
    assert b"\xff\xc3" in data
    expected = np.stack([stored] * 3, axis=-1) if grey else pixels
    np.testing.assert_array_equal(codec.decode(data, min_side_px=min_side_px), expected)


@pytest.mark.parametrize("min_side_px", [0, 32])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("bits", "lossless"), [(12, False), (12, True), (16, True)])
def test_a_jpeg_with_more_bits_is_refused_by_name(side: int, bits: int, lossless: bool, min_side_px: int) -> None:
    stored = picture(side)[..., 0].astype(np.uint16) << (bits - 8)
    data = bytes(imagecodecs.jpeg8_encode(stored, bitspersample=bits, lossless=lossless))
    with pytest.raises(ImageFormatError, match=f"JPEG of {bits} bits"):
        codec.decode(data, min_side_px=min_side_px)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (with_frame(plain(), 1, b"\xc5"), "hierarchical JPEG"),
        (with_frame(plain(), 1, b"\xcb"), "lossless JPEG with arithmetic coding"),
        (with_frame(plain(), 1, b"\xf7"), "JPEG-LS"),
        (with_frame(plain(), 5, b"\0\0"), "DNL"),
        (with_frame(plain(), 9, b"\2"), "2 colour components"),
    ],
    ids=["hierarchical", "arithmetic-lossless", "ls", "dnl", "two-components"],
)
def test_other_jpegs_are_refused_by_name(data: bytes, name: str) -> None:
    with pytest.raises(ImageFormatError, match=name) as caught:
        codec.decode(data)
    assert caught.value.hint


@pytest.mark.parametrize("marker", [0xC3, 0xC5, 0xC9, 0xCA, 0xCB, 0xCF, 0xF7])
@pytest.mark.parametrize(
    "before", [b"", b"\xff\xff", b"\xff\xe5\0\6\xff\xc0\xff\xc0"], ids=["", "filled", "in-segment"]
)
def test_only_ordinary_frames_reach_the_fast_ways(monkeypatch: pytest.MonkeyPatch, marker: int, before: bytes) -> None:
    """Whatever is before the frame."""

    taken: list[str] = []
    monkeypatch.setattr(jpeg, "_simplejpeg", lambda: Recorder(taken))
    monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile.draft", lambda *_: taken.append("draft"))
    data = with_frame(plain(400), 1, bytes([marker]))
    with contextlib.suppress(ImageError):
        codec.decode(data[:2] + before + data[2:], min_side_px=32)
    assert taken == []


class Recorder:
    """In the place of simplejpeg."""

    def __init__(self, taken: list[str]) -> None:
        self._taken = taken

    def __getattr__(self, name: str) -> object:
        self._taken.append(name)
        raise ValueError


def test_a_jpeg_in_the_exif_block_is_not_taken_for_the_picture() -> None:
    thumbnail = imagecodecs.jpeg8_encode(picture(16), lossless=True)
    data = plain(exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0" + thumbnail)
    assert_close(codec.decode(data), picture(48), tolerance=4)


def test_a_jpeg_that_stores_rgb_is_read_as_such() -> None:
    assert_close(codec.decode(plain(keep_rgb=True)), picture(48), tolerance=3)


@pytest.mark.parametrize("adobe", [True, False])
@pytest.mark.parametrize("min_side_px", [0, 32])
def test_a_large_cmyk_jpeg_is_read(adobe: bool, min_side_px: int) -> None:
    cmyk = Image.fromarray(picture(400)).convert("CMYK")
    data = encoded(cmyk, "JPEG", quality=97, subsampling=0)
    if not adobe:
        at = data.index(b"\xff\xee")
        data = data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]
    pixels = codec.decode(data, min_side_px=min_side_px)
    small = Image.fromarray(picture(400)).resize(pixels.shape[1::-1], Image.Resampling.BOX)
    assert_close(pixels, np.asarray(small), tolerance=4)


@pytest.mark.parametrize("names", [(0, 1, 2), (34, 35, 36), (1, 2, 3)])
def test_the_numbers_of_components_do_not_matter(names: tuple[int, ...]) -> None:
    data = bytearray(plain())
    frame, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
    for place, name in enumerate(names):
        data[frame + 10 + 3 * place] = data[scan + 5 + 2 * place] = name
    assert_close(codec.decode(bytes(data)), picture(48), tolerance=5)


@pytest.mark.parametrize("loose", [b"\x00", b"ab\xff\x00c", b"\xff\x00" * 3, b"\xff\xff"])
def test_loose_bytes_between_segments_change_nothing(loose: bytes) -> None:
    data = plain(400)
    at = data.index(b"\xff\xdb")
    dirty = data[:at] + loose + data[at:]
    header = read_header(dirty)
    assert header is not None
    assert header == read_header(data)
    np.testing.assert_array_equal(codec.decode(dirty), codec.decode(data))
    np.testing.assert_array_equal(codec.decode(dirty, min_side_px=50), codec.decode(data, min_side_px=50))
    assert codec.decode(dirty, min_side_px=50).shape[0] < 400


def test_loose_bytes_do_not_hide_a_frame_that_is_refused() -> None:
    data = with_frame(plain(), 4, b"\x0c")
    at = data.index(b"\xff\xdb")
    with pytest.raises(ImageFormatError, match="12 bits"):
        codec.decode(data[:at] + b"ab" + data[at:], min_side_px=32)


def test_a_header_of_nothing_but_loose_bytes_is_given_up() -> None:
    assert read_header(b"\xff\xd8" + b"\xff\x00" * 100_000 + plain()[2:]) is None
