"""What callers give the engine: items to write, queries, pieces of backups; and checks that several of them share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from embedserve.errors import EmbedserveError, InvalidInput
from embedserve.types import Limits, Metadata

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_T = TypeVar("_T")


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
    """Asks for items that look like this encoded image."""

    image: bytes


@dataclass(frozen=True, slots=True)
class VectorQuery:
    """Asks for items close to this vector."""

    vector: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ItemQuery:
    """Asks for items close to this one, which is not among its own hits."""

    id: str


Query: TypeAlias = ImageQuery | VectorQuery | ItemQuery


@dataclass(frozen=True, slots=True)
class BackupPart:
    """A piece of a backup. All chunks, one after the other, are the file."""

    chunk: bytes
    sha256: bytes = b""
    """Of the whole file, with the last piece only: a backup without it is incomplete."""


def id_error(item_id: str, limits: Limits) -> EmbedserveError | None:
    """Why no item can have this id; None if one can."""
    try:
        limits.check("max_id_bytes", len(item_id.encode()), "bytes in an item id")
    except EmbedserveError as error:
        return error
    return None if item_id else InvalidInput("an item id is empty")


def check_target_recall(target_recall: float) -> None:
    """Refuse a recall outside (0, 1].

    Raises:
        InvalidInput: with the value.
    """
    if not 0 < target_recall <= 1:
        raise InvalidInput(f"target_recall is {target_recall}; it lies above 0 and is at most 1")


def positioned(noun: str, results: list[_T | EmbedserveError]) -> list[_T | EmbedserveError]:
    """The results of a call, each error with the place of its input, as in "image 3 of 8: …"."""
    if len(results) == 1:
        return results
    return [
        result.at(f"{noun} {position} of {len(results)}") if isinstance(result, EmbedserveError) else result
        for position, result in enumerate(results, start=1)
    ]
