"""AVIF and HEIC: what is checked before a decoder meets the file, and HEIC through pillow-heif, an optional package.

The primary image is read; thumbnails, depth maps and further images of the file are not. Rotation and mirroring are
properties of the file, which the decoders apply; its EXIF orientation says the same once more and is not.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from embedserve.errors import ImageFormatError, ImageUndecodable
from embedserve.images.boxes import Item, Items, read_items
from embedserve.images.coded_size import Size, av1_sizes, hevc_sizes
from embedserve.images.formats import AVIF, HEAD_BYTES, HEIC, kind_of
from embedserve.images.kind import SAVE
from embedserve.images.nclx import profile_of
from embedserve.images.pixel_rule import PixelRule
from embedserve.images.size_limits import check_size
from embedserve.types import Limits

if TYPE_CHECKING:
    from PIL import Image

_CODED_FACTOR = 6
"""All pictures that are decoded for one image, its tiles and its transparency, may have this many times
``max_image_pixels``: tiles end beyond the image, and transparency is as large as the image."""
_MAX_VISITS = 20_000
"""Items that are visited for one image. A grid has up to 65,536 tiles in theory, of 64 × 64 pixels and more."""
_DERIVED = ("grid", "iovl", "iden")


@dataclass(frozen=True, slots=True)
class Checked:
    """A file whose sizes are all within the limits, for its decoder."""

    data: bytes
    """Its bytes. Of a sequence, they say that its still image is meant."""
    profile: bytes | None = None
    """An ICC profile, if the file names its colours by numbers, they are not those of sRGB, and the rule minds."""
    aperture: bytes | None = None
    """The content of the box that says which part of the picture counts."""


def checked(data: bytes, limits: Limits, rule: PixelRule) -> Checked:
    """The file for its decoder, if all sizes in it are within the limits: those of its boxes and of its pictures.

    Raises:
        ImageUndecodable: it is damaged.
        ImageFormatError: its image is coded in a way that is not read.
        ImageTooLarge: a size is beyond the limits.
    """
    kind = kind_of(data[:HEAD_BYTES])
    if kind not in (AVIF, HEIC) or not kind.readable:
        return Checked(data)  # which opening refuses by its name
    items = read_items(data)
    if items is None:
        if b"moov" in data:
            raise ImageFormatError(
                f"the image is {kind.name} with a sequence but no still image, which is not read", hint=SAVE
            )
        raise ImageUndecodable(f"the image is damaged: it is {kind.name} without an image")
    sizes = _Sizes(items, limits)
    sizes.check()
    # What is in a file counts, and not its brand. By that, a decoder also chooses whether it reads a sequence or the
    # still image, which is what has been checked.
    brand = b"avif" if sizes.codecs == {"av01"} else b"heic" if "av01" not in sizes.codecs else b""
    if not brand:
        raise ImageFormatError("the image is HEIF with AV1 and HEVC in one image, which is not read", hint=SAVE)
    if data[8:12] != brand and (brand == b"avif" or kind is AVIF):
        data = data[:8] + brand + data[12:]
    properties = items.by_number[items.primary].properties
    return Checked(
        data,
        profile=_profile(properties) if rule.colour == "srgb" else None,
        aperture=next((content for name, content in properties if name == "clap"), None),
    )


def _profile(properties: list[tuple[str, bytes]]) -> bytes | None:
    colours = [content for name, content in properties if name == "colr"]
    if any(content[:4] in (b"prof", b"rICC") for content in colours):
        return None  # which readers give
    return next((profile for content in colours if (profile := profile_of(content)) is not None), None)


def open_heic(data: bytes) -> Image.Image:
    """The primary image of a HEIC file, of which no pixel is decoded yet. Its orientation has been applied.

    pillow-heif is not registered with Pillow, where other code of this process would meet it.

    Raises:
        ImageUndecodable: its header is damaged.
    """
    from pillow_heif import HeifImageFile

    try:
        opened: Image.Image = HeifImageFile(io.BytesIO(data))  # type: ignore[no-untyped-call]
    except (SyntaxError, OSError, ValueError, RuntimeError) as error:
        raise ImageUndecodable("the image is damaged: its header of HEIC cannot be read") from error
    for block in ("exif", "xmp"):  # which may hold an orientation, and it would be applied once more
        opened.info.pop(block, None)
    return opened


class _Sizes:
    """Adds up what decoders allocate for the primary image, item by item."""

    def __init__(self, items: Items, limits: Limits) -> None:
        self._items, self._limits = items, limits
        self.codecs: set[str] = set()
        self._pixels = self._visits = 0
        self._known: dict[int, list[Size]] = {}

    def check(self) -> None:
        self._visit(self._items.primary, depth=0)

    def _visit(self, number: int, depth: int) -> None:
        self._visits += 1
        if depth > 4 or self._visits > _MAX_VISITS:
            raise ImageUndecodable("the image is damaged: it has too many parts")
        item = self._items.by_number.get(number)
        if item is None:
            raise ImageUndecodable("the image is damaged: a part of it is not there")
        if number not in self._known:
            self._known[number] = self._sizes(item)
        for width, height in self._known[number]:
            check_size(width, height, self._limits)
        self._pixels += max((width * height for width, height in self._known[number]), default=0)
        if self._pixels > _CODED_FACTOR * self._limits.max_image_pixels:
            raise ImageUndecodable(f"the image is damaged: its parts are more than {_CODED_FACTOR} times its limit")
        if item.kind in _DERIVED:
            for part in item.parts:
                self._visit(part, depth + 1)
        for auxiliary in item.auxiliaries:
            self._visit(auxiliary, depth + 1)

    def _sizes(self, item: Item) -> list[Size]:
        sizes = [
            (int.from_bytes(content[4:8], "big"), int.from_bytes(content[8:12], "big"))
            for kind, content in item.properties
            if kind == "ispe"
        ]
        if item.kind not in _DERIVED:
            self.codecs.add("av01" if item.kind == "av01" else "hvc1")
        if item.kind == "av01":
            return sizes + av1_sizes(self._items.content(item))
        if item.kind in ("hvc1", "hev1"):
            return sizes + [
                size
                for kind, configuration in item.properties
                if kind == "hvcC"
                for size in hevc_sizes(configuration, self._items.content(item))
            ]
        if item.kind in _DERIVED:
            return sizes + _canvas(item.kind, self._items.content(item), len(item.parts))
        raise ImageFormatError(f"the image is HEIF with {item.kind!r} in it, which is not read", hint=SAVE)


def _canvas(kind: str, content: bytes, parts: int) -> list[Size]:
    """The size of a derived image, in its own description: ISO/IEC 23008-12, section 6.6.2."""
    if kind == "iden":
        return []
    at = 4 if kind == "grid" else 10
    step = 4 if content[1:2] and content[1] & 1 else 2
    if len(content) < at + 2 * step:
        raise ImageUndecodable("the image is damaged: the description of its parts is too short")
    if kind == "grid" and (content[2] + 1) * (content[3] + 1) != parts:
        raise ImageUndecodable(f"the image is damaged: it has {parts} tiles")
    width = int.from_bytes(content[at : at + step], "big")
    return [(width, int.from_bytes(content[at + step : at + 2 * step], "big"))]
