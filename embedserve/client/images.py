"""A caller's images as they are sent: the bytes of an encoded file.

Bytes and files are sent as they are. Pixels, of a PIL image or an array, become a PNG, which loses nothing.
"""

from __future__ import annotations

import inspect
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from embedserve.errors import DataError, ImageFormatError, ImageTooLarge, ImageUndecodable, InvalidInput
from embedserve.metadata import shown
from embedserve.regular_file import regular
from embedserve.types import Limits

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

_KINDS = (
    "an image is the bytes or the path of an encoded file (JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF), a file opened with"
    " open(path, 'rb'), a PIL image, or a uint8 array [H, W, 3] (RGB), [H, W, 4] (RGBA) or [H, W] (grey)"
)
_PNG_MODES = frozenset(("1", "L", "LA", "P", "RGB", "RGBA", "I;16"))
_WITH_ALPHA = {"La": "LA", "PA": "RGBA", "RGBa": "RGBA"}
_COMPRESS_LEVEL = 1
"""Of PNG. A photograph becomes 7 % larger than with the usual 6, in a third of the time (21 ms for 640 × 480)."""


def is_path(image: object) -> TypeGuard[str | os.PathLike[str]]:
    """Whether an image is given as the path of a file."""
    return isinstance(image, (str, os.PathLike))


def path_text(path: str | os.PathLike[Any]) -> str:
    """A path as text; empty if its ``__fspath__`` gives none."""
    try:
        return os.fsdecode(path)
    except Exception:  # of a class that is not ours
        return ""


def is_pil(image: object) -> bool:
    """Whether an image is one of Pillow's, which is not imported for that."""
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(image, pillow.Image)


def is_open_file(image: object) -> bool:
    """Whether an image is given as an open file."""
    return callable(getattr(image, "read", None)) and not isinstance(image, type)


def check_image(image: Any) -> None:
    """Refuse what is no image by its type, before anything is sent.

    Raises:
        InvalidInput: with its type and those that are taken.
    """
    if isinstance(image, (bytes, bytearray, memoryview)):
        return
    if isinstance(image, np.ndarray):
        _check_array(image)
    elif is_path(image):
        if not (given := path_text(image)) or "\0" in given:
            raise InvalidInput(f"image is {shown(given or image)}, which is no path", hint=_KINDS)
    elif not is_pil(image) and not is_open_file(image):
        raise InvalidInput(f"image is {shown(image)}", hint=_KINDS)


def read_image(image: Any, limits: Limits) -> bytes:
    """The encoded bytes of an image.

    Raises:
        DataError: the file cannot be read.
        ImageTooLarge: it has more than ``max_image_bytes``.
        ImageError: a PIL image is damaged, or its pixels have no defined range.
        InvalidInput: it is no image.
    """
    what = "the image has"
    if isinstance(image, bytes):
        data = image
    else:
        check_image(image)
        if is_path(image):
            data = _read_path(Path(os.fsdecode(image)), limits)
        elif isinstance(image, (bytearray, memoryview)):
            data = bytes(image)
        elif isinstance(image, np.ndarray):
            what, data = "the image as PNG has", _encode_array(image, limits)
        elif is_pil(image):
            what, data = "the image as PNG has", _encode_pil(image, limits)
        else:
            data = _read_open(image, limits)
    if len(data) > limits.max_image_bytes:
        raise _too_large(len(data), limits, what)
    return data


def _too_large(size_bytes: int, limits: Limits, what: str = "the image has") -> ImageTooLarge:
    return ImageTooLarge(f"{what} {size_bytes} bytes; max_image_bytes is {limits.max_image_bytes}")


# --- Files -----------------------------------------------------------------


def _read_path(path: Path, limits: Limits) -> bytes:
    try:
        with open(path, "rb", opener=regular) as file:
            # The size first, so that a film in the folder is not read.
            size_bytes = os.fstat(file.fileno()).st_size
            if size_bytes > limits.max_image_bytes:
                raise _too_large(size_bytes, limits)
            return file.read()
    except IsADirectoryError as error:
        raise DataError(
            f"{path} is a folder", hint=f"write its files, as in sorted(pathlib.Path({str(path)!r}).glob('*.jpg'))"
        ) from error
    except (OSError, ValueError) as error:
        hint = "images are sent as bytes, not as addresses: download it first" if "://" in str(path) else ""
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}", hint=hint) from error


def _read_open(file: Any, limits: Limits) -> bytes:
    """The rest of an open file, but not much more than ``max_image_bytes``."""
    name = getattr(file, "name", None)
    what = str(name) if isinstance(name, (str, os.PathLike)) else "the open file"
    parts: list[bytes] = []
    remaining = limits.max_image_bytes + 1
    try:
        while remaining > 0:
            part = file.read(remaining)
            if not isinstance(part, bytes):
                break
            if not part:
                break
            parts.append(part)
            remaining -= len(part)
    except MemoryError:
        raise
    except Exception as error:  # of classes that are not ours: BadZipFile, zlib.error, a network's errors …
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"{what} cannot be read: {reason}") from error
    if inspect.iscoroutine(part):
        part.close()
    if isinstance(part, str):
        raise InvalidInput("image is a file that is open as text", hint="open(path, 'rb')")
    if not isinstance(part, bytes):
        raise InvalidInput(f"image is {shown(file)}, whose read() gives {shown(part)} instead of bytes", hint=_KINDS)
    if not parts and _position(file):
        raise DataError(f"{what} has been read to its end", hint="read it from the beginning: file.seek(0)")
    return b"".join(parts)


def _position(file: Any) -> int:
    try:
        return int(file.tell())
    except (AttributeError, OSError, TypeError, ValueError):
        return 0


# --- Pixels ----------------------------------------------------------------


def _check_array(array: NDArray[Any]) -> None:
    what = f"image is an array of {array.dtype} {list(array.shape)}"
    if isinstance(array, np.ma.MaskedArray):
        raise InvalidInput(f"{what} with a mask", hint="fill what is masked: array.filled(0)")
    if array.dtype != np.uint8:
        hint = "pixels are uint8, 0 to 255"
        if array.dtype.kind == "f":
            hint += "; of numbers from 0 to 1: (array * 255).round().astype(numpy.uint8)"
        if array.ndim == 1:
            hint += "; to search by an embedding: vector=array"
        raise InvalidInput(what, hint=hint)
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        raise InvalidInput(what, hint="the channels come last: array.transpose(1, 2, 0)")
    if array.ndim == 4 and array.shape[0] == 1:
        raise InvalidInput(what, hint="an image has no dimension for the batch: array[0]")
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))):
        raise InvalidInput(what, hint="an image is [H, W, 3] (RGB), [H, W, 4] (RGBA) or [H, W] (grey)")
    if not array.size:
        raise InvalidInput(f"{what}, without a pixel", hint="leave empty images out")


def _check_size(width: int, height: int, limits: Limits) -> None:
    limits_px = f"max_image_side_px is {limits.max_image_side_px}, max_image_pixels is {limits.max_image_pixels}"
    if max(width, height) > limits.max_image_side_px or width * height > limits.max_image_pixels:
        raise ImageTooLarge(f"the image is {width} × {height} pixels; {limits_px}")


def _encode_array(array: NDArray[np.uint8], limits: Limits) -> bytes:
    from PIL import Image

    _check_size(array.shape[1], array.shape[0], limits)
    pixels = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    return _png(Image.fromarray(np.ascontiguousarray(pixels)))


def _encode_pil(image: Image.Image, limits: Limits) -> bytes:
    """A PNG with the pixels that the server would read from the image's own file, upright."""
    from PIL import ImageOps

    _check_size(*image.size, limits)
    if not all(image.size):
        raise ImageUndecodable(f"the PIL image is {image.width} × {image.height} pixels", hint="leave empty images out")
    try:
        image.load()
    except Exception as error:  # Pillow's parsers raise OSError, SyntaxError, ValueError, struct.error …
        raise ImageUndecodable(f"the PIL image cannot be read: {error}") from error
    if image.mode in ("I", "F"):
        raise ImageFormatError(
            "the PIL image has 32-bit pixels, whose range is not defined",
            hint="scale them to 0 to 255 and convert: image.point(…).convert('L')",
        )
    try:
        upright = ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block does not make the pixels unusable
        upright = image
    if upright.mode.startswith("I;16") and upright.mode != "I;16":
        # By way of 32 bits: Pillow's direct conversion of the other byte order cuts all values to 255.
        upright = upright.convert("I").convert("I;16")
    if upright.mode not in _PNG_MODES:
        upright = upright.convert(_WITH_ALPHA.get(upright.mode, "RGB"))
    try:
        return _png(upright)
    except Exception as error:  # a transparent colour of another mode, for example, which callers may set
        raise ImageUndecodable(f"the PIL image cannot be written as PNG: {error}") from error


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=_COMPRESS_LEVEL, icc_profile=None)
    return out.getvalue()
