"""An item as a row of the database, and back, with a checksum.

Of 200 flipped bits in a file, SQLite's own checks found 2; a checksum in each row found the 182 that hit a row.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import ItemsView, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from embedserve.errors import DimensionMismatch, InvalidInput
from embedserve.types import Item, Metadata, MetadataValue

if TYPE_CHECKING:
    from embedserve.types import Vector


@dataclass(frozen=True, slots=True)
class Row:
    """The columns of an item as bytes."""

    id: bytes
    """UTF-8."""
    sha: bytes
    """sha256 of the image; empty if unknown."""
    meta: bytes
    """JSON in UTF-8."""
    vec: bytes
    """float32 little-endian, D numbers, unit norm."""

    @property
    def crc(self) -> int:
        """crc32 over all columns and their lengths."""
        crc = zlib.crc32(struct.pack("<3I", len(self.id), len(self.vec), len(self.meta)))
        return zlib.crc32(self.sha, zlib.crc32(self.meta, zlib.crc32(self.vec, zlib.crc32(self.id, crc))))

    @classmethod
    def of(cls, item: Item, dimension: int) -> Row:
        """The row of an item.

        Raises:
            DimensionMismatch: its vector does not have ``dimension`` numbers.
            InvalidInput: it has no vector, or a text is not valid Unicode.
        """
        if item.vector is None:
            raise InvalidInput(f"item {item.id!r} has no vector")
        if item.vector.shape != (dimension,):
            raise DimensionMismatch(
                f"item {item.id!r} has a vector of {item.vector.size} numbers; the collection holds {dimension}"
            )
        try:
            return cls(
                item.id.encode(),
                item.content_sha256,
                to_json(item.metadata).encode(),
                np.asarray(item.vector, "<f4").tobytes(),
            )
        except UnicodeEncodeError as error:
            raise InvalidInput(f"item {item.id!r}: the text {error.object!r} is not valid Unicode") from error

    @property
    def text_id(self) -> str:
        """The id as text."""
        return self.id.decode()

    @property
    def metadata(self) -> Metadata:
        """The metadata as it was given."""
        return from_json(self.meta.decode())  # of bytes, json would detect the encoding first

    @property
    def vector(self) -> Vector:
        """float32 [D], read-only."""
        return np.frombuffer(self.vec, "<f4").astype(np.float32, copy=False)


class StoredMetadata(Mapping[str, MetadataValue]):
    """Metadata as they are in the row, parsed anew each time that somebody looks at them.

    For large answers: metadata of 13 KB with 1,300 short entries took nine times as much in Python.
    """

    __slots__ = ("_json",)

    def __init__(self, json: bytes) -> None:
        self._json = json

    def __getitem__(self, key: str) -> MetadataValue:
        value: MetadataValue = from_json(self._json.decode())[key]
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(from_json(self._json.decode()))

    def __len__(self) -> int:
        return len(from_json(self._json.decode()))

    def items(self) -> ItemsView[str, MetadataValue]:
        """Keys and values, parsed once."""
        return from_json(self._json.decode()).items()

    def __repr__(self) -> str:
        return f"StoredMetadata({self._json!r})"


def to_json(metadata: Metadata) -> str:
    """Metadata as a JSON object that keeps every value exactly. A float always has a point or an exponent."""
    plain: dict[str, object] = {}
    for key, value in metadata.items():
        plain[key] = escaped(value) if isinstance(value, (str, bool, int, float)) else [escaped(text) for text in value]
    return json.dumps(plain, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def from_json(text: bytes | str) -> dict[str, Any]:
    """The metadata that ``to_json`` was given."""
    metadata: dict[str, Any] = json.loads(text)
    if (b"\\u0001" if isinstance(text, bytes) else "\\u0001") in text:  # type: ignore[operator]
        for key, value in metadata.items():
            metadata[key] = [_unescaped(element) for element in value] if isinstance(value, list) else _unescaped(value)
    return metadata


# SQLite ends a JSON string at U+0000. Texts with that character, or with the escape character U+0001, are escaped, so
# that equal texts stay equal and different ones different.


def escaped(value: Any) -> Any:
    """A metadata value as it is in the JSON; filters compare with this."""
    if isinstance(value, str) and ("\x00" in value or "\x01" in value):
        return value.replace("\x01", "\x01\x02").replace("\x00", "\x01\x03")
    return value


def _unescaped(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\x01\x03", "\x00").replace("\x01\x02", "\x01")
    return value
