"""The rows that no segment holds yet: the delta, a small append-only buffer, and deltas that are full.

Values of Delta share one buffer. Each sees only its first rows, and an append writes behind them, so readers of an
older value are not disturbed. The rows of a discarded append (a failed commit) are overwritten by the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Self

import numpy as np
from numpy.typing import NDArray

from embedserve.index.rows import Rows

_numbers = count()

_BYTES = 4 << 20
"""Maximum size of the vectors in the first buffer: scored in about 0.1 ms."""
_MOST_BYTES = 256 << 20
"""Maximum size in any buffer."""
_ROWS = 64
"""Minimum number of rows in a buffer, however long the vectors."""
_SHARE = 4
"""A buffer has room for a quarter of the rows that wait before it, so that the waiting rows lie in O(log N) deltas."""


@dataclass(frozen=True, slots=True, eq=False)
class FrozenDelta(Rows):
    """Rows in memory that wait to be sealed; nothing is appended to them."""

    uid: str
    """Unique while the process runs."""

    @classmethod
    def of(
        cls,
        vectors: NDArray[np.float32],
        rids: NDArray[np.int64],
        ids: Sequence[bytes],
        live_bits: NDArray[np.uint8] | None,
        live: int,
    ) -> Self:
        """These rows, under a new uid."""
        return cls(vectors, rids, ids, live_bits, live, f"memory-{next(_numbers)}")


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
        """Whether ``count`` more rows fit into the buffer."""
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

    def frozen(self) -> FrozenDelta:
        """The same rows, without room for more."""
        return FrozenDelta.of(self.vectors, self.rids, self.ids, self.live_bits, self.live)
