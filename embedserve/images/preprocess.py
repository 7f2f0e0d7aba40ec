"""RGB pixels → the square that an encoder takes. Training writes the rule once; everything else reads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from embedserve.errors import EncoderFileError
from embedserve.images import pixel_rule
from embedserve.images.codec import decode
from embedserve.images.pixel_rule import PixelRule

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from embedserve.types import Limits

FITS = ("crop", "squeeze", "pad")
WHITE = (255, 255, 255)
_MIN_DECODED_SIDE_PX = 256
"""JPEGs are never scaled below this while decoding, so that a thumbnail can be made from the same pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreprocessSpec:
    """How an image of any size becomes the uint8 square that the encoder's graph takes.

    Normalisation is not part of it, but of the graph.
    """

    size_px: int
    """Side of the square."""
    resize_px: int = 0
    """For "crop": the shorter side is resized to this many pixels, at least size_px, and the square is the centre of
    the result. Otherwise 0."""
    filter: str = "bilinear"
    """"bilinear" or "bicubic", both antialiased."""
    fit: str = ""
    """How a picture of another shape meets the square. "crop": its centre. "squeeze": the whole of it, with another
    aspect. "pad": the whole of it, with its aspect, in the middle of a square of ``pad_colour``. Empty, as in files
    from before this field: "crop" if there is a resize_px, else "squeeze"."""
    pad_colour: tuple[int, int, int] = WHITE
    """Red, green and blue, 0–255, of what "pad" adds."""
    pixels: PixelRule = field(default_factory=PixelRule)
    """How stored samples become RGB of 8 bits, before all else."""

    def __post_init__(self) -> None:
        for name in ("size_px", "resize_px"):
            if type(getattr(self, name)) is not int:  # a file may say 224.5, "224" or true
                raise EncoderFileError(f"preprocess.{name} is {getattr(self, name)!r}, not a whole number")
        if not 1 <= self.size_px <= 4096:
            raise EncoderFileError(f"preprocess.size_px is {self.size_px}, not within 1–4096")
        if self.resize_px and not self.size_px <= self.resize_px <= 4 * self.size_px:
            raise EncoderFileError(
                f"preprocess.resize_px is {self.resize_px}; it is 0 or between size_px and four times that"
            )
        if self.filter not in ("bilinear", "bicubic"):
            raise EncoderFileError(f'preprocess.filter is {self.filter!r}, not "bilinear" or "bicubic"')
        if self.fit not in ("", *FITS):
            raise EncoderFileError(f'preprocess.fit is {self.fit!r}, not "crop", "squeeze" or "pad"')
        before = "crop" if self.resize_px else "squeeze"
        object.__setattr__(self, "fit", self.fit or before)
        if (self.fit == "crop") != bool(self.resize_px):
            raise EncoderFileError(f'preprocess.fit is "{self.fit}", but preprocess.resize_px is {self.resize_px}')
        _check_colour(self.pad_colour)
        if self.fit != "pad" and self.pad_colour != WHITE:
            raise EncoderFileError(f'preprocess.pad_colour has no meaning where preprocess.fit is "{self.fit}"')

    @property
    def min_decoded_side_px(self) -> int:
        """Shortest side that a scaled JPEG decode must keep.

        Twice the target: the embedding then drifts from that of a full decode by less than 1e-5 (1 − cosine), measured.
        """
        return max(2 * (self.resize_px or self.size_px), _MIN_DECODED_SIDE_PX)

    def in_words(self) -> str:
        """The rule as one line for people, without ``size_px`` and ``filter``."""
        pixels = self.pixels
        fit = {
            "crop": f"shorter side to {self.resize_px} px, centre {self.size_px} px",
            "squeeze": "squeezed to the square",
            "pad": "padded to the square with #{:02x}{:02x}{:02x}".format(*self.pad_colour),
        }[self.fit]
        colour = "colours as sRGB" if pixels.colour == "srgb" else "colours as stored"
        span = pixels.value_range if isinstance(pixels.value_range, str) else "{:g}–{:g}".format(*pixels.value_range)
        bands = f", bands {', '.join(map(str, pixels.bands))}" if pixels.bands else ""
        return f"{fit}, {colour}, value range {span}{bands}"

    def to_json(self) -> dict[str, Any]:
        """The specification as a JSON document; what new rules leave as it was before them is not in it."""
        document: dict[str, Any] = {"size_px": self.size_px, "resize_px": self.resize_px, "filter": self.filter}
        if self.fit == "pad":  # the others follow from resize_px
            document |= {"fit": "pad", "pad_colour": [*self.pad_colour]}
        return document | self.pixels.to_json()

    @classmethod
    def from_json(cls, document: object) -> PreprocessSpec:
        """The specification that a JSON document describes.

        Raises:
            EncoderFileError: a field is missing, unknown or out of range. An unknown field is refused, as a rule that
                is not understood cannot be reproduced.
        """
        if not isinstance(document, dict):
            raise EncoderFileError("the encoder has no preprocess rule")
        rest = {name: value for name, value in document.items() if name not in pixel_rule.FIELDS}
        if isinstance(rest.get("pad_colour"), list):
            rest["pad_colour"] = tuple(rest["pad_colour"])
        try:
            return cls(**rest, pixels=PixelRule.from_json(document))
        except TypeError as error:
            raise EncoderFileError(f"the encoder's preprocess rule is not understood: {error}") from error


def apply(spec: PreprocessSpec, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The square for the encoder: uint8 [H, W, 3] → uint8 [S, S, 3].

    Crop and resize are one resampling of the centre of the source, so an image of extreme shape costs no more than
    its own pixels. What is padded is added after resizing, so no colour of it mixes with the picture's edge.
    """
    import numpy as np
    from PIL import Image

    height, width = pixels.shape[:2]
    resample = Image.Resampling.BICUBIC if spec.filter == "bicubic" else Image.Resampling.BILINEAR
    if spec.fit == "pad":
        inner = padded_size(width, height, spec.size_px)
        padded = np.empty((spec.size_px, spec.size_px, 3), np.uint8)
        padded[:] = spec.pad_colour
        left, top = (spec.size_px - inner[0]) // 2, (spec.size_px - inner[1]) // 2
        inside = padded[top : top + inner[1], left : left + inner[0]]
        inside[:] = np.asarray(Image.fromarray(pixels).resize(inner, resample))
        return padded
    box: tuple[float, float, float, float] = (0.0, 0.0, float(width), float(height))
    if spec.resize_px:
        side = min(width, height) * spec.size_px / spec.resize_px
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
    square = Image.fromarray(pixels).resize((spec.size_px, spec.size_px), resample, box)
    return np.asarray(square)


def padded_size(width: int, height: int, size_px: int) -> tuple[int, int]:
    """Width and height that a picture has within a padded square: its longer side fills it, the other is at least 1."""
    longer = max(width, height)
    return max(round(width * size_px / longer), 1), max(round(height * size_px / longer), 1)


def load(
    spec: PreprocessSpec, data: bytes, limits: Limits | None = None, *, notes: list[str] | None = None
) -> NDArray[np.uint8]:
    """The square for the encoder from encoded image bytes: ``apply`` after ``codec.decode``.

    Args:
        spec: the rule.
        data: the bytes of an image file.
        limits: of its size.
        notes: receives sentences, as in ``codec.decode``.

    Raises:
        ImageError: the bytes cannot be used; see ``codec.decode``.
    """
    pixels = decode(data, limits, rule=spec.pixels, min_side_px=spec.min_decoded_side_px, notes=notes)
    return apply(spec, pixels)


def _check_colour(value: object) -> None:
    numbers = isinstance(value, tuple) and all(type(level) is int and 0 <= level <= 255 for level in value)
    if not numbers or not isinstance(value, tuple) or len(value) != 3:
        raise EncoderFileError(f"preprocess.pad_colour is {value!r}, not three whole numbers within 0–255")
