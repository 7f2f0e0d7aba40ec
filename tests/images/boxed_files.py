"""AVIF and HEIC files of a picture of four quarters, and boxes to make others of."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.images.quarters import BLUE, GREEN, GREY, RED, encoded

PICTURE = np.zeros((80, 120, 3), np.uint8)
PICTURE[:40, :60], PICTURE[:40, 60:], PICTURE[40:, :60], PICTURE[40:, 60:] = RED, GREEN, BLUE, GREY


def avif(pixels: NDArray[Any] = PICTURE, **options: Any) -> bytes:
    return encoded(Image.fromarray(pixels), "AVIF", **{"quality": 100, "speed": 10, "subsampling": "4:4:4", **options})


def heic(pixels: NDArray[Any] = PICTURE, **options: Any) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif")
    image = Image.fromarray(pixels)
    out = io.BytesIO()
    made = pillow_heif.from_bytes(image.mode, image.size, image.tobytes())
    made.save(out, **{"quality": -1, "chroma": 444, **options})
    return out.getvalue()


def box(kind: bytes, *content: bytes) -> bytes:
    joined = b"".join(content)
    return struct.pack(">I", len(joined) + 8) + kind + joined
