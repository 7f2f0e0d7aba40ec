"""Copies: pictures that are in a folder more than once, equal in every pixel of the decoded square."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Copies:
    """How many images of a folder repeat another."""

    images: int = 0
    """All images, at least 0."""
    pictures: int = 0
    """Pictures that are there more than once."""
    files: int = 0
    """Images that show one of these pictures, each of them counted."""
    largest: int = 0
    """Images of the most frequent of these pictures."""

    @classmethod
    def of(cls, digests: Sequence[Hashable]) -> Copies:
        """The counts from something that is equal for equal images."""
        counts = [count for count in Counter(digests).values() if count > 1]
        return cls(images=len(digests), pictures=len(counts), files=sum(counts), largest=max(counts, default=0))

    @property
    def distinct(self) -> int:
        """Different pictures."""
        return self.images - self.files + self.pictures

    def lines(self) -> list[str]:
        """What a person should know, in sentences; empty without copies."""
        if not self.pictures:
            return []
        if self.pictures == 1:
            return [f"{self.files:,} of {self.images:,} images are one picture"]
        said = f"{self.pictures:,} pictures are there more than once ({self.files:,} files"
        return [f"{said}; one of them {self.largest:,} times)"]


def pixel_digest(image_SSC: NDArray[np.uint8]) -> bytes:
    """Equal for images that are equal in every pixel."""
    return hashlib.sha256(image_SSC.tobytes()).digest()
