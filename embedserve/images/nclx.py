"""Colours that an AVIF or HEIC file names by numbers (nclx) instead of a profile, as the profile that says the same.

Numbers: ITU-T H.273, tables 2 and 3.
"""

from __future__ import annotations

import struct

from embedserve.errors import ImageFormatError
from embedserve.images.matrix_profile import SRGB, matrix_profile

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
    return matrix_profile(_PRIMARIES.get(primaries, SRGB), gamma=_GAMMAS.get(transfer))
