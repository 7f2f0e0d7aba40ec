"""Opening an encoded image: only in the formats that are read, and the way up that its EXIF block says."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from embedserve.errors import ImageError, ImageFormatError, ImageUndecodable
from embedserve.images import png
from embedserve.images.bmp import unread_kind
from embedserve.images.formats import FORMATS, HEAD_BYTES, HEIC, READ, kind_of
from embedserve.images.heif import open_heic
from embedserve.images.kind import SAVE

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

    if data[4:8] == b"ftyp":
        kind = kind_of(data[:HEAD_BYTES])
        if kind is None or not kind.readable:
            raise not_opened(data)
        if kind is HEIC:
            return open_heic(data)
    try:
        image = png.open_png(data) if data.startswith(png.SIGNATURE) else Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise not_opened(data) from None
    except OSError:
        if (what := unread_kind(data)) is None:
            raise
        raise ImageFormatError(f"the image is {what}, which is not read", hint=SAVE) from None
    if image.format == "AVIF":
        image.info.pop("xmp", None)  # which may hold an orientation; that of the file's boxes alone counts
    return image


def not_opened(data: bytes) -> ImageError:
    """The error for bytes that nothing here can open: of a kind that is not read, by its name; else damaged."""
    kind = kind_of(data[:HEAD_BYTES])
    if kind is None:
        names = [known.name for known in READ if known.readable]
        return ImageFormatError(
            f"the bytes are not a readable image (they begin with {data[:8]!r})",
            hint=f"images are {', '.join(names[:-1])} or {names[-1]}",
        )
    if kind.damaged:
        return ImageUndecodable(f"the image is damaged: it is {kind.phrase}", hint=kind.remedy)
    if kind.readable:
        return ImageUndecodable(f"the image is damaged: its header of {kind.name} cannot be read")
    if kind.supported:
        return ImageFormatError(f"the image is {kind.name}, which takes one more package to read", hint=kind.remedy)
    return ImageFormatError(f"the bytes are not a readable image, but {kind.phrase or kind.name}", hint=kind.remedy)


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


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """The image turned as an orientation of EXIF or TIFF, 1 to 8, says; anything else leaves it as it is."""
    transpose = transposition(orientation)
    if transpose is None:
        return image
    turned = image.transpose(transpose)
    turned.info = image.info
    return turned


def to_upright(image: Image.Image) -> Transpose | None:
    """The transposition that makes the image upright, by its EXIF or XMP block; None if it is upright."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # a damaged EXIF block does not make the pixels unusable
        return None
    return None if orientation == 1 else transposition(orientation)
