"""Samples of any type → uint8: the arithmetic of the value range."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


Range = tuple[float, float]
"""The values that become 0 and 255."""


def range_of(rule: str | Range, full: Range | None, tag: Range | None) -> Range | None:
    """The range to use for the samples of a file.

    Args:
        rule: ``PixelRule.value_range``.
        full: what the bits of a sample can hold; None where that says nothing, as for floating point.
        tag: what the file itself states; None if it does not.

    Returns:
        None if nothing says what black and white are.
    """
    if not isinstance(rule, str):
        return rule
    return tag if rule == "tag" and tag is not None else full


def to_uint8(
    samples: NDArray[Any], value_range: tuple[float, float], *, white_is_zero: bool = False
) -> NDArray[np.uint8]:
    """The samples as uint8, of the same shape.

    Args:
        samples: integers or floating-point numbers.
        value_range: what becomes 0 and what becomes 255. Between them values are rounded to the nearest, a half up;
            what lies outside becomes 0 or 255. NaN becomes 0.
        white_is_zero: the low end is white: the result is 255 minus the above.
    """
    import numpy as np

    if samples.dtype.kind == "u" and samples.dtype.itemsize <= 2:
        # At most 65,536 different values: each is worked out once.
        values = np.arange(256 ** min(samples.dtype.itemsize, 2))
        table: NDArray[np.uint8] = _scale(values, value_range, white_is_zero)
        result: NDArray[np.uint8] = table[samples]
        return result
    return _scale(samples, value_range, white_is_zero)


def _scale(samples: NDArray[Any], value_range: tuple[float, float], white_is_zero: bool) -> NDArray[np.uint8]:
    import numpy as np

    low, high = value_range
    with np.errstate(all="ignore"):  # infinities and NaN are values that a file may hold
        scaled = (samples.astype(np.float64) - low) * 255 / (high - low)
        scaled = np.floor(np.clip(np.nan_to_num(scaled, nan=0.0, posinf=255.0, neginf=0.0), 0, 255) + 0.5)
    result: NDArray[np.uint8] = scaled.astype(np.uint8)
    return 255 - result if white_is_zero else result
