"""What tests of several parts share. Imports nothing heavy: the GPU tests load it on machines that have little else."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Protocol

import pytest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Encode(Protocol):
    """Makes the bytes of an image file out of drawn pixels."""

    def __call__(self, width: int = 64, height: int = 48, seed: int = 0) -> bytes: ...


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("EMBEDSERVE_"):
            monkeypatch.delenv(name)


@pytest.fixture
def jpeg_bytes() -> Encode:
    """``jpeg_bytes(width, height, seed)``: a JPEG of a smooth picture, another one for each seed."""

    def encode(width: int = 64, height: int = 48, seed: int = 0) -> bytes:
        return _encode(_picture(width, height, seed), "JPEG", quality=92)

    return encode


@pytest.fixture
def png_bytes() -> Encode:
    """The same as ``jpeg_bytes`` in a format that keeps every pixel."""

    def encode(width: int = 64, height: int = 48, seed: int = 0) -> bytes:
        return _encode(_picture(width, height, seed), "PNG")

    return encode


def _picture(width: int, height: int, seed: int) -> NDArray[np.uint8]:
    """uint8 [H, W, 3]: waves in three colours."""
    import numpy as np

    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    waves = [np.sin(x * a + y * b + c) for a, b, c in random.uniform(-12, 12, size=(3, 3))]
    return ((np.stack(waves, axis=-1) + 1) * 127.5).astype(np.uint8)


def _encode(pixels: NDArray[np.uint8], format: str, **options: object) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format, **options)
    return out.getvalue()
