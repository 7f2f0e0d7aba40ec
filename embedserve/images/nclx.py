"""Colours that an AVIF or HEIC file names by numbers (nclx) instead of a profile, as the profile that says the same.

Numbers: ITU-T H.273, tables 2 and 3. Profile: ICC.1:2022, a display profile of matrix and curve.
"""

from __future__ import annotations

import struct
from functools import cache

from embedserve.errors import ImageFormatError

_D65, _D50 = (0.3127, 0.3290), (0.3457, 0.3585)
_SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
_PRIMARIES = {
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),  # BT.2020
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),  # Display P3
}
"""Chromaticities of red, green and blue. Those of television (5, 6) are near sRGB's, and many programs write them for
what is sRGB; others are hardly used."""
_GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0}
"""Curves that are a power. Those of television (1, 6, 14, 15) are for what sRGB's is for, and are taken for it."""
_HDR = {16: "PQ", 18: "HLG"}


def profile_of(colours: bytes) -> bytes | None:
    """An ICC profile for the content of a "colr" box; None if it means sRGB, or has a profile itself.

    Raises:
        ImageFormatError: it is HDR, which has no meaning in 8 bits without a choice of exposure.
    """
    if colours[:4] != b"nclx" or len(colours) < 8:
        return None
    primaries, transfer = struct.unpack(">HH", colours[4:8])
    if transfer in _HDR:
        raise ImageFormatError(
            f"the image is HDR ({_HDR[transfer]}), which is not read", hint="save it as an ordinary image, in sRGB"
        )
    if primaries not in _PRIMARIES and transfer not in _GAMMAS:
        return None
    return _profile(primaries, transfer)


@cache
def _profile(primaries: int, transfer: int) -> bytes:
    colorants = _to_d50(_PRIMARIES.get(primaries, _SRGB))
    if transfer in _GAMMAS:
        curve = struct.pack(">4sIHH", b"para", 0, 0, 0) + _fixed(_GAMMAS[transfer])
    else:
        numbers = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
        curve = struct.pack(">4sIHH", b"para", 0, 3, 0) + b"".join(map(_fixed, numbers))
    tags = {b"desc": _text("wide gamut"), b"cprt": _text("none"), b"wtpt": _xyz(_white(_D50))}
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


def _to_d50(primaries: tuple[tuple[float, float], ...]) -> list[tuple[float, ...]]:
    """XYZ of red, green and blue, adapted to D50 by Bradford's matrix."""
    import numpy as np

    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    columns = np.array([_white(one) for one in primaries]).T
    columns = columns * np.linalg.solve(columns, np.array(_white(_D65)))
    gain = (bradford @ _white(_D50)) / (bradford @ _white(_D65))
    adapted = np.linalg.inv(bradford) @ np.diag(gain) @ bradford @ columns
    return [tuple(float(value) for value in column) for column in adapted.T]


def _white(chromaticity: tuple[float, float]) -> tuple[float, float, float]:
    x, y = chromaticity
    return x / y, 1.0, (1 - x - y) / y


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _xyz(values: tuple[float, ...]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(map(_fixed, values))


def _text(text: str) -> bytes:
    encoded = text.encode("utf-16-be")
    return struct.pack(">4sIII2s2sII", b"mluc", 0, 1, 12, b"en", b"US", len(encoded), 28) + encoded
