"""The structure of a TIFF file: its directories, and the bytes of its strips and tiles (TIFF 6.0, BigTIFF).

Only what says how samples are laid out is read here, within bounds that do not depend on what the file claims. Strips
and tiles are decompressed by zlib, or by libtiff through Pillow; what the samples mean is said in ``tiff``.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from embedserve.errors import ImageUndecodable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NONE, LZW, JPEG, DEFLATE, OLD_DEFLATE, PACKBITS = 1, 5, 7, 8, 32946, 32773
BYTES = frozenset({NONE, LZW, DEFLATE, OLD_DEFLATE, PACKBITS, 34925, 50000})
"""Compressions of bytes, whatever they mean: also LZMA and Zstandard. All others know about pixels."""

_MAX_DIRECTORIES = 64
_MAX_ENTRIES = 4096
_MAX_VALUES = 1 << 20
"""Of one tag; a picture of 50 million pixels in tiles of 16 × 16 has 200,000 offsets."""
_TYPES = {
    1: "B", 2: "s", 3: "H", 4: "I", 5: "II", 6: "b", 7: "B", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d", 13: "I",
    16: "Q", 17: "q", 18: "Q",
}  # fmt: skip
_REDUCED, _MASK = 1, 4
"""Bits of NewSubfileType."""


@dataclass(frozen=True)
class Directory:
    """One image of a file."""

    order: str
    """"<" or ">", as in ``struct``."""
    offset: int
    tags: Mapping[int, tuple[Any, ...]]
    big: bool
    """Whether it is a BigTIFF."""

    def number(self, tag: int, default: int) -> int:
        """A tag with one whole number.

        Raises:
            ImageUndecodable: it has something else.
        """
        value = self.tags.get(tag, (default,))
        if not value or not isinstance(value[0], int):
            raise ImageUndecodable(f"the image is damaged: tag {tag} of the TIFF is no number")
        return value[0]

    def numbers(self, tag: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """A tag with whole numbers."""
        value = self.tags.get(tag, default)
        if not all(isinstance(number, int) for number in value):
            raise ImageUndecodable(f"the image is damaged: tag {tag} of the TIFF has no numbers")
        return tuple(value)

    @property
    def is_full_image(self) -> bool:
        """Whether it is neither a smaller version of another image nor a mask."""
        return not self.number(254, 0) & (_REDUCED | _MASK) and self.number(255, 1) != 2


def is_tiff(data: bytes) -> bool:
    """Whether bytes begin as a TIFF file."""
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def directories(data: bytes) -> list[Directory]:
    """The directories of a file in their order.

    Raises:
        ImageUndecodable: the first cannot be read.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = data[:4] in (b"II+\0", b"MM\0+")
    found: list[Directory] = []
    try:
        (offset,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
        seen: set[int] = set()
        while offset and offset not in seen and len(found) < _MAX_DIRECTORIES:
            seen.add(offset)
            directory, offset = _read(data, offset, order, big)
            found.append(directory)
    except (struct.error, ValueError, OverflowError) as error:
        if not found:
            raise ImageUndecodable(
                f"the image is damaged: the directory of the TIFF cannot be read: {error}"
            ) from error
    return found


def inside(data: bytes, directory: Directory) -> list[Directory]:
    """The directories that a directory names as its own (SubIFDs, tag 330), as far as they can be read."""
    found = []
    for offset in directory.numbers(330)[:_MAX_DIRECTORIES]:
        try:
            found.append(_read(data, offset, directory.order, directory.big)[0])
        except (struct.error, ValueError, OverflowError):
            continue
    return found


def beginning_with(data: bytes, directory: Directory) -> bytes:
    """The file with a directory as its first, for readers that take the first."""
    if directory.big:
        return data[:8] + struct.pack(directory.order + "Q", directory.offset) + data[16:]
    return data[:4] + struct.pack(directory.order + "I", directory.offset) + data[8:]


def _read(data: bytes, offset: int, order: str, big: bool) -> tuple[Directory, int]:
    head, entry, size = ("Q", "HHQ", 20) if big else ("H", "HHI", 12)
    (count,) = struct.unpack_from(order + head, data, offset)
    if count > _MAX_ENTRIES:
        raise ValueError(f"it has {count} entries")
    position = offset + struct.calcsize(order + head)
    tags: dict[int, tuple[Any, ...]] = {}
    for _ in range(count):
        tag, kind, values = struct.unpack_from(order + entry, data, position)
        if kind in _TYPES and tag in _USED and values <= _MAX_VALUES:
            tags.setdefault(tag, _values(data, position + size - (8 if big else 4), order, big, kind, values))
        position += size
    following = struct.unpack_from(order + ("Q" if big else "I"), data, position) if position + 4 <= len(data) else (0,)
    return Directory(order, offset, tags, big), following[0]


def _values(data: bytes, field: int, order: str, big: bool, kind: int, count: int) -> tuple[Any, ...]:
    letters = _TYPES[kind]
    size = struct.calcsize("=" + letters) * count
    if size > (8 if big else 4):
        (field,) = struct.unpack_from(order + ("Q" if big else "I"), data, field)
    if letters == "s":
        return (data[field : field + count],)
    values = struct.unpack_from(f"{order}{count * len(letters)}{letters[0]}", data, field)
    return tuple(zip(values[::2], values[1::2], strict=True)) if len(letters) == 2 else values


_USED = frozenset({
    254, 255, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 280, 281, 284, 317, 320, 322, 323, 324, 325, 330,
    332, 338, 339, 340, 341, 529, 530, 532, 34675,
})  # fmt: skip
"""Tags about the layout and the meaning of samples; the values of all others are never looked at."""


@dataclass(frozen=True)
class Segment:
    """A strip or a tile, or the part of it that lies within the image."""

    plane: int
    """Number of its band if bands are stored separately, else 0."""
    left: int
    top: int
    width: int
    """Of its rows as stored, in pixels; those of a tile may go beyond the image."""
    height: int
    offset: int
    size: int


def segments(directory: Directory, width: int, height: int, planes: int, bytes_in_all: int) -> Iterator[Segment]:
    """The strips or tiles of an image.

    Args:
        directory: of the image.
        width: of the image, in pixels.
        height: of the image.
        planes: number of bands that are stored separately; 1 if they are not.
        bytes_in_all: of the file.

    Raises:
        ImageUndecodable: they do not cover the image, or tiles are much larger than it.
    """
    tiled = 322 in directory.tags
    across, down = width, min(max(directory.number(278, height), 1), height)
    if tiled:
        across, down = directory.number(322, 0), directory.number(323, 0)
        padding = 1 << 22
        if (
            across < 1
            or down < 1
            or -(-width // across) * across * (-(-height // down) * down) > (4 * width * height + padding)
        ):
            raise ImageUndecodable(f"the image is damaged: its tiles have {across} × {down} pixels")
    offsets = directory.numbers(324 if tiled and 324 in directory.tags else 273)
    sizes = directory.numbers(325 if tiled and 325 in directory.tags else 279)
    columns, rows = -(-width // across), -(-height // down)
    needed = columns * rows * planes
    if len(offsets) < needed:
        raise ImageUndecodable(f"the image is damaged: {len(offsets)} of its {needed} strips or tiles are there")
    for number in range(needed):
        plane, place = divmod(number, columns * rows)
        row, column = divmod(place, columns)
        top = row * down
        yield Segment(
            plane=plane,
            left=column * across,
            top=top,
            width=across,
            height=down if tiled else min(down, height - top),
            offset=offsets[number],
            size=sizes[number] if number < len(sizes) else bytes_in_all - offsets[number],
        )


def unpacked(data: bytes, directory: Directory, segment: Segment, row_bytes: int) -> NDArray[np.uint8]:
    """The bytes of a strip or tile: uint8 [height, row_bytes], decompressed, with bits in the usual order.

    Raises:
        ImageUndecodable: there are fewer.
    """
    import numpy as np

    if segment.offset < 0 or segment.size < 0 or segment.offset > len(data):
        raise ImageUndecodable("the image is damaged: a strip or tile lies outside the file")
    packed = memoryview(data)[segment.offset : segment.offset + segment.size]
    compression, wanted = directory.number(259, NONE), segment.height * row_bytes
    reversed_bits = directory.number(266, 1) == 2
    if compression == NONE:
        raw = np.frombuffer(packed[:wanted], np.uint8)
        raw = _reversed_bits()[raw] if reversed_bits else raw
    elif compression in (DEFLATE, OLD_DEFLATE) and not reversed_bits:
        try:
            raw = np.frombuffer(zlib.decompressobj().decompress(packed, wanted), np.uint8)
        except zlib.error as error:
            raise ImageUndecodable(f"the image is damaged: {error}") from error
    else:
        raw = _by_libtiff(bytes(packed), compression, segment.height, row_bytes, reversed_bits)
    if raw.size < wanted:
        raise ImageUndecodable(f"the image is damaged: a strip or tile has {raw.size} of {wanted} bytes")
    return raw.reshape(segment.height, row_bytes)


def _by_libtiff(packed: bytes, compression: int, rows: int, row_bytes: int, reversed_bits: bool) -> NDArray[np.uint8]:
    """Decompress bytes: libtiff is given them as the only strip of a picture of bytes."""
    import numpy as np
    from PIL import Image

    samples = next(count for count in (4, 3, 1) if row_bytes % count == 0)
    width = row_bytes // samples
    if Image.MAX_IMAGE_PIXELS is not None and width * rows > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = width * rows  # the limits on the picture itself have been checked
    entries = [
        (256, width), (257, rows), (258, 8), (259, compression), (262, 1 if samples == 1 else 2),
        (266, 2 if reversed_bits else 1), (273, 0), (277, samples), (278, rows), (279, len(packed)),
    ]  # fmt: skip
    head = 8 + 2 + 12 * len(entries) + 4
    file = io.BytesIO()
    file.write(struct.pack("<2sHIH", b"II", 42, 8, len(entries)))
    for tag, value in entries:
        if tag == 258 and samples > 1:
            file.write(struct.pack("<HHII", tag, 3, samples, head))
            continue
        file.write(struct.pack("<HHII", tag, 4, 1, head + 8 if tag == 273 else value))
    file.write(struct.pack("<I4H", 0, 8, 8, 8, 8))
    file.write(packed)
    file.seek(0)
    # Four bands of which the file does not say what the fourth is are given back as they are stored.
    with Image.open(file, formats=("TIFF",)) as image:
        return np.asarray(image).reshape(-1)


@cache
def _reversed_bits() -> NDArray[np.uint8]:
    """Each byte with its bits in the other order."""
    import numpy as np

    return np.packbits(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)[:, ::-1], axis=1)[:, 0]
