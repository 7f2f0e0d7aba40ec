"""Opening an AVIF or HEIC file, checked, with the colours and the part of the picture that its boxes say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedserve.errors import ImageUndecodable
from embedserve.images.heif import checked
from embedserve.images.opening import open_image
from embedserve.images.pixel_rule import PixelRule
from embedserve.types import Limits

if TYPE_CHECKING:
    from PIL import Image


def open_boxed(data: bytes, limits: Limits, rule: PixelRule) -> Image.Image:
    """The image, not decoded yet unless it is cut out of a larger picture; its orientation is as in ``open_image``.

    Raises:
        ImageUndecodable: it is damaged.
        ImageFormatError: it is of a kind that is not read.
        ImageTooLarge: a size in it is beyond the limits.
    """
    file = checked(data, limits, rule)
    image = open_image(file.data)
    if file.profile is not None:
        image.info["icc_profile"] = file.profile
    if file.aperture is None or image.format != "AVIF":  # libheif cuts by itself
        return image
    with image:
        return image.crop(_cut(file.aperture, image.width, image.height))


def _cut(aperture: bytes, width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a clean aperture (ISO/IEC 14496-12, section 12.1.4)."""
    signed = [int.from_bytes(aperture[at : at + 4], "big", signed=at >= 16) for at in range(0, 32, 4)]
    if len(aperture) < 32 or not all(signed[1::2]):
        raise ImageUndecodable("the image is damaged: the part of it that counts is not stated")
    ends = []
    for size, (part, part_of, offset, offset_of) in (
        (width, [*signed[:2], *signed[4:6]]),
        (height, signed[2:4] + signed[6:]),
    ):
        length = part / part_of
        first = offset / offset_of + (size - length) / 2
        ends.append((round(first), round(first + length)))
    (left, right), (top, bottom) = ends
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ImageUndecodable("the image is damaged: the part of it that counts is not within it")
    return left, top, right, bottom
