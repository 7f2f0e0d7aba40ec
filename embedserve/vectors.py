"""Checks and norms of vectors that come from outside."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedserve.errors import DimensionMismatch, InvalidInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray


def unit(values: ArrayLike, dimension: int) -> NDArray[np.float32]:
    """The vector with norm 1: float32 [D].

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
            hint="find out what made it: an encoder of embedserve never gives NaN or infinity",
        )
    largest = float(np.abs(vector).max())
    if largest == 0.0:
        raise InvalidInput("the vector is zero, which has no direction", hint="leave the item out")
    # Dividing by the largest number first keeps the squares of extreme numbers in range.
    vector = vector / largest
    return (vector / np.linalg.norm(vector)).astype(np.float32)
