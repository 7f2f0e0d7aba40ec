"""Encoded image bytes → RGB pixels, safely and always in the same way.

The only place that decodes untrusted image bytes: training, the server and the command line all call ``decode``. Each
format has a file of its own beside this one; here they come together: which of them it is, the way up, colours as sRGB,
transparency on white, and the first frame of an animation. What becomes of each is said in docs/images.md.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from embedserve.errors import ImageError, ImageFormatError, ImageTooLarge, ImageUndecodable
from embedserve.images import gif, png
from embedserve.images.boxed_image import open_boxed
from embedserve.images.colour import to_srgb
from embedserve.images.dicom import decode_dicom, is_dicom
from embedserve.images.formats import HEAD_BYTES, kind_of
from embedserve.images.jpeg import check_scans, decode_jpeg, profile_of
from embedserve.images.jpeg_header import read_header
from embedserve.images.opening import open_image, to_upright
from embedserve.images.pixel_rule import PixelRule
from embedserve.images.size_limits import check_size
from embedserve.images.tiff import decode_tiff, is_tiff
from embedserve.regular_file import regular
from embedserve.types import Limits

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

THUMBNAIL_PX = 256
"""Longer side of a thumbnail."""

_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")


def decode(
    data: bytes,
    limits: Limits | None = None,
    *,
    rule: PixelRule | None = None,
    min_side_px: int = 0,
    notes: list[str] | None = None,
) -> NDArray[np.uint8]:
    """The pixels of an encoded image.

    Args:
        data: the bytes of a JPEG, PNG, WebP, BMP, GIF, TIFF or AVIF file, or of HEIC or DICOM with their packages.
        limits: ``max_image_bytes``, ``max_image_pixels`` and ``max_image_side_px`` are enforced, the last two from
            the header before decoding.
        rule: how stored samples become RGB of 8 bits; that of new encoders by default.
        min_side_px: if positive, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, as long as both sides keep at
            least this many pixels. A camera photo then takes a fifth of the time.
        notes: receives a sentence for each thing that was decided and that a person may want to know, such as which
            of several bands were taken.

    Returns:
        uint8 [H, W, 3], red green blue, upright.

    Raises:
        ImageUndecodable: the bytes are empty, truncated or damaged.
        ImageFormatError: another format, or a pixel type without a defined range.
        ImageTooLarge: more bytes or pixels than the limits allow.
    """
    from PIL import Image

    limits, rule = limits or Limits(), rule or PixelRule()
    if not data:
        raise ImageUndecodable("the image has zero bytes")
    if len(data) > limits.max_image_bytes:
        raise ImageTooLarge(f"the image has {len(data)} bytes; max_image_bytes is {limits.max_image_bytes}")
    # Pillow's own guard is one number for the whole process. It is raised if our limit is higher, and never lowered, as
    # that would affect other code of this process, and other limits. The exact check is ours below.
    if Image.MAX_IMAGE_PIXELS is not None and limits.max_image_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = limits.max_image_pixels
    try:
        pixels = _decoded(data, limits, rule, min_side_px, notes)
        return _chosen(pixels, data, rule) if rule.bands else pixels
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLarge(
            f"the image has more pixels than allowed; max_image_pixels is {limits.max_image_pixels}"
        ) from error
    except MemoryError:
        raise
    except Exception as error:
        # Pillow's parsers raise OSError, SyntaxError, ValueError, struct.error, IndexError … on hostile bytes.
        raise ImageUndecodable(f"the image is damaged: {_reason(error)}") from error


def _decoded(
    data: bytes, limits: Limits, rule: PixelRule, min_side_px: int, notes: list[str] | None
) -> NDArray[np.uint8]:
    """``decode`` after its checks; raises whatever a parser raises."""
    import numpy as np

    header = None
    if data.startswith(b"\xff\xd8\xff"):
        header = read_header(data)
        if header is not None:
            header.check()
        if header is None or not header.one_scan:
            check_scans(data)
        if (pixels := decode_jpeg(data, header, limits, rule, min_side_px, notes)) is not None:
            return pixels
    if data[128:132] == b"DICM" and is_dicom(data):  # before TIFF: some files begin as both
        return decode_dicom(data, limits, rule, notes)
    if data[:2] in (b"II", b"MM") and is_tiff(data):
        return np.array(_to_rgb(decode_tiff(data, limits, rule, notes), rule, notes))
    if data[:4] == b"RIFF" and (canvas := _webp_canvas(data)) is not None:
        check_size(*canvas, limits)
    with open_boxed(data, limits, rule) if data[4:8] == b"ftyp" else open_image(data) as image:
        check_size(*image.size, limits)
        if header is not None:
            image.info["icc_profile"] = profile_of(header, image)
        if min_side_px > 0 and header is not None and header.ordinary and image.format in ("JPEG", "MPO"):
            image.draft(None, (min_side_px, min_side_px))
        loaded = _loaded(image, data, rule)
        transpose = to_upright(image)
        upright = loaded if transpose is None else loaded.transpose(transpose)
    del image, loaded  # 4 bytes per pixel each, if it was turned
    return np.array(_to_rgb(upright, rule, notes))


def _chosen(pixels: NDArray[np.uint8], data: bytes, rule: PixelRule) -> NDArray[np.uint8]:
    """The bands that the rule names, of a picture that has colours or is grey; a TIFF has chosen before."""
    import numpy as np

    if data[:2] in (b"II", b"MM") and is_tiff(data):
        return pixels
    there = 3
    if data[128:132] != b"DICM":
        with open_image(data) as image:
            there = 1 if image.mode in ("1", "L", "LA", "I", *_SIXTEEN_BIT_MODES) else 3
    if max(rule.bands) > there:
        raise ImageFormatError(
            f"the image has {'1 band' if there == 1 else '3 bands'}, and the rule takes band {max(rule.bands)}",
            hint="leave such images out, or train with --set bands=… of bands that all images have",
        )
    numbers = rule.bands if len(rule.bands) == 3 else rule.bands * 3
    return np.ascontiguousarray(pixels[..., [number - 1 for number in numbers]])


def read_file(path: Path, limits: Limits | None = None) -> bytes:
    """The bytes of an image file. Its size is checked first: a folder may hold a film, or a pipe without an end.

    Raises:
        ImageTooLarge: it has more than ``max_image_bytes``.
        OSError: it cannot be read, or is not a regular file.
    """
    limit = (limits or Limits()).max_image_bytes
    with open(path, "rb", opener=regular) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ImageTooLarge(f"the image has {size} bytes; max_image_bytes is {limit}")
        return file.read()


def thumbnail(pixels: NDArray[np.uint8]) -> bytes:
    """A JPEG of the pixels (uint8 [H, W, 3]) whose longer side is at most THUMBNAIL_PX."""
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=85)
    return out.getvalue()


def media_type(data: bytes) -> str:
    """Media type of an encoded image from its header, as in "image/png"."""
    kind = kind_of(data[:HEAD_BYTES])
    return kind.media_type if kind is not None else "application/octet-stream"


def _webp_canvas(data: bytes) -> tuple[int, int] | None:
    """Width and height from the header of a WebP file; None for anything else.

    Of the formats that are read, WebP is the only one whose decoder in Pillow allocates its canvas, up to 1 GiB, on
    opening the file, before its size is known. Layout: RFC 9649, sections 2.5 to 2.7.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    if data[12:16] == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if data[12:16] == b"VP8L":
        sizes = int.from_bytes(data[21:25], "little")
        return 1 + (sizes & 0x3FFF), 1 + (sizes >> 14 & 0x3FFF)
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF


def _loaded(image: Image.Image, data: bytes, rule: PixelRule) -> Image.Image:
    """The decoded picture, in a mode of 8 bits."""
    if image.format == "PNG":
        named = "chromaticity" in image.info or data.find(b"cICP", 0, data.find(b"IDAT")) > 0
        if named and rule.colour == "srgb" and data[25] & 2 and (profile := png.profile_of(data)) is not None:
            image.info["icc_profile"] = profile
        if data[24] != 8:
            image = png.load(image, data, rule)
    elif image.format == "GIF":
        return gif.load(image)
    image.load()
    return image


def _to_rgb(image: Image.Image, rule: PixelRule, notes: list[str] | None) -> Image.Image:
    import numpy as np
    from PIL import Image

    if image.mode in _SIXTEEN_BIT_MODES:
        grey = (np.asarray(image, dtype=np.uint32) + 128) // 257
        sixteen, image = image, Image.fromarray(grey.astype(np.uint8))
        image.info = sixteen.info
    if image.mode in ("I", "F"):
        raise ImageFormatError(
            "the image has 32-bit pixels, whose range is not defined",
            hint="save it with 8 or 16 bits per channel",
        )
    profile = image.info.get("icc_profile")
    if rule.colour == "srgb" and (profile is not None or image.mode == "LAB"):
        image = to_srgb(image, profile, notes)
    if image.has_transparency_data:
        # No copy that can be spared, and none kept while the next is made: each is 4 bytes per pixel.
        foreground = image if image.mode == "RGBA" else image.convert("RGBA")
        blended = Image.alpha_composite(Image.new("RGBA", foreground.size, (255, 255, 255, 255)), foreground)
        return blended.convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # converting to the same mode would copy


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text or type(error).__name__
