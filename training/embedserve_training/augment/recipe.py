"""Which augmentations apply to a view, and how strongly. Nothing is computed here.

The operations that a recipe uses apply in the order of the fields below.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from embedserve.errors import InvalidInput

_PROBABILITIES = (
    "flip",
    "vertical_flip",
    "quarter_turns",
    "jitter",
    "grayscale",
    "channel_drop",
    "blur",
    "solarize",
    "noise",
    "sobel",
    "cutout",
)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """A recipe. The defaults are those of SimCLR on ImageNet (arXiv 2002.05709, appendix A); the rest is off.

    Raises:
        InvalidInput: a probability or a range is invalid.
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Minimum and maximum share of the image's area that a view shows."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Minimum and maximum width / height of the crop; log-uniform."""
    rotation: float = 0.0
    """The view is rotated about its centre by up to this many degrees, either way. Its corners show the image around
    the crop, mirrored beyond the image's borders."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    vertical_flip: float = 0.0
    """Probability of a vertical flip."""
    quarter_turns: float = 0.0
    """Probability of a rotation by 90, 180 or 270 degrees, with equal shares; with 0.75 all four orientations are
    equally likely."""
    jitter: float = 0.8
    """Probability of colour jitter: the next four, in a random order for every image."""
    brightness: float = 0.8
    """Brightness is multiplied by a factor within 1 ± this; contrast and saturation too."""
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    """The hue is rotated by up to this share of a full turn, either way."""
    grayscale: float = 0.2
    """Probability that a view becomes grey."""
    channel_drop: float = 0.0
    """Probability that a view keeps only one of its channels; the others become 0.5 (arXiv 1905.09272, CPC v2)."""
    blur: float = 0.5
    """Probability of Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Minimum and maximum standard deviation of the blur in pixels; the kernel spans a tenth of the view."""
    solarize: float = 0.0
    """Probability of solarization: values from the threshold upwards are inverted."""
    solarize_threshold: float = 0.5
    noise: float = 0.0
    """Probability of Gaussian noise, the same for all channels of a pixel, so that grey images stay grey."""
    noise_sigma: tuple[float, float] = (0.01, 0.05)
    """Minimum and maximum standard deviation of the noise, for values within 0–1."""
    sobel: float = 0.0
    """Probability that each channel becomes the magnitude of its gradient (Sobel); an edge from 0 to 1 gives 1."""
    cutout: float = 0.0
    """Probability that a rectangle of the view is painted over."""
    cutout_area: tuple[float, float] = (0.02, 0.33)
    """Minimum and maximum share of the view's area that is painted over."""
    cutout_ratio: tuple[float, float] = (0.3, 3.3)
    """Minimum and maximum width / height of the rectangle; log-uniform."""
    cutout_fill: Literal["grey", "mean"] = "grey"
    """The colour of the rectangle: 0.5, or the view's mean colour."""

    def __post_init__(self) -> None:
        for name in _PROBABILITIES:
            _check(name, getattr(self, name), 0 <= getattr(self, name) <= 1, "within 0–1")
        for name in (entry.name for entry in fields(self) if isinstance(entry.default, tuple)):
            low, high = getattr(self, name)
            _check(name, (low, high), 0 <= low <= high, "two numbers in order, from 0")
            if name.endswith(("scale", "area")):
                _check(name, (low, high), low > 0 and high <= 1, "shares within 0–1")
            if name.endswith("ratio"):
                _check(name, (low, high), low > 0, "greater than 0")
        for name in ("brightness", "contrast", "saturation"):
            _check(name, getattr(self, name), getattr(self, name) >= 0, "at least 0")
        _check("hue", self.hue, 0 <= self.hue <= 0.5, "within 0–0.5, half a turn")
        _check("rotation", self.rotation, 0 <= self.rotation <= 180, "within 0–180 degrees")
        _check("cutout_fill", self.cutout_fill, self.cutout_fill in ("grey", "mean"), "grey or mean")


def _check(name: str, value: object, holds: bool, rule: str) -> None:
    if not holds:
        raise InvalidInput(f"{name} of an augmentation is {value}; it must be {rule}")
