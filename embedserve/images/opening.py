"""Opening an encoded image with Pillow: only in the formats that are read, and the way up that its EXIF block says."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from embedserve.errors import ImageFormatError, ImageUndecodable
from embedserve.images.formats import FORMATS, SIGNATURES

if TYPE_CHECKING:
    from PIL import Image
    from PIL.Image import Transpose

_EXIF_ORIENTATION = 0x0112


def open_image(data: bytes) -> Image.Image:
    """The image, of which no pixel is decoded yet.

    Raises:
        ImageUndecodable: its header is damaged.
        ImageFormatError: another format.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        if data.startswith(SIGNATURES):
            raise ImageUndecodable("the image is damaged: its header cannot be read") from None
        raise ImageFormatError(
            f"the bytes are not a readable image (they begin with {data[:8]!r})",
            hint=f"images are {', '.join(FORMATS[:-1])} or {FORMATS[-1]}",
        ) from None


def transposition(orientation: object) -> Transpose | None:
    """What makes an image of this EXIF orientation upright; None if it is, or if there is no such orientation."""
    from PIL.Image import Transpose

    transpositions: dict[object, Transpose] = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return transpositions.get(orientation)


def to_upright(image: Image.Image) -> Transpose | None:
    """The transposition that makes the image upright, by its EXIF or XMP block; None if it is upright."""
    try:
        return transposition(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # a damaged EXIF block does not make the pixels unusable
        return None
