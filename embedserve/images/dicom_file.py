"""The structure of a DICOM file: the elements that are asked for, and the bytes of its pixels.

Everything else in a file, which may hold millions of nested elements, is passed over without being built. Layout:
DICOM PS3.5, chapter 7 and annex A; PS3.10, chapter 7.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection
from dataclasses import dataclass

from embedserve.errors import ImageTooLarge, ImageUndecodable
from embedserve.types import Limits

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"

PIXEL_DATA = 0x7FE00010
FLOAT_PIXEL_DATA = (0x7FE00008, 0x7FE00009)
_TRANSFER_SYNTAX = 0x00020010
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
"""Value representations whose length has four bytes."""
_MAX_ELEMENTS = 50_000
"""Elements and items that are passed over. Files have hundreds; those with a sequence for each frame, thousands."""
_MAX_ELEMENT_BYTES = 1 << 18
"""Of an element that is asked for; the largest are tables of 65,536 × 2 bytes."""


@dataclass(frozen=True, slots=True)
class DicomFile:
    """What was asked for."""

    syntax: str
    """The transfer syntax: how the file is written, and how its pixels are compressed."""
    implicit: bool
    """Whether elements do not say their type."""
    elements: bytes
    """The elements that were asked for, one after the other, as they are in the file."""
    fragments: tuple[bytes, ...] | None
    """The pixels: one part if they are uncompressed; after the table of offsets, if they are compressed. None if the
    file has none."""
    pixel_words: bool
    """Whether uncompressed pixels are in words of 16 bits, which matters for the order of bytes."""
    has_float_pixels: bool

    @property
    def little_endian(self) -> bool:
        """The order of bytes."""
        return self.syntax != BIG_ENDIAN


def read_dicom(data: bytes, wanted: Collection[int], limits: Limits) -> DicomFile:
    """The structure of a file.

    Args:
        data: its bytes.
        wanted: the elements that are asked for, as group × 65,536 + element.
        limits: a deflated file may have ``max_image_bytes`` when it is inflated.

    Raises:
        ImageUndecodable: the file is damaged.
        ImageTooLarge: inflated, it has more bytes than the limit.
    """
    meta = _Walk(data, 132, implicit=False, little=True)
    syntax = ""
    while meta.group() == 2:
        start, tag, end, _ = meta.element()
        if tag == _TRANSFER_SYNTAX:
            syntax = data[start:end].strip(b"\0 ").decode("ascii", "replace")
    if not syntax:
        raise ImageUndecodable("the image is damaged: it is DICOM without a transfer syntax")
    start = meta.at
    if syntax == DEFLATED:
        data, start = _inflated(data[start:], limits), 0
    # Some programs write elements in the other way than they say; the first one shows which.
    implicit = not _is_type(data[start + 4 : start + 6])
    walk = _Walk(data, start, implicit=implicit, little=syntax != BIG_ENDIAN)
    elements, fragments, has_float_pixels, begin = [], None, False, start
    seen: set[int] = set()
    while walk.at + 8 <= len(data):
        begin = walk.at
        value, tag, end, undefined = walk.element(within=PIXEL_DATA)
        if tag == PIXEL_DATA:
            fragments = walk.fragments() if undefined else (data[value:end],)
            break
        has_float_pixels = has_float_pixels or tag in FLOAT_PIXEL_DATA
        if tag in wanted:
            if tag in seen:
                raise ImageUndecodable(f"the image is damaged: it has {tag >> 16:04X},{tag & 0xFFFF:04X} twice")
            seen.add(tag)
            if walk.at - begin > _MAX_ELEMENT_BYTES:
                raise ImageUndecodable(f"the image is damaged: its element {tag >> 16:04X},{tag & 0xFFFF:04X} is huge")
            elements.append(data[begin : walk.at])
    pixel_words = fragments is not None and data[begin + 4 : begin + 6] == b"OW"
    return DicomFile(syntax, implicit, b"".join(elements), fragments, pixel_words, has_float_pixels)


def _is_type(kind: bytes) -> bool:
    """Whether two bytes are a value representation. As the length of a first element they would be 16,000 and more."""
    return kind.isalpha() and kind.isupper()


def _inflated(data: bytes, limits: Limits) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflater.decompress(data, limits.max_image_bytes + 1)
    if len(inflated) > limits.max_image_bytes:
        raise ImageTooLarge(f"inflated, the image has more bytes than max_image_bytes, {limits.max_image_bytes}")
    if not inflater.eof:
        raise ImageUndecodable("the image is damaged: it is truncated")
    return inflated


class _Walk:
    """Goes from element to element."""

    def __init__(self, data: bytes, at: int, *, implicit: bool, little: bool) -> None:
        self.at = at
        self._data, self._implicit, self._order = data, implicit, "little" if little else "big"
        self._seen = 0

    def group(self) -> int:
        """The group of the next element; −1 at the end."""
        return self._number(self.at, 2) if self.at + 8 <= len(self._data) else -1

    def element(self, within: int = -1) -> tuple[int, int, int, bool]:
        """First byte of the value, tag, end, and whether the end was not stated, of the next element. It is passed
        over, but not if its end is not stated and it is ``within``."""
        tag, value, length, implicit = self._header(self._implicit)
        undefined = length == _UNDEFINED
        self.at = value
        if not undefined:
            self._skip(length)
        elif tag != within:
            self._skip_sequence(implicit)
        return value, tag, self.at, undefined

    def fragments(self) -> tuple[bytes, ...]:
        """The fragments of compressed pixels, without the table of offsets that is before them."""
        parts: list[bytes] = []
        while True:
            tag, value, length, _ = self._header(implicit=True)
            self.at = value
            if tag == _SEQUENCE_END:
                return tuple(parts[1:])
            if tag != _ITEM or length == _UNDEFINED:
                raise ImageUndecodable("the image is damaged: its compressed pixels have no parts")
            self._skip(length)
            parts.append(self._data[value : self.at])

    def _number(self, at: int, size: int) -> int:
        return int.from_bytes(self._data[at : at + size], "little" if self._order == "little" else "big")

    def _skip(self, length: int) -> None:
        self.at += length
        if self.at > len(self._data):
            raise ImageUndecodable("the image is damaged: it is truncated")

    def _header(self, implicit: bool) -> tuple[int, int, int, bool]:
        """Tag, first byte of the value, its length, and whether what is in it does not say its type."""
        self._seen += 1
        if self._seen > _MAX_ELEMENTS:
            raise ImageUndecodable(f"the image is damaged: it has more than {_MAX_ELEMENTS} elements")
        at = self.at
        if at + 8 > len(self._data):
            raise ImageUndecodable("the image is damaged: it is truncated")
        tag = self._number(at, 2) << 16 | self._number(at + 2, 2)
        if implicit or tag >> 16 == 0xFFFE:
            return tag, at + 8, self._number(at + 4, 4), implicit
        kind = self._data[at + 4 : at + 6]
        if kind in _LONG:
            return tag, at + 12, self._number(at + 8, 4), kind == b"UN"  # PS3.5, section 6.2.2
        # Also of types that do not exist, which some programs write.
        return tag, at + 8, self._number(at + 6, 2), False

    def _skip_sequence(self, implicit: bool) -> None:
        """Go behind a sequence whose end is not stated, and whatever is nested in it."""
        open_ends = [(_SEQUENCE_END, implicit)]
        while open_ends:
            end, implicit = open_ends[-1]
            tag, value, length, inner = self._header(implicit)
            self.at = value
            if tag == end:
                open_ends.pop()
            elif (tag == _ITEM) != (end == _SEQUENCE_END):
                raise ImageUndecodable("the image is damaged: a sequence has something else than items")
            elif length == _UNDEFINED:
                open_ends.append((_ITEM_END, implicit) if tag == _ITEM else (_SEQUENCE_END, inner))
            else:
                self._skip(length)
