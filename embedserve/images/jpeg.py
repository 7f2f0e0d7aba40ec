"""JPEG: what is checked before it is decoded, and the fast way for ordinary files."""

from __future__ import annotations

import re
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

from embedserve.errors import ImageUndecodable
from embedserve.images.colour import pixels_to_srgb
from embedserve.images.jpeg_header import JpegHeader
from embedserve.images.matrix_profile import ADOBE_GAMMA, ADOBE_RGB, matrix_profile
from embedserve.images.opening import open_image, to_upright
from embedserve.images.pixel_rule import PixelRule
from embedserve.images.size_limits import check_size
from embedserve.types import Limits

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

_EXIF_IFD, _COLOUR_SPACE, _INTEROPERABILITY_IFD = 0x8769, 0xA001, 0xA005
_MAX_SCANS = 100
"""Scans of a JPEG; ordinary ones have up to about 12. Each visits all pixels, however few bytes it has: without a
limit, 270 KB of scans keep a core busy for a minute, and 16 MiB for hours. libtiff has the same limit."""
_JPEG_MARKER = re.compile(rb"\xff([\xc0-\xcf\xda-\xfe])", re.DOTALL)


def check_scans(data: bytes) -> None:
    """Refuse a JPEG with more scans than encoders write, without decoding it."""
    start_of_scan = b"\xff\xda"
    if not data.startswith(b"\xff\xd8\xff") or data.count(start_of_scan) <= _MAX_SCANS:
        return
    # Not all of these bytes are markers: an EXIF block may hold a JPEG, and a colour profile any bytes.
    scans, position = 0, 2
    while (found := _JPEG_MARKER.search(data, position)) is not None and (marker := found[1]) != b"\xd9":
        scans += marker == b"\xda"
        if scans > _MAX_SCANS:
            raise ImageUndecodable(f"the JPEG has more than {_MAX_SCANS} scans")
        length = int.from_bytes(data[found.end() : found.end() + 2], "big")
        position = found.end() + max(length, 2)


@cache
def _simplejpeg() -> ModuleType | None:
    try:
        import simplejpeg
    except ImportError:  # there are no wheels for some machines
        return None
    found: ModuleType = simplejpeg
    return found


def decode_jpeg(
    data: bytes,
    header: JpegHeader | None,
    limits: Limits,
    rule: PixelRule,
    min_side_px: int,
    notes: list[str] | None = None,
) -> NDArray[np.uint8] | None:
    """The pixels of an ordinary, intact JPEG, bit for bit as Pillow decodes it, in half the time or less.

    None for anything else, which is left to Pillow: other formats, other frames than baseline, extended and
    progressive ones, four colour components, files that libjpeg-turbo warns about, and without simplejpeg.
    """
    import numpy as np
    from PIL import Image

    simplejpeg = _simplejpeg()
    if simplejpeg is None or header is None or not header.ordinary or header.components == 4:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    check_size(width, height, limits)
    if colours not in ("YCbCr", "Gray"):
        return None
    factor = 1
    while min_side_px > 0 and factor < 8 and min(width, height) // (2 * factor) >= min_side_px:
        factor *= 2
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            data, "RGB", min_height=-(-height // factor), min_width=-(-width // factor)
        )
    except ValueError:
        return None
    profile, transpose = header.profile, None
    if header.described:
        with open_image(data) as image:
            transpose = to_upright(image)
            profile = profile_of(header, image)
    if profile is not None and rule.colour == "srgb":
        pixels = pixels_to_srgb(pixels, profile, grey=colours == "Gray", notes=notes)
    return pixels if transpose is None else np.array(Image.fromarray(pixels).transpose(transpose))


def profile_of(header: JpegHeader, image: Image.Image) -> bytes | None:
    """The colour profile of a JPEG: its own, or that which a camera means by "R03" in its EXIF block, Adobe RGB.

    Args:
        header: of the JPEG.
        image: the same, opened.
    """
    profile = header.profile
    if profile is not None or not header.adobe_rgb or header.components != 3:
        return profile
    try:
        exif = image.getexif()
        if exif.get_ifd(_EXIF_IFD).get(_COLOUR_SPACE) == 1:  # sRGB
            return None
        index = exif.get_ifd(_INTEROPERABILITY_IFD).get(1)
    except Exception:  # a damaged EXIF block does not make the pixels unusable
        return None
    return matrix_profile(ADOBE_RGB, gamma=ADOBE_GAMMA) if isinstance(index, str) and index[:3] == "R03" else None
