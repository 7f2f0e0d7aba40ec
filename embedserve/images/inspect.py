"""What an image file says of itself, and the range that its samples use where they have more than 8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from embedserve.images.codec import _webp_canvas
from embedserve.images.opening import open_image, to_upright
from embedserve.images.size_limits import check_size

if TYPE_CHECKING:
    from PIL import Image
    from PIL.Image import Transpose

    from embedserve.types import Limits

_HEADER_BYTES = 32
_LAZY = ("JPEG", "PNG", "BMP", "GIF", "TIFF")
"""Formats of which Pillow reads no more than the header on opening."""
_BITS_PER_SAMPLE, _MIN_SAMPLE, _MAX_SAMPLE = 258, 280, 281


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFacts:
    """One image file."""

    format: str
    """As Pillow names it, as in "TIFF"."""
    width: int
    height: int
    """In pixels, upright."""
    bits: int
    """Of one sample; 8 where the format does not say."""
    bands: int
    used: tuple[int, int] | None = None
    """Lowest and highest sample of a grey image with more than 8 bits; None for others."""
    tagged: tuple[float, float] | None = None
    """The range that a TIFF file states: MinSampleValue and MaxSampleValue."""


def inspect(data: bytes, limits: Limits) -> ImageFacts:
    """Facts about an encoded image. Its pixels are decoded only where it is grey with more than 8 bits.

    Args:
        data: the bytes of an image file.
        limits: of its size, checked before anything is decoded.

    Raises:
        ImageError: the bytes cannot be used.
        OSError, ValueError, …: a parser stumbled; what is damaged is for ``codec.decode`` to say.
    """
    if canvas := _webp_canvas(data):
        check_size(*canvas, limits)
        return ImageFacts(format="WEBP", width=canvas[0], height=canvas[1], bits=8, bands=3)
    with open_image(data) as image:
        check_size(*image.size, limits)
        width, height = image.size
        if to_upright(image) in _quarter_turns():
            width, height = height, width
        used = None
        if image.mode.startswith("I;16"):
            low, high = image.getextrema()
            used = int(low), int(high)  # type: ignore[arg-type]  # of one band these are numbers
        return ImageFacts(
            format=image.format or "",
            width=width,
            height=height,
            bits=_bits(image, data),
            bands=len(image.getbands()),
            used=used,
            tagged=_tagged(image),
        )


def header_size(file: BinaryIO) -> tuple[int, int] | None:
    """Width and height, as stored, from the header of an open image file, of which little more is read.

    None where it has none that can be read so: it is damaged, or of a format that opens only as a whole.
    """
    from PIL import Image

    if canvas := _webp_canvas(file.read(_HEADER_BYTES)):
        return canvas
    try:
        file.seek(0)
        with Image.open(file, formats=_LAZY) as image:
            return image.size
    except Exception:  # Pillow's parsers raise whatever they like on hostile bytes
        return None


def _quarter_turns() -> tuple[Transpose, ...]:
    from PIL.Image import Transpose

    return Transpose.TRANSPOSE, Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90


def _bits(image: Image.Image, data: bytes) -> int:
    if image.format == "PNG":
        return data[24]  # the IHDR chunk is the first, and this its bit depth
    if image.format == "TIFF":
        stated = _tags(image).get(_BITS_PER_SAMPLE, (8,))
        return max(stated) if isinstance(stated, tuple) else int(stated)
    return 16 if image.mode.startswith("I;16") else 8


def _tagged(image: Image.Image) -> tuple[float, float] | None:
    tags = _tags(image)
    lowest, highest = (tags.get(tag) for tag in (_MIN_SAMPLE, _MAX_SAMPLE))
    if highest is None:
        return None
    low = 0.0 if lowest is None else float(min(lowest) if isinstance(lowest, tuple) else lowest)
    return low, float(max(highest) if isinstance(highest, tuple) else highest)


def _tags(image: Image.Image) -> dict[int, Any]:
    return dict(getattr(image, "tag_v2", {}))
