"""Encoded image bytes → RGB pixels, safely and always in the same way.

The only place that decodes untrusted image bytes: training, the server and the command line all call ``decode``. It
defines which formats and pixel types are read, applies EXIF rotation, composes transparency on white, scales 16-bit
grey by 1/257, and takes the first frame of an animation.
"""

from __future__ import annotations

import io
import os
import re
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from embedserve.errors import ImageError, ImageFormatError, ImageTooLarge, ImageUndecodable
from embedserve.regular_file import regular
from embedserve.types import Limits

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image
    from PIL.Image import Transpose

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
"""Formats that are read. Pillow's other parsers, where its vulnerabilities have been, stay unreachable."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Suffixes of the files that a folder scan takes for images."""

THUMBNAIL_PX = 256
"""Longer side of a thumbnail."""

_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
_EXIF_ORIENTATION = 0x0112
_ORIENTATION_BLOCKS = (b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/")
"""Beginnings of the EXIF and XMP blocks of a JPEG, which may hold an orientation."""
_MAX_SCANS = 100
"""Scans of a JPEG; ordinary ones have up to about 12. Each visits all pixels, however few bytes it has: without a
limit, 270 KB of scans keep a core busy for a minute, and 16 MiB for hours. libtiff has the same limit."""
_JPEG_MARKER = re.compile(rb"\xff([\xc0-\xcf\xda-\xfe])", re.DOTALL)
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")


def decode(data: bytes, limits: Limits | None = None, *, min_side_px: int = 0) -> NDArray[np.uint8]:
    """The pixels of an encoded image.

    Args:
        data: the bytes of a JPEG, PNG, WebP, BMP, GIF or TIFF file.
        limits: ``max_image_bytes``, ``max_image_pixels`` and ``max_image_side_px`` are enforced, the last two from
            the header before decoding.
        min_side_px: if positive, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, as long as both sides keep at
            least this many pixels. A camera photo then takes a fifth of the time.

    Returns:
        uint8 [H, W, 3], red green blue, upright.

    Raises:
        ImageUndecodable: the bytes are empty, truncated or damaged.
        ImageFormatError: another format, or a pixel type without a defined range.
        ImageTooLarge: more bytes or pixels than the limits allow.
    """
    import numpy as np
    from PIL import Image

    limits = limits or Limits()
    if not data:
        raise ImageUndecodable("the image has zero bytes")
    if len(data) > limits.max_image_bytes:
        raise ImageTooLarge(f"the image has {len(data)} bytes; max_image_bytes is {limits.max_image_bytes}")
    # Pillow's own guard is one number for the whole process. It is raised if our limit is higher, and never lowered, as
    # that would affect other code of this process, and other limits. The exact check is ours below.
    if Image.MAX_IMAGE_PIXELS is not None and limits.max_image_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = limits.max_image_pixels
    try:
        _check_scans(data)
        if (pixels := _decode_jpeg(data, limits, min_side_px)) is not None:
            return pixels
        if (canvas := _webp_canvas(data)) is not None:
            _check_size(*canvas, limits)
        with _open(data) as image:
            _check_size(*image.size, limits)
            if min_side_px > 0 and image.format in ("JPEG", "MPO"):
                image.draft(None, (min_side_px, min_side_px))
            image.load()
            transpose = _to_upright(image)
            return np.array(_to_rgb(image if transpose is None else image.transpose(transpose)))
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
    from PIL import Image

    with _open(data) as image:
        return Image.MIME.get(image.format or "", "application/octet-stream")


def _check_size(width: int, height: int, limits: Limits) -> None:
    if max(width, height) > limits.max_image_side_px:
        raise ImageTooLarge(f"the image is {width} × {height} pixels; max_image_side_px is {limits.max_image_side_px}")
    if width * height > limits.max_image_pixels:
        raise ImageTooLarge(
            f"the image is {width} × {height} = {width * height} pixels; max_image_pixels is {limits.max_image_pixels}"
        )


def _check_scans(data: bytes) -> None:
    """Refuse a JPEG with more scans than encoders write, without decoding it."""
    start_of_scan = b"\xff\xda"
    if not data.startswith(b"\xff\xd8\xff") or data.count(start_of_scan) <= _MAX_SCANS:
        return
    # Not all of these bytes are markers: an EXIF block may hold a JPEG, and a colour profile any bytes.
    scans, position = 0, 2
    while (found := _JPEG_MARKER.search(data, position)) is not None and (marker := found[1]) != b"\xd9":
        scans += marker == b"\xda"
        if scans > _MAX_SCANS:
            raise ImageUndecodable(f"the JPEG has more than {_MAX_SCANS} scans")
        length = int.from_bytes(data[found.end() : found.end() + 2], "big")
        position = found.end() + max(length, 2)


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


def _open(data: bytes) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        if data.startswith(_SIGNATURES):
            raise ImageUndecodable("the image is damaged: its header cannot be read") from None
        raise ImageFormatError(
            f"the bytes are not a readable image (they begin with {data[:8]!r})",
            hint=f"images are {', '.join(FORMATS[:-1])} or {FORMATS[-1]}",
        ) from None


def _to_upright(image: Image.Image) -> Transpose | None:
    """The transposition that makes the image upright, by its EXIF or XMP block; None if it is upright."""
    from PIL.Image import Transpose

    transpositions = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    try:
        return transpositions.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # a damaged EXIF block does not make the pixels unusable
        return None


@cache
def _simplejpeg() -> ModuleType | None:
    try:
        import simplejpeg
    except ImportError:  # there are no wheels for some machines
        return None
    found: ModuleType = simplejpeg
    return found


def _decode_jpeg(data: bytes, limits: Limits, min_side_px: int) -> NDArray[np.uint8] | None:
    """The pixels of an ordinary, intact JPEG, bit for bit as Pillow decodes it, in half the time or less.

    None for anything else, which is left to Pillow: other formats, four colour components, files that libjpeg-turbo
    warns about, and without simplejpeg.
    """
    import numpy as np
    from PIL import Image

    simplejpeg = _simplejpeg()
    if simplejpeg is None or not data.startswith(b"\xff\xd8\xff"):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    _check_size(width, height, limits)
    if colours not in ("YCbCr", "Gray"):
        return None
    factor = 1
    while min_side_px > 0 and factor < 8 and min(width, height) // (2 * factor) >= min_side_px:
        factor *= 2
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            data, "RGB", min_height=-(-height // factor), min_width=-(-width // factor)
        )
    except ValueError:
        return None
    if not any(block in data for block in _ORIENTATION_BLOCKS):
        return pixels
    with _open(data) as image:
        transpose = _to_upright(image)
    return pixels if transpose is None else np.array(Image.fromarray(pixels).transpose(transpose))


def _to_rgb(image: Image.Image) -> Image.Image:
    import numpy as np
    from PIL import Image

    if image.mode in _SIXTEEN_BIT_MODES:
        grey = (np.asarray(image, dtype=np.uint32) + 128) // 257
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageFormatError(
            "the image has 32-bit pixels, whose range is not defined",
            hint="save it with 8 or 16 bits per channel",
        )
    if image.has_transparency_data:
        foreground = image.convert("RGBA")
        white = Image.new("RGBA", foreground.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, foreground).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # converting to the same mode would copy


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text or type(error).__name__
