"""The boxes of a HEIF file (AVIF, HEIC): which items it has, what they are made of, and where their bytes are.

Layout: ISO/IEC 14496-12 (boxes, iloc, iinf, pitm, iref) and 23008-12 (iprp). Reads no more than the limits on a file
need, and is strict: what two readers could understand in two ways is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from embedserve.errors import ImageUndecodable

_MAX_ITEMS = 10_000
"""A grid of 256 × 256 tiles has more; libheif stops at 1,000."""
_MAX_ENTRIES = 100_000
"""Boxes in a box, parts and references of all items. Each takes a microsecond or two and a few bytes, or none at all:
without a limit, a file of a few megabytes keeps a core busy for minutes."""


@dataclass(slots=True)
class Item:
    """One item of a file: an image, a tile of one, or a derivation of others."""

    kind: str = ""
    """Its four letters, as in "hvc1", "av01", "grid"."""
    extents: list[tuple[int, int]] = field(default_factory=list)
    """First byte and number of bytes of each part, in ``Items.source``."""
    in_idat: bool = False
    properties: list[tuple[str, bytes]] = field(default_factory=list)
    """Four letters and content of each property."""
    parts: list[int] = field(default_factory=list)
    """Numbers of the items that it is derived from, in order, as often as they are named."""
    auxiliaries: list[int] = field(default_factory=list)
    """Numbers of items, such as its transparency, that belong to it."""


@dataclass(slots=True)
class Items:
    """The items of a file."""

    data: bytes
    idat: bytes
    primary: int
    by_number: dict[int, Item]
    taken: int = 0
    """Bytes that have been taken as the content of items."""

    def content(self, item: Item) -> bytes:
        """The bytes of an item. Those of all together are not many more than the file: items do not share theirs."""
        source = self.idat if item.in_idat else self.data
        self.taken += sum(size for _, size in item.extents)
        if self.taken > 2 * len(self.data):
            raise _damaged("its items have more bytes than the file")
        return b"".join(source[first : first + size] for first, size in item.extents)


def read_items(data: bytes) -> Items | None:
    """The items of a file of boxes; None if it has none, as a sequence without a still image.

    Raises:
        ImageUndecodable: the boxes are damaged.
    """
    metas = []
    try:
        for kind, content in _boxes(data):
            if kind == "meta":
                metas.append(content)
    except ImageUndecodable:
        if not metas:  # behind the image, some phones write what is no box
            raise
    if not metas:
        return None
    if len(metas) > 1:
        raise _damaged("two boxes of items")
    boxes = list(_boxes(metas[0][4:]))
    named = {}
    for kind, content in boxes:
        if kind in named:
            raise _damaged(f"two boxes {kind!r}")
        named[kind] = content
    items: dict[int, Item] = {}
    if "pitm" not in named or "iinf" not in named or "iloc" not in named:
        return None
    _read_iinf(named["iinf"], items)
    idat = named.get("idat", b"")
    _read_iloc(named["iloc"], items, len(data), len(idat))
    _read_iprp(named.get("iprp", b""), items)
    _read_iref(named.get("iref", b""), items)
    reader = _Reader(named["pitm"])
    version = reader.number(4) >> 24
    primary = reader.number(4 if version else 2)
    if primary not in items:
        raise _damaged("its image is not among its items")
    return Items(data=data, idat=idat, primary=primary, by_number=items)


def _damaged(what: str) -> ImageUndecodable:
    return ImageUndecodable(f"the image is damaged: {what}")


class _Reader:
    """Big-endian numbers, one after the other."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def take(self, size: int) -> bytes:
        part = self.data[self.at : self.at + size]
        if len(part) < size:
            raise _damaged("a box is too short")
        self.at += size
        return part

    @property
    def rest(self) -> int:
        return len(self.data) - self.at


def _boxes(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Four letters and content of each box."""
    at = count = 0
    while at + 8 <= len(data):
        if (count := count + 1) > _MAX_ENTRIES:
            raise _damaged("it has too many boxes")
        size, kind, header = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8], 8
        if size == 1:
            size, header = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        elif size == 0:
            size = len(data) - at
        if size < header:
            raise _damaged("a box has an impossible size")
        if at + size > len(data) and kind != b"mdat":
            raise _damaged("a box ends after the file")
        # What is in mdat is found by iloc. It may be large, and is not copied.
        yield kind.decode("latin-1"), b"" if kind == b"mdat" else data[at + header : at + size]
        at += size


def _read_iinf(content: bytes, items: dict[int, Item]) -> None:
    reader = _Reader(content)
    version = reader.number(4) >> 24
    count = reader.number(4 if version else 2)
    entries = list(_boxes(content[reader.at :]))
    if count > _MAX_ITEMS or len(entries) != count:
        raise _damaged(f"it has {len(entries)} items and says {count}")
    for kind, entry in entries:
        if kind != "infe":
            raise _damaged("an item has no description")
        reader = _Reader(entry)
        version = reader.number(4) >> 24
        if version < 2:
            continue
        number = reader.number(4 if version > 2 else 2)
        reader.take(2)
        if number in items:
            raise _damaged("two items have the same number")
        items[number] = Item(kind=reader.take(4).decode("latin-1"))


def _read_iloc(content: bytes, items: dict[int, Item], data_bytes: int, idat_bytes: int) -> None:
    reader = _Reader(content)
    version = reader.number(4) >> 24
    sizes = reader.number(2)
    offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_size = sizes & 15 if version else 0
    count, seen, places = reader.number(4 if version == 2 else 2), set(), 0
    for _ in range(count):
        number = reader.number(4 if version == 2 else 2)
        method = reader.number(2) & 15 if version else 0
        reader.take(2)
        base = reader.number(base_size)
        extents = []
        in_bytes = idat_bytes if method == 1 else data_bytes
        parts = reader.number(2)
        places += 1 + parts
        if places > _MAX_ENTRIES:
            raise _damaged("its items have too many parts")
        for _ in range(parts):
            reader.take(index_size)
            first, size = base + reader.number(offset_size), reader.number(length_size)
            size = size or max(in_bytes - first, 0)
            if first + size > in_bytes:
                raise _damaged("it is truncated: an item ends after the file")
            extents.append((first, size))
        if method > 1:
            raise _damaged("an item is within another")
        if number in seen:
            raise _damaged("an item has two places")
        seen.add(number)
        if number in items:
            items[number].extents, items[number].in_idat = extents, method == 1


def _read_iprp(content: bytes, items: dict[int, Item]) -> None:
    properties: list[tuple[str, bytes]] = []
    for kind, box in _boxes(content):
        if kind == "ipco":
            if properties:
                raise _damaged("two lists of properties")
            properties = list(_boxes(box))
    for kind, box in _boxes(content):
        if kind != "ipma":
            continue
        reader = _Reader(box)
        version_and_flags = reader.number(4)
        wide_number, wide_index = version_and_flags >> 24 > 0, version_and_flags & 1
        if (count := reader.number(4)) > _MAX_ITEMS:
            raise _damaged(f"it has properties of {count} items")
        for _ in range(count):
            number = reader.number(4 if wide_number else 2)
            for _ in range(reader.number(1)):
                index = reader.number(2) & 0x7FFF if wide_index else reader.number(1) & 0x7F
                if not index:
                    continue
                if index > len(properties):
                    raise _damaged("an item has a property that is not there")
                if number in items:
                    items[number].properties.append(properties[index - 1])


def _read_iref(content: bytes, items: dict[int, Item]) -> None:
    if not content:
        return
    size = 4 if content[0] else 2
    references = 0
    for kind, box in _boxes(content[4:]):
        reader = _Reader(box)
        source = reader.number(size)
        count = reader.number(2)
        references += count
        if references > _MAX_ENTRIES:
            raise _damaged("its items refer to too many others")
        targets = [reader.number(size) for _ in range(count)]
        if kind == "dimg" and source in items:
            items[source].parts.extend(targets)
        elif kind == "auxl":
            for target in targets:
                if target in items:
                    items[target].auxiliaries.append(source)
