"""Colours of a profile → sRGB, by littleCMS through Pillow's ImageCms.

A profile is untrusted input: its header is checked and its size is bounded before littleCMS meets it, and what it says
is decided once. A damaged one, or one of other colours than the picture has, is left out and noted, as viewers do.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

MAX_PROFILE_BYTES = 4 << 20
"""Profiles of printers have up to about 3 MB."""
_MAX_TAGS = 200
_CACHED = 32
_SAME_LEVELS = 2
"""A profile that moves no colour by more levels of 255 than this is sRGB: its many versions differ by rounding."""
_STRIP_ROWS = 256
_SPACES = {"RGB": b"RGB ", "L": b"GRAY", "CMYK": b"CMYK"}
"""Pillow's mode of a picture → the colour space that its profile must have."""
_CLASSES = (b"mntr", b"scnr", b"prtr", b"spac")
_NAMES = {b"RGB ": "RGB", b"GRAY": "grey", b"CMYK": "CMYK", b"Lab ": "L*a*b*"}


@dataclass(frozen=True, slots=True)
class _Decision:
    """What a profile makes of the colours of a mode."""

    transform: Any = None
    """An ``ImageCmsTransform`` to RGB; None to leave the colours as they are."""
    note: str = ""


_decisions: OrderedDict[tuple[bytes, str], _Decision] = OrderedDict()
_lock = threading.Lock()


def to_srgb(image: Image.Image, profile: bytes | None, notes: list[str] | None = None) -> Image.Image:
    """The picture with colours of sRGB; its transparency stays.

    Args:
        image: decoded, of 8 bits. It may be changed in place.
        profile: an ICC profile. None: the colours are sRGB already, except L*a*b*, which need none.
        notes: receives a sentence if the profile was left out.

    Returns:
        The picture itself if nothing is to be converted, else one of mode RGB or RGBA.
    """
    from PIL import Image, ImageCms

    if image.mode == "LAB":
        # What is stored is D50, as in the L*a*b* of profiles.
        return _converted(image, _lab())
    if profile is None:
        return image
    colours, alpha = _parted(image)
    if colours is None:
        return image
    decision = _decide(profile, colours.mode)
    if decision.note and notes is not None:
        notes.append(decision.note)
    if decision.transform is None:
        return image
    try:
        colours = _converted(colours, decision.transform)
    except (ImageCms.PyCMSError, ValueError, OSError) as error:
        if notes is not None:
            notes.append(f"the colour profile was left out: {error}")
        return image
    return colours if alpha is None else Image.merge("RGBA", [*colours.split(), alpha])


def pixels_to_srgb(
    pixels: NDArray[np.uint8], profile: bytes, *, grey: bool, notes: list[str] | None = None
) -> NDArray[np.uint8]:
    """As ``to_srgb``, for RGB pixels [H, W, 3], which are changed in place.

    Args:
        pixels: of the picture.
        profile: an ICC profile.
        grey: whether the file has grey only, and the three channels are equal.
        notes: receives a sentence if the profile was left out.
    """
    import numpy as np
    from PIL import Image

    decision = _decide(profile, "L" if grey else "RGB")
    if decision.note and notes is not None:
        notes.append(decision.note)
    if decision.transform is None:
        return pixels
    for top in range(0, len(pixels), _STRIP_ROWS):
        strip = pixels[top : top + _STRIP_ROWS]
        image = Image.fromarray(np.ascontiguousarray(strip[..., 0])) if grey else Image.fromarray(strip)
        strip[:] = np.asarray(_converted(image, decision.transform))
    return pixels


def _parted(image: Image.Image) -> tuple[Image.Image | None, Image.Image | None]:
    """The colours of a picture in a mode that profiles speak of, and its transparency; None for other pictures."""
    if image.mode in ("RGB", "L", "CMYK") and "transparency" not in image.info:
        return image, None
    if image.mode == "1" and "transparency" not in image.info:
        return image.convert("L"), None
    if image.mode == "P" and not image.has_transparency_data:
        return image.convert("RGB"), None
    if image.mode == "LA":
        grey, alpha = image.split()
        return grey, alpha
    if image.mode in ("L", "1"):
        rgba = image.convert("RGBA")
        return rgba.getchannel(0), rgba.getchannel(3)
    if image.mode in ("RGB", "RGBA", "P", "PA", "RGBa"):
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        return rgba.convert("RGB"), rgba.getchannel(3)
    return None, None


def _decide(profile: bytes, mode: str) -> _Decision:
    key = (hashlib.sha256(profile).digest(), mode)
    with _lock:
        found = _decisions.get(key)
        if found is not None:
            _decisions.move_to_end(key)
            return found
    decision = _read(profile, mode)
    with _lock:
        _decisions[key] = decision
        while len(_decisions) > _CACHED:
            _decisions.popitem(last=False)
    return decision


def _read(profile: bytes, mode: str) -> _Decision:
    import io

    from PIL import ImageCms

    if not profile:
        return _Decision(note="the colour profile was left out: parts of it are missing")
    if (fault := _fault(profile, mode)) is not None:
        return _Decision(note=f"the colour profile was left out: {fault}")
    try:
        source: Any = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = _transform(source, mode)
        if _changes(transform, mode) <= _SAME_LEVELS:
            return _Decision()
    except MemoryError:
        raise
    except Exception:  # littleCMS says what it makes of a damaged profile in several ways
        return _Decision(note="the colour profile was left out: it is damaged")
    return _Decision(transform=transform)


def _fault(profile: bytes, mode: str) -> str | None:
    """What is wrong with a profile for pictures of this mode, by its header and the table of its tags."""
    size = int.from_bytes(profile[:4], "big")
    if len(profile) > MAX_PROFILE_BYTES:
        return f"it has {len(profile)} bytes, more than {MAX_PROFILE_BYTES}"
    if len(profile) < 132 or not 132 <= size <= len(profile) or profile[36:40] != b"acsp":
        return "it is damaged"
    if profile[12:16] not in _CLASSES or profile[20:24] not in (b"XYZ ", b"Lab ") or profile[8] not in (2, 3, 4):
        return "it is of a kind that does not describe pictures"
    count = int.from_bytes(profile[128:132], "big")
    if not 1 <= count <= _MAX_TAGS or 132 + 12 * count > size:
        return "it is damaged"
    for at in range(132, 132 + 12 * count, 12):
        begin, length = (
            int.from_bytes(profile[at + 4 : at + 8], "big"),
            int.from_bytes(profile[at + 8 : at + 12], "big"),
        )
        if begin + length > size:
            return "it is damaged"
    if profile[16:20] != _SPACES[mode]:
        space = _NAMES.get(profile[16:20], "other")
        return f"it is of {space} colours, and the picture is {_NAMES[_SPACES[mode]]}"
    return None


def _transform(source: Any, mode: str) -> Any:
    from PIL import ImageCms

    # Relative colorimetric with black point compensation: white stays white, black becomes black, and colours that both
    # have stay the same, which perceptual tables of different makers do not promise.
    return ImageCms.buildTransform(
        source,
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )


def _lab() -> Any:
    from PIL import ImageCms

    with _lock:
        found = _decisions.get((b"", "LAB"))
        if found is None:
            found = _Decision(_transform(ImageCms.createProfile("LAB"), "LAB"))
            _decisions[b"", "LAB"] = found
        return found.transform


def _changes(transform: Any, mode: str) -> int:
    """By how many levels the transform moves a colour at most, of a grid of colours. For inks, by all."""
    import numpy as np
    from PIL import Image

    if mode == "CMYK":
        return 255
    if mode == "L":
        colours = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=-1)
        image = Image.fromarray(colours[..., 0])
    else:
        levels = np.arange(0, 256, 15, dtype=np.uint8)
        colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
        image = Image.fromarray(colours)
    moved = np.asarray(_converted(image, transform)).astype(np.int16)
    return int(np.abs(moved - colours).max())


def _converted(image: Image.Image, transform: Any) -> Image.Image:
    from PIL import Image, ImageCms

    if image.mode == "RGB":
        ImageCms.applyTransform(image, transform, inPlace=True)
        return image
    # In strips: a whole picture of another mode would be held twice.
    out = Image.new("RGB", image.size)
    for top in range(0, image.height, _STRIP_ROWS):
        box = (0, top, image.width, min(top + _STRIP_ROWS, image.height))
        strip = ImageCms.applyTransform(image.crop(box), transform)
        if strip is not None:
            out.paste(strip, box)
    return out
