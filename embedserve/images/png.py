"""PNG of 16 bits: all of each sample, where Pillow drops the lower byte; and transparency that it does not see."""

from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING, Any

from embedserve.images import nclx, samples
from embedserve.images.colour import MAX_PROFILE_BYTES
from embedserve.images.matrix_profile import matrix_profile
from embedserve.images.pixel_rule import PixelRule

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image
    from PIL.ImageFile import ImageFile

_FULL = (0, 65_535)
_BEFORE_PIXELS = 64
"""Chunks that are looked at before the pixels."""
_STRIP_ROWS = 256
SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MOST_CHUNKS = 4096
"""Of those before the pixels, more are not looked at in search of the one that cannot be read."""


def open_png(data: bytes) -> ImageFile:
    """The image, of which no pixel is decoded yet.

    Pillow refuses intact files for a chunk beside the picture, such as a profile of more than 1 MiB. Such a file is
    opened without these chunks, and its profile is read here. One that cannot be read is ``b""`` in ``info``.
    """
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data), formats=("PNG",))
    except Exception:
        if (parts := _without_extras(data)) is None:
            raise
        bare, profile = parts
        image = Image.open(io.BytesIO(bare), formats=("PNG",))
        if profile is not None:
            image.info["icc_profile"] = _inflated(profile)
    if image.info.get("icc_profile", b"") is None:
        image.info["icc_profile"] = b""
    return image


def _without_extras(data: bytes) -> tuple[bytes, bytes | None] | None:
    """The file without the chunks that do not make the picture, and what is in its iCCP; None if it is damaged."""
    kept, profile, at = [data[:8]], None, 8
    for _ in range(_MOST_CHUNKS):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind == b"IDAT":
            return b"".join([*kept, data[at:]]), profile
        end = at + 12 + length
        if end > len(data):
            return None
        if zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            return None
        if kind == b"iCCP" and profile is None:
            profile = data[at + 8 : end - 4]
        if kind in (b"tRNS", b"eXIf") or not kind[0] & 0x20:  # a small first letter: not needed for the picture
            kept.append(data[at:end])
        at = end
    return None


def _inflated(chunk: bytes) -> bytes:
    """The profile in an iCCP chunk; empty if it cannot be read."""
    _, end_of_name, rest = chunk.partition(b"\0")
    if not end_of_name or rest[:1] != b"\0":
        return b""
    try:
        return zlib.decompressobj().decompress(rest[1:], MAX_PROFILE_BYTES + 1)
    except zlib.error:
        return b""


def load(image: Image.Image, data: bytes, rule: PixelRule) -> Image.Image:
    """The pixels of an opened PNG, of 8 bits, decoded; its ``info`` has what was in its chunks.

    Args:
        image: opened, not decoded yet.
        data: the file.
        rule: the range of values that samples of 16 bits have.
    """
    depth, colours = data[24], data[25]
    if depth < 8 and colours == 0 and isinstance(grey := image.info.get("transparency"), int):
        # Pillow scales the samples to 8 bits, and not the one that is transparent.
        image.load()
        image.info["transparency"] = grey * 255 // ((1 << depth) - 1)
        return image.convert("L") if image.mode == "1" else image
    if depth != 16 or colours not in (0, 2, 4, 6):
        return image
    if rule.high_bytes and colours != 0 and "transparency" not in image.info:
        return image
    return _sixteen(image, data, colours, rule)


def profile_of(data: bytes) -> bytes | None:
    """The colours that a PNG names by numbers, as a profile; None without such, where it means sRGB, or has a profile.

    The first of cICP, iCCP, sRGB, and gAMA with cHRM counts (PNG, third edition, section 4.3).

    Raises:
        ImageFormatError: it is HDR, which has no meaning in 8 bits without a choice of exposure.
    """
    chunks: dict[bytes, bytes] = {}
    at = 8
    for _ in range(_BEFORE_PIXELS):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind in (b"IDAT", b""):
            break
        if kind in (b"cICP", b"gAMA", b"cHRM", b"sRGB", b"iCCP"):
            chunks.setdefault(kind, data[at + 8 : at + 8 + min(length, 64)])
        at += 12 + length
    if len(named := chunks.get(b"cICP", b"")) == 4:
        return nclx.profile_of(b"nclx" + struct.pack(">HHHB", named[0], named[1], named[2], named[3]))
    gamma = int.from_bytes(chunks.get(b"gAMA", b""), "big") / 100_000
    if b"iCCP" in chunks or b"sRGB" in chunks or not 0.1 < gamma < 10 or len(chunks.get(b"cHRM", b"")) != 32:
        return None
    x_and_y = [value / 100_000 for value in struct.unpack(">8I", chunks[b"cHRM"])]
    white, *primaries = zip(x_and_y[::2], x_and_y[1::2], strict=True)
    # Most programs write 1 / 2.2 for the curve of sRGB.
    curve = None if abs(gamma - 1 / 2.2) < 0.01 else 1 / gamma
    try:
        return matrix_profile(tuple(primaries), white=white, gamma=curve)
    except ValueError:
        return None


def _sixteen(image: Image.Image, data: bytes, colours: int, rule: PixelRule) -> Image.Image:
    import numpy as np
    from PIL import Image

    value_range = samples.range_of(rule.value_range, _FULL, None) or _FULL
    # The same bytes unpacked twice: once for the higher byte of each sample, and once for the lower.
    raw = {0: ("I;16",), 2: ("RGB;16B", "RGB;16L"), 4: ("RGBA",), 6: ("RGBA;16B", "RGBA;16L")}[colours]
    image.load()
    if colours == 0:
        parts = [image]
    elif colours == 4:
        parts = [_unpacked(data, "RGBA", raw[0])]
    else:
        parts = [image, _unpacked(data, image.mode, raw[1])]
    bands = {0: 1, 2: 3, 4: 2, 6: 4}[colours]
    clear = image.info.get("transparency")
    opaque = colours in (0, 2) and clear is None
    out = np.empty((image.height, image.width, bands + (colours in (0, 2) and not opaque)), np.uint8)
    for top in range(0, image.height, _STRIP_ROWS):
        box = (0, top, image.width, min(top + _STRIP_ROWS, image.height))
        values_HWB = _values([np.asarray(part.crop(box)) for part in parts], colours)
        rows = slice(box[1], box[3])
        plain = bands if colours in (0, 2) else bands - 1
        if rule.high_bytes and colours != 0:
            out[rows, :, :plain] = values_HWB[..., :plain] >> 8
        else:
            out[rows, :, :plain] = samples.to_uint8(values_HWB[..., :plain], value_range)
        if plain < bands:  # transparency is a share, and has nothing to do with the range of the colours
            out[rows, :, plain] = samples.to_uint8(values_HWB[..., plain], _FULL)
        elif not opaque:
            out[rows, :, plain] = np.where((values_HWB == np.array(clear)).all(axis=-1), 0, 255)
    done = Image.fromarray(out[..., 0] if out.shape[2] == 1 else out)
    done.info = {name: value for name, value in image.info.items() if name != "transparency"}
    return done


def _values(parts: list[NDArray[Any]], colours: int) -> NDArray[Any]:
    """Samples of 16 bits, [H, W, B]."""
    import numpy as np

    if colours == 0:
        return parts[0].astype(np.uint16)[..., None]
    high, low = (parts[0][..., 0::2], parts[0][..., 1::2]) if colours == 4 else parts
    values = high.astype(np.uint16)
    values <<= np.uint16(8)
    values |= low
    return values


def _unpacked(data: bytes, mode: str, raw: str) -> Image.Image:
    image = open_png(data)
    image._mode = mode
    image.tile = [tile._replace(args=raw) for tile in image.tile]
    image.load()
    return image
