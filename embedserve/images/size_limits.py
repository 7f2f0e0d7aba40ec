"""The limits on the size of an image, which hold before anything of it is decoded."""

from __future__ import annotations

from embedserve.errors import ImageTooLarge
from embedserve.types import Limits


def check_size(width: int, height: int, limits: Limits) -> None:
    """Check the size that the header of an image states.

    Raises:
        ImageTooLarge: a side is longer than ``max_image_side_px``, or there are more than ``max_image_pixels``.
    """
    if max(width, height) > limits.max_image_side_px:
        raise ImageTooLarge(f"the image is {width} × {height} pixels; max_image_side_px is {limits.max_image_side_px}")
    if width * height > limits.max_image_pixels:
        raise ImageTooLarge(
            f"the image is {width} × {height} = {width * height} pixels; max_image_pixels is {limits.max_image_pixels}"
        )
