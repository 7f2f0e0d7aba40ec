"""Drawn JPEGs to send if there are no photographs."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_SLOPE = 1.3
"""Photographs have about as much energy in every octave of detail (amplitude 1/f, Field 1987); slightly steeper, a JPEG
of quality 85 has the bytes of one, about 90 KB at 640 × 480, and so takes as long to decode."""


def draw(width: int, height: int, count: int, seed: int = 0) -> Iterator[bytes]:
    """JPEGs of coloured clouds with the detail of photographs; the same for each seed."""
    for number in range(count):
        random = np.random.default_rng([seed, number])
        light = _cloud(width, height, random)
        pixels = np.stack([0.9 * light + 0.25 * _cloud(width, height, random) for _ in range(3)], axis=-1)
        pixels = 118 + random.uniform(-25, 25, 3) + 52 * pixels
        out = io.BytesIO()
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(out, "JPEG", quality=85)
        yield out.getvalue()


def _cloud(width: int, height: int, random: np.random.Generator) -> NDArray[np.float64]:
    """float64 [H, W] with mean 0 and deviation 1: random phases, amplitudes that fall with the frequency."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width) * width)
    frequency[0, 0] = np.inf  # no mean
    spectrum = np.exp(2j * np.pi * random.random(frequency.shape)) / frequency**_SLOPE
    cloud: NDArray[np.float64] = np.fft.irfft2(spectrum, (height, width))
    return cloud / max(float(cloud.std()), 1e-9)
