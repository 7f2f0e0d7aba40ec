"""What a file's header says: size, bits, range; and the range that grey samples of 16 bits use."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embedserve.errors import ImageTooLarge
from embedserve.images.inspect import header_size, inspect
from embedserve.types import Limits


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_the_used_range_of_a_grey_16_bit_image_is_that_of_its_samples(format: str) -> None:
    samples = np.linspace(7, 4000, 12 * 5).reshape(5, 12).astype(np.uint16)
    facts = inspect(encoded(Image.fromarray(samples), format), Limits())
    assert (facts.format, facts.width, facts.height, facts.bits, facts.bands) == (format, 12, 5, 16, 1)
    assert facts.used == (7, 4000)
    assert facts.tagged is None


def test_the_stated_range_of_a_tiff_is_found() -> None:
    samples = np.zeros((4, 4), np.uint16)
    facts = inspect(encoded(Image.fromarray(samples), "TIFF", tiffinfo={280: 5, 281: 4095}), Limits())
    assert facts.tagged == (5, 4095)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_size_and_bits_of_ordinary_images(format: str, tmp_path: Path) -> None:
    data = encoded(Image.new("RGB", (70, 30)), format)
    facts = inspect(data, Limits())
    assert (facts.format, facts.width, facts.height, facts.bits, facts.used) == (format, 70, 30, 8, None)
    (tmp_path / "image").write_bytes(data)
    with (tmp_path / "image").open("rb") as file:
        assert header_size(file) == (70, 30)


def test_a_turned_photo_has_the_size_that_it_is_seen_with() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    facts = inspect(encoded(Image.new("RGB", (70, 30)), "JPEG", exif=exif), Limits())
    assert (facts.width, facts.height) == (30, 70)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_limits_hold_before_anything_is_decoded(format: str) -> None:
    with pytest.raises(ImageTooLarge):
        inspect(encoded(Image.new("RGB", (70, 30)), format), Limits(max_image_pixels=2099))


@pytest.mark.parametrize("data", [b"", b"no image", b"\xff\xd8\xff\xe0", b"II*\0" + b"\xff" * 40, b"RIFF0000WEBP"])
def test_a_file_without_a_readable_header_has_no_size(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(data)
    with (tmp_path / "file").open("rb") as file:
        assert header_size(file) is None
