"""JPEG: what is checked before it is decoded, and the fast way for ordinary files."""

from __future__ import annotations

import re
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

from embedserve.errors import ImageUndecodable
from embedserve.images.opening import open_image, to_upright
from embedserve.images.size_limits import check_size
from embedserve.types import Limits

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ORIENTATION_BLOCKS = (b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/")
"""Beginnings of the EXIF and XMP blocks of a JPEG, which may hold an orientation."""
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


def decode_jpeg(data: bytes, limits: Limits, min_side_px: int) -> NDArray[np.uint8] | None:
    """The pixels of an ordinary, intact JPEG, bit for bit as Pillow decodes it, in half the time or less.

    None for anything else, which is left to Pillow: other formats, four colour components, files that libjpeg-turbo
    warns about, and without simplejpeg.
    """
    import numpy as np
    from PIL import Image

    simplejpeg = _simplejpeg()
    if simplejpeg is None or not data.startswith(b"\xff\xd8\xff"):
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
    if not any(block in data for block in _ORIENTATION_BLOCKS):
        return pixels
    with open_image(data) as image:
        transpose = to_upright(image)
    return pixels if transpose is None else np.array(Image.fromarray(pixels).transpose(transpose))
