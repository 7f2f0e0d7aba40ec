"""The settings about images as a user writes them, and the preprocess rule that they make. It imports no torch.

Words and numbers come as text, as in ``--set value_range=0,4095``, since recipes and variables hold the same.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from embedserve.errors import EmbedserveError, InvalidInput

if TYPE_CHECKING:
    from embedserve.images.preprocess import PreprocessSpec

FITS = ("crop", "squeeze", "pad")
COLOURS = ("srgb", "stored")
BEFORE = {"fit": "crop", "pad_colour": "white", "colour": "stored", "value_range": "full", "bands": ""}
"""What runs did before there were these settings."""
_NAMED = {"white": (255, 255, 255), "black": (0, 0, 0), "grey": (128, 128, 128), "gray": (128, 128, 128)}


def parse_colour(text: str) -> tuple[int, int, int]:
    """Red, green and blue, 0–255, of "white", "black", "grey", "#rrggbb" or "r,g,b".

    Raises:
        InvalidInput: the text is none of these.
    """
    if named := _NAMED.get(text.strip().lower()):
        return named
    if re.fullmatch(r"#[0-9a-fA-F]{6}", text.strip()):
        red, green, blue = bytes.fromhex(text.strip()[1:])
        return red, green, blue
    numbers = _whole_numbers(text)
    if len(numbers) != 3 or max(numbers) > 255:
        raise InvalidInput(
            f"pad_colour is {text!r}",
            hint="white, black, grey, #rrggbb, or three numbers within 0–255, as in 255,250,240",
        )
    red, green, blue = numbers
    return red, green, blue


def parse_value_range(text: str) -> str | tuple[float, float]:
    """ "full", "tag" or two numbers.

    Raises:
        InvalidInput: the text is none of these, or the first number is not the smaller one.
    """
    if text in ("full", "tag"):
        return text
    hint = "full, tag, or what becomes black and white, as in 0,4095"
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise InvalidInput(f"value_range is {text!r}", hint=hint) from None
    if not -1e30 < low < high < 1e30:
        raise InvalidInput(f"value_range is {text!r}; the first number must be smaller than the second", hint=hint)
    return low, high


def parse_bands(text: str) -> tuple[int, ...]:
    """Numbers of one or three bands, from 1; none for an empty text.

    Raises:
        InvalidInput: the text is something else.
    """
    numbers = _whole_numbers(text) if text.strip() else ()
    if (
        (not numbers and text.strip())
        or len(numbers) not in (0, 1, 3)
        or not all(1 <= one <= 65_535 for one in numbers)
    ):
        raise InvalidInput(
            f"bands is {text!r}", hint="one band, or those of red, green and blue, counted from 1, as in 4,3,2"
        )
    return numbers


def check_images(config: Any) -> None:
    """Check the settings about images; None is not checked.

    Raises:
        InvalidInput: one of them is not possible, or a colour is given for something else than padding.
    """
    for name, parse in (("pad_colour", parse_colour), ("value_range", parse_value_range), ("bands", parse_bands)):
        if getattr(config, name) is not None:
            parse(getattr(config, name))
    if config.pad_colour is not None and config.fit in ("crop", "squeeze"):
        raise InvalidInput(
            f"pad_colour is {config.pad_colour!r}, but fit is {config.fit}", hint="add --fit pad, or leave it out"
        )


def preprocess_of(settings: Any, resize_px: int) -> PreprocessSpec:
    """The preprocess rule of the encoder that a run with these ``Settings`` makes.

    Args:
        settings: of the run.
        resize_px: what the shorter side is resized to where the square is the centre.
    """
    from embedserve.images.pixel_rule import PixelRule
    from embedserve.images.preprocess import WHITE, PreprocessSpec

    try:
        pixels = PixelRule(
            colour=settings.colour,
            value_range=parse_value_range(settings.value_range),
            bands=parse_bands(settings.bands),
        )
        return PreprocessSpec(
            size_px=settings.size_px,
            resize_px=resize_px if settings.fit == "crop" else 0,
            filter="bicubic",
            fit=settings.fit,
            pad_colour=parse_colour(settings.pad_colour) if settings.fit == "pad" else WHITE,
            pixels=pixels,
        )
    except EmbedserveError as error:
        raise InvalidInput(error.message) from error


def _whole_numbers(text: str) -> tuple[int, ...]:
    """Whole numbers with commas in between; none if the text is anything else."""
    if not re.fullmatch(r"\s*[0-9]{1,6}\s*(,\s*[0-9]{1,6}\s*)*", text):
        return ()
    return tuple(int(part) for part in text.split(","))
