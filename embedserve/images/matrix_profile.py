"""An ICC profile for colours that a file names in another way: by the chromaticities of its primaries, and a curve.

Profile: ICC.1:2022, a display profile of matrix and curve.
"""

from __future__ import annotations

import struct
from functools import lru_cache

Chromaticity = tuple[float, float]
D65: Chromaticity = (0.3127, 0.3290)
_D50: Chromaticity = (0.3457, 0.3585)
SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
"""Chromaticities of red, green and blue of sRGB."""
ADOBE_RGB = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
ADOBE_GAMMA = 563 / 256


@lru_cache(maxsize=64)
def matrix_profile(
    primaries: tuple[Chromaticity, ...], *, white: Chromaticity = D65, gamma: float | None = None
) -> bytes:
    """The profile.

    Args:
        primaries: chromaticities (x, y) of red, green and blue.
        white: that of white.
        gamma: exponent of the curve; None for the curve of sRGB.

    Raises:
        ValueError: such colours are not possible.
    """
    colorants = _to_d50(primaries, white)
    if gamma is not None:
        curve = struct.pack(">4sIHH", b"para", 0, 0, 0) + _fixed(gamma)
    else:
        numbers = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
        curve = struct.pack(">4sIHH", b"para", 0, 3, 0) + b"".join(map(_fixed, numbers))
    tags = {b"desc": _text("colours"), b"cprt": _text("none"), b"wtpt": _xyz(_white(_D50))}
    tags |= {name: _xyz(colorant) for name, colorant in zip((b"rXYZ", b"gXYZ", b"bXYZ"), colorants, strict=True)}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    table, body, at = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += struct.pack(">4sII", name, at + len(body), len(content))
        body += content
    header = struct.pack(">I4sI4s4s4s", at + len(body), bytes(4), 4 << 24, b"mntr", b"RGB ", b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28)
    header += b"".join(map(_fixed, _white(_D50)))
    return header + bytes(128 - len(header)) + struct.pack(">I", len(tags)) + table + body


def _to_d50(primaries: tuple[Chromaticity, ...], white: Chromaticity) -> list[tuple[float, ...]]:
    """XYZ of red, green and blue, adapted to D50 by Bradford's matrix."""
    import numpy as np

    if not all(0 <= x <= 1 and 0.001 <= y <= 1 for x, y in (*primaries, white)):
        raise ValueError(f"not chromaticities: {primaries}, {white}")
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    columns = np.array([_white(one) for one in primaries]).T
    try:
        columns = columns * np.linalg.solve(columns, np.array(_white(white)))
    except np.linalg.LinAlgError as error:
        raise ValueError(f"not primaries: {primaries}") from error
    gain = (bradford @ _white(_D50)) / (bradford @ _white(white))
    adapted = np.linalg.inv(bradford) @ np.diag(gain) @ bradford @ columns
    if not np.abs(adapted).max() < 4:
        raise ValueError(f"not primaries: {primaries}")
    return [tuple(float(value) for value in column) for column in adapted.T]


def _white(chromaticity: Chromaticity) -> tuple[float, float, float]:
    x, y = chromaticity
    return x / y, 1.0, (1 - x - y) / y


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _xyz(values: tuple[float, ...]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(map(_fixed, values))


def _text(text: str) -> bytes:
    encoded = text.encode("utf-16-be")
    return struct.pack(">4sIII2s2sII", b"mluc", 0, 1, 12, b"en", b"US", len(encoded), 28) + encoded
