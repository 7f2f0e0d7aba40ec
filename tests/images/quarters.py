"""A picture of four quarters in four colours, in which every flip and turn looks different."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

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


def exif_with(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif
