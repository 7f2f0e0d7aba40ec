"""Ids of rows, by position."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self, overload

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class PackedIds(Sequence[bytes]):
    """Ids, concatenated in one array, which may be a mapped file.

    Args:
        text: uint8 [B], the ids in UTF-8, without separators.
        ends: int64 [N], where each id ends.
    """

    text: NDArray[np.uint8]
    ends: NDArray[np.int64]

    @classmethod
    def of(cls, ids: Iterable[bytes]) -> Self:
        """These ids, packed."""
        listed = list(ids)
        lengths = np.fromiter(map(len, listed), np.int64, len(listed))
        return cls(np.frombuffer(b"".join(listed), np.uint8), np.cumsum(lengths, dtype=np.int64))

    def at(self, positions: NDArray[np.int64]) -> list[bytes]:
        """The ids at these positions, in their order."""
        ends = self.ends[positions].tolist()
        starts = np.where(positions > 0, self.ends[positions - 1], 0).tolist()
        text = self.text.data
        return [bytes(text[start:end]) for start, end in zip(starts, ends, strict=True)]

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, place: int) -> bytes: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[bytes]: ...
    def __getitem__(self, place: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(place, slice):
            return [self[position] for position in range(*place.indices(len(self)))]
        end = int(self.ends[place])
        position = place % len(self)
        start = int(self.ends[position - 1]) if position else 0
        return self.text[start:end].tobytes()
