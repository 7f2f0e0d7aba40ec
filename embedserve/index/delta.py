"""The rows written last: a small append-only buffer.

Values share one buffer. Each sees only its first rows, and appending writes behind them, so a reader of an older
value is not disturbed. An append that is thrown away (a failed commit) is overwritten by the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from embedserve.index.rows import Frozen, Rows

_BYTES = 4 << 20
"""Vectors in the first buffer at most: scored in about 0.1 ms."""
_MOST_BYTES = 256 << 20
"""And in any buffer."""
_ROWS = 64
"""Rows in a buffer at least, however long the vectors."""
_SHARE = 4
"""A buffer has room for a quarter of the rows that wait before it to be sealed, so that they lie in O(log N) parts."""


@dataclass(frozen=True, slots=True, eq=False)
class Delta(Rows):
    """The first rows of a buffer of [C, D] vectors, [C] row numbers and C ids."""

    vectors_buffer: NDArray[np.float32]
    rids_buffer: NDArray[np.int64]
    ids_buffer: list[bytes]

    @classmethod
    def empty(cls, dimension: int, waiting: int = 0) -> Self:
        """A new buffer behind ``waiting`` rows that are not sealed. It takes memory only as it fills."""
        bytes_of_row = 4 * dimension
        wanted = min(max(_BYTES, waiting * bytes_of_row // _SHARE), max(_BYTES, _MOST_BYTES if _BYTES else 0))
        capacity = max(wanted // bytes_of_row, _ROWS)
        vectors, rids = np.empty((capacity, dimension), np.float32), np.empty(capacity, np.int64)
        return cls(vectors[:0], rids[:0], [], None, 0, vectors, rids, [])

    def fits(self, count: int) -> bool:
        """Whether so many rows can be appended."""
        return len(self) + count <= len(self.rids_buffer)

    def appended(self, rids: NDArray[np.int64], ids: Sequence[bytes], vectors: NDArray[np.float32]) -> Self:
        """With these rows behind the others. One thread at a time, and always from the newest published value."""
        start, end = len(self), len(self) + len(rids)
        self.rids_buffer[start:end] = rids
        self.vectors_buffer[start:end] = vectors
        self.ids_buffer[start:] = ids
        bits = (
            None
            if self.live_bits is None
            else np.packbits(np.concatenate([self.live_mask(), np.ones(len(rids), np.bool_)]), bitorder="little")
        )
        return type(self)(
            self.vectors_buffer[:end],
            self.rids_buffer[:end],
            self.ids_buffer,
            bits,
            self.live + len(rids),
            self.vectors_buffer,
            self.rids_buffer,
            self.ids_buffer,
        )

    def frozen(self) -> Frozen:
        """The same rows as a part that nothing is appended to."""
        return Frozen.of(self.vectors, self.rids, self.ids, self.live_bits, self.live)
