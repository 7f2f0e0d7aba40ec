"""Samples with more than 8 bits → 8 bits: which value becomes black, and which white."""

from __future__ import annotations

from functools import lru_cache
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


def to_uint8(samples: NDArray[Any], value_range: Range) -> NDArray[np.uint8]:
    """Samples of any shape and number type as uint8, rounded to the nearest; values beyond the range are cut off.

    A value that is not a number becomes 0.
    """
    import numpy as np

    if samples.dtype.kind == "u" and samples.dtype.itemsize <= 2:
        table: NDArray[np.uint8] = _table(samples.dtype.itemsize * 8, *value_range)[samples]
        return table
    return _scaled(samples.astype(np.float64), *value_range)


@lru_cache(maxsize=16)
def _table(bits: int, low: float, high: float) -> NDArray[np.uint8]:
    import numpy as np

    return _scaled(np.arange(1 << bits, dtype=np.float64), low, high)


def _scaled(samples: NDArray[np.float64], low: float, high: float) -> NDArray[np.uint8]:
    import numpy as np

    samples -= low
    samples *= 255.0 / (high - low)
    samples += 0.5
    np.clip(np.nan_to_num(samples, copy=False, nan=0.0), 0, 255, out=samples)
    return samples.astype(np.uint8)
