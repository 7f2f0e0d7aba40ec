"""What callers ask of the engine: items to write, what to look for, and backups in pieces."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from embedserve.types import Metadata

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class NewItem:
    """An item to be written: an image or a vector."""

    id: str = ""
    """Empty: the engine makes one."""
    image: bytes | None = None
    vector: NDArray[np.float32] | None = None
    metadata: Metadata = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ImageQuery:
    """Items that look like this encoded image."""

    image: bytes


@dataclass(frozen=True, slots=True)
class VectorQuery:
    """Items close to this vector."""

    vector: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ItemQuery:
    """Items close to this one, which is not among its own hits."""

    id: str


Query: TypeAlias = ImageQuery | VectorQuery | ItemQuery


@dataclass(frozen=True, slots=True)
class BackupPart:
    """A piece of a backup. The pieces, one after the other, are the file."""

    chunk: bytes
    sha256: bytes = b""
    """Of all bytes, with the last piece only: a backup without it is cut."""
