"""Vectors from callers, checked and scaled to norm 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedserve.errors import DimensionMismatch, EmbedserveError, InvalidInput

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import ArrayLike, NDArray


def unit(values: ArrayLike, dimension: int) -> NDArray[np.float32]:
    """The vector scaled to norm 1: float32 [D].

    Raises:
        DimensionMismatch: it does not have ``dimension`` numbers.
        InvalidInput: a number is not finite, or all are zero.
    """
    import numpy as np

    vector = np.asarray(values, dtype=np.float64)
    if vector.shape != (dimension,):
        raise DimensionMismatch(
            f"the vector has {vector.size} numbers; the collection holds vectors of {dimension}",
            hint="use the encoder that the collection is bound to: embedserve collection info NAME",
        )
    if not np.isfinite(vector).all():
        raise InvalidInput(
            f"number {int(np.argmin(np.isfinite(vector)))} of the vector is not finite",
            hint="check how it was made: an encoder of embedserve never gives NaN or infinity",
        )
    largest = float(np.abs(vector).max())
    if largest == 0.0:
        raise InvalidInput("the vector is zero, which has no direction", hint="leave the item out")
    # Dividing by the largest number first keeps the squares of extreme numbers in range.
    vector = vector / largest
    return (vector / np.linalg.norm(vector)).astype(np.float32)


_STEP_NUMBERS = 1 << 18
"""Numbers in one step of ``units``, which holds them several times as 8 bytes each."""


def units(given: Sequence[NDArray[np.float32]], dimension: int) -> list[NDArray[np.float32] | EmbedserveError]:
    """For each vector what ``unit`` returns, bit for bit, or the error that it raises."""
    step = max(_STEP_NUMBERS // dimension, 1)
    return [
        result
        for start in range(0, len(given), step)
        for result in _units_at_once(given[start : start + step], dimension)
    ]


def _units_at_once(given: Sequence[NDArray[np.float32]], dimension: int) -> list[NDArray[np.float32] | EmbedserveError]:
    import numpy as np

    if len(given) > 1 and all(vector.shape == (dimension,) for vector in given):
        matrix = np.array(given, np.float64)
        largest = np.maximum(matrix.max(axis=1), -matrix.min(axis=1))
        if np.isfinite(largest).all() and largest.all():
            matrix /= largest[:, None]
            # Row by row, as np.linalg.norm does for one vector: a sum over an axis would add in another order.
            norms = np.sqrt([row.dot(row) for row in matrix])
            return list((matrix / norms[:, None]).astype(np.float32))
    return [_unit_or_error(vector, dimension) for vector in given]


def _unit_or_error(vector: NDArray[np.float32], dimension: int) -> NDArray[np.float32] | EmbedserveError:
    try:
        return unit(vector, dimension)
    except EmbedserveError as error:
        return error
