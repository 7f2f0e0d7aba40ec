"""From the stored grey values of a DICOM file to 0…255: rescaling, windows and tables, as one table for all values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedserve.errors import ImageFormatError, ImageUndecodable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Table = tuple[int, "NDArray[np.uint16]", int]
"""The value that the first entry is for, the entries, and their bits."""

_BLOCK_PX = 1 << 16
"""Pixels that are looked up at a time: NumPy makes indices of 8 bytes of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Levels:
    """What a file says about its grey values; None where it says nothing."""

    bits: int
    signed: bool
    inverted: bool
    slope: float
    intercept: float
    modality: Table | None
    center: float | None
    width: float | None
    function: str
    voi: Table | None
    smallest: float | None
    largest: float | None
    padding: float | None
    padding_limit: float | None


def levels_table(
    levels: Levels, codes: NDArray[Any], value_range: str | tuple[float, float], notes: list[str] | None
) -> NDArray[np.uint8]:
    """uint8 [2 ** bits]: the grey of each stored value.

    Args:
        levels: what the file says.
        codes: the stored values of the image, [H, W].
        value_range: as in ``PixelRule``, of rescaled values.
        notes: receives what was decided without the file saying so.
    """
    import numpy as np

    every = np.arange(1 << levels.bits)
    stored = np.where(every >> (levels.bits - 1) == 1, every - (1 << levels.bits), every) if levels.signed else every
    values = _rescaled(levels, stored)
    if not isinstance(value_range, str):
        grey = _ramp(values, *value_range)
    elif value_range == "full":
        grey = _ramp(values, float(values.min()), float(values.max()))
    elif levels.voi is not None:
        first, table, bits = levels.voi
        if first > 0x7FFF and values.min() < 0:
            first -= 0x10000
        grey = table[np.clip(np.floor(values) - first, 0, len(table) - 1).astype(np.int64)] / ((1 << bits) - 1)
    elif levels.center is not None and levels.width is not None and levels.width > 0:
        grey = _windowed(values, levels.center, levels.width, levels.function)
    elif levels.bits <= 8:
        grey = _ramp(values, float(values.min()), float(values.max()))
    else:
        grey = _without_window(levels, codes, stored, values, notes)
    if not np.isfinite(grey).all():
        raise ImageUndecodable("the image is damaged: its rescaling gives values that are no numbers")
    out = np.floor(grey * 255 + 0.5).astype(np.uint8)
    if levels.inverted:
        out = 255 - out
    out[_padding(levels, stored)] = 0
    return out


def _rescaled(levels: Levels, stored: NDArray[Any]) -> NDArray[np.float64]:
    import numpy as np

    if levels.modality is None:
        with np.errstate(all="ignore"):
            return np.asarray(stored * levels.slope + levels.intercept, np.float64)
    first, table, _ = levels.modality
    if first > 0x7FFF and levels.signed:
        first -= 0x10000
    found: NDArray[np.float64] = table[np.clip(stored - first, 0, len(table) - 1)].astype(np.float64)
    return found


def _ramp(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    import numpy as np

    if not low < high:
        return np.zeros_like(values)
    with np.errstate(all="ignore"):
        return np.clip((values - low) / (high - low), 0, 1)


def _windowed(values: NDArray[np.float64], center: float, width: float, function: str) -> NDArray[np.float64]:
    """PS3.3, C.11.2.1.2 and C.11.2.1.3."""
    import numpy as np

    if function == "LINEAR":
        low, high = center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2
        return _ramp(values, low, high) if width > 1 else (values > low).astype(np.float64)
    if function == "LINEAR_EXACT":
        return _ramp(values, center - width / 2, center + width / 2)
    if function == "SIGMOID":
        with np.errstate(all="ignore"):
            return 1 / (1 + np.exp(-4 * (values - center) / width))
    raise ImageFormatError(
        f"the image is DICOM with a window of the function {function!r}, which is not read",
        hint="save what a viewer shows as PNG",
    )


def _padding(levels: Levels, stored: NDArray[Any]) -> NDArray[np.bool_]:
    """Which stored values are no part of the picture."""
    import numpy as np

    if levels.padding is None:
        return np.zeros(stored.shape, bool)
    ends = levels.padding, levels.padding if levels.padding_limit is None else levels.padding_limit
    return np.asarray((stored >= min(ends)) & (stored <= max(ends)))


def _without_window(
    levels: Levels, codes: NDArray[Any], stored: NDArray[Any], values: NDArray[np.float64], notes: list[str] | None
) -> NDArray[np.float64]:
    import numpy as np

    if levels.smallest is not None and levels.largest is not None and levels.smallest < levels.largest:
        inside = values[(stored >= levels.smallest) & (stored <= levels.largest)]
    else:
        used = np.zeros(values.shape, bool)
        for row in _rows(codes):
            used[row] = True
        inside = values[used & ~_padding(levels, stored)]
        if notes is not None:
            notes.append("the DICOM image has no window: its own lowest and highest value became black and white")
    return _ramp(values, float(inside.min()), float(inside.max())) if inside.size else np.zeros_like(values)


def _rows(codes: NDArray[Any]) -> list[NDArray[Any]]:
    step = max(1, _BLOCK_PX // max(1, codes.shape[1]))
    return [codes[at : at + step] for at in range(0, codes.shape[0], step)]


def look_up(table: NDArray[np.uint8], codes: NDArray[Any]) -> NDArray[np.uint8]:
    """uint8 [H, W, 3]: the colour that a table, [values, 3], has for each of the values, [H, W]."""
    import numpy as np

    found = np.empty((*codes.shape, 3), np.uint8)
    for rows, out in zip(_rows(codes), _rows(found), strict=True):
        out[:] = table[rows]
    return found


def table_of(descriptor: Any, values: Any, little_endian: bool) -> Table:
    """The table that a descriptor (entries, first value, bits) and its values say.

    Raises:
        ImageUndecodable: they do not fit together.
    """
    import numpy as np

    count, first, bits = (int(number) for number in descriptor)
    count = count & 0xFFFF or 0x10000
    if isinstance(values, bytes):
        wide = len(values) >= 2 * count
        table = np.frombuffer(values, np.dtype("<u2" if little_endian else ">u2") if wide else np.uint8)
    else:
        table = np.atleast_1d(np.asarray(values, np.int64)) & 0xFFFF
    table = table[:count].astype(np.uint16)
    if len(table) < count or not 8 <= bits <= 16:
        raise ImageUndecodable(f"the image is damaged: a table has {len(table)} entries of {bits} bits, not {count}")
    return first, np.minimum(table, (1 << bits) - 1).astype(np.uint16), bits
