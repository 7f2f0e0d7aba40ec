"""The directories of a TIFF file, read within bounds and before anything is decoded (TIFF 6.0; BigTIFF)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

from embedserve.errors import ImageFormatError, ImageUndecodable

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes: little- and big-endian, classic and BigTIFF."""

_TYPES = {1: "B", 2: "B", 3: "H", 4: "I", 5: "II", 6: "b", 7: "B", 8: "h", 9: "i", 10: "ii"}
_TYPES |= {11: "f", 12: "d", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_MAX_DIRECTORIES = 64
"""Directories that are looked at to find the full image."""
_MAX_ENTRIES = 4096
_MAX_VALUES = 1 << 20

WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
FILL_ORDER, STRIP_OFFSETS, ORIENTATION, SAMPLES, ROWS_PER_STRIP, STRIP_COUNTS = 266, 273, 274, 277, 278, 279
MIN_SAMPLE, MAX_SAMPLE, PLANAR, PREDICTOR, COLOR_MAP = 280, 281, 284, 317, 320
TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_COUNTS, SUB_IFDS = 322, 323, 324, 325, 330
INK_SET, EXTRA_SAMPLES, SAMPLE_FORMAT, S_MIN, S_MAX, JPEG_TABLES = 332, 338, 339, 340, 341, 347
SUBSAMPLING, REFERENCE_BLACK_WHITE, ICC_PROFILE = 530, 532, 34675
_NEW_SUBFILE_TYPE, _SUBFILE_TYPE = 254, 255


@dataclass(frozen=True, slots=True)
class Directory:
    """One directory; the values of its fields are read when asked for."""

    data: bytes
    order: str
    """"<" or ">", as in struct."""
    fields: dict[int, tuple[int, int, int]]
    """Tag → type, count, and where the values begin."""
    following: int
    """Where the next directory begins; 0 after the last."""
    is_first: bool = True
    """Whether it is the one that other readers take."""

    def values(self, tag: int) -> tuple[float, ...]:
        """The numbers of a field; () if it is not there. Of a fraction both parts, one after the other."""
        if tag not in self.fields:
            return ()
        kind, count, start = self.fields[tag]
        code = _TYPES.get(kind, "B")
        if count > _MAX_VALUES:
            raise ImageUndecodable(f"the image is damaged: TIFF tag {tag} has {count} values")
        size = struct.calcsize("=" + code) * count
        if start + size > len(self.data):
            raise ImageUndecodable(f"the image is damaged: the values of TIFF tag {tag} lie behind its end")
        return struct.unpack_from(f"{self.order}{count * len(code)}{code[0]}", self.data, start)

    def integers(self, tag: int) -> tuple[int, ...]:
        """As ``values``, of a field that holds whole numbers."""
        values = self.values(tag)
        if any(not isinstance(value, int) for value in values):
            raise ImageUndecodable(f"the image is damaged: TIFF tag {tag} holds fractions")
        return tuple(int(value) for value in values)

    def number(self, tag: int, default: int) -> int:
        """The first number of a field, or the default."""
        return (self.integers(tag) or (default,))[0]

    def bytes_of(self, tag: int) -> bytes:
        """The bytes of a field of bytes; empty if it is not there."""
        if tag not in self.fields:
            return b""
        _, count, start = self.fields[tag]
        return self.data[start : start + count]

    @property
    def is_full_image(self) -> bool:
        """Whether it is neither a reduced image nor a mask."""
        return not (self.number(_NEW_SUBFILE_TYPE, 0) & 5 or self.number(_SUBFILE_TYPE, 1) == 2)


def full_image(data: bytes, notes: list[str] | None) -> Directory:
    """The directory of the picture: the first that is neither a thumbnail nor a mask.

    Raises:
        ImageUndecodable: a directory is cut off.
        ImageFormatError: all directories are thumbnails or masks of something that is not in the file.
    """
    first: Directory | None = None
    seen = 0
    for directory in _directories(data):
        seen += 1
        first = first or directory
        if directory.is_full_image:
            if seen > 1 and notes is not None:
                notes.append("the first directory of the TIFF is a thumbnail or a mask; the full image was taken")
            elif directory.following and notes is not None:
                notes.append("the TIFF has more than one page; the first was taken")
            return directory
    if first is None:
        raise ImageUndecodable("the image is damaged: the TIFF has no directory")
    if seen == 1:
        return first  # it says that it is a reduced copy, and there is nothing else
    raise ImageFormatError(
        f"the TIFF holds {seen} thumbnails or masks and no full image", hint="export the full image as TIFF or PNG"
    )


def _directories(data: bytes) -> Iterator[Directory]:
    """Each directory, its sub-directories behind it, each offset once."""
    order = "<" if data[:2] == b"II" else ">"
    big = 43 in data[2:4]
    try:
        (start,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
        pending, seen = [start], set[int]()
        while pending and len(seen) < _MAX_DIRECTORIES:
            offset = pending.pop(0)
            if not offset or offset in seen:
                continue
            seen.add(offset)
            directory = replace(_directory(data, order, big, offset), is_first=len(seen) == 1)
            pending = [*directory.integers(SUB_IFDS)[:_MAX_DIRECTORIES], directory.following, *pending]
            yield directory
    except struct.error:
        raise ImageUndecodable("the image is damaged: a directory of the TIFF is cut off") from None


def _directory(data: bytes, order: str, big: bool, offset: int) -> Directory:
    if offset > len(data):
        raise ImageUndecodable("the image is damaged: a directory of the TIFF lies behind its end")
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, offset)
    if count > _MAX_ENTRIES:
        raise ImageUndecodable(f"the image is damaged: a directory of the TIFF has {count} fields")
    entry, inline = (order + "HHQQ", 8) if big else (order + "HHII", 4)
    position = offset + (8 if big else 2)
    fields: dict[int, tuple[int, int, int]] = {}
    for _ in range(count):
        tag, kind, length, value = struct.unpack_from(entry, data, position)
        size = struct.calcsize("=" + _TYPES.get(kind, "B")) * length
        position += struct.calcsize(entry)
        fields.setdefault(tag, (kind, length, position - inline if size <= inline else value))
    (following,) = struct.unpack_from(order + ("Q" if big else "I"), data, position)
    return Directory(data, order, fields, following)


def rewritten(data: bytes, fields: dict[int, tuple[int, ...] | bytes]) -> bytes:
    """The data with one classic, little-endian directory of these fields behind it, in place of its own."""
    start = len(data) + len(data) % 2
    body, values = b"", b""
    after = start + 2 + 12 * len(fields) + 4
    for tag, value in sorted(fields.items()):
        blob = value if isinstance(value, bytes) else struct.pack(f"<{len(value)}I", *value)
        body += struct.pack("<HHI", tag, 7 if isinstance(value, bytes) else 4, len(value))
        if len(blob) <= 4:
            body += blob.ljust(4, b"\0")
        else:
            body += struct.pack("<I", after + len(values))
            values += blob + b"\0" * (len(blob) % 2)
    header = struct.pack("<2sHI", b"II", 42, start)
    tail = struct.pack("<H", len(fields)) + body + struct.pack("<I", 0) + values
    return b"".join((header, memoryview(data)[8:], b"\0" * (len(data) % 2), tail))
