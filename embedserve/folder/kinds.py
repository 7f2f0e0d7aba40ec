"""What a name in a folder stands for: an image, a folder that a device made for itself, or a file to pass over.

A file whose suffix is known is judged by it and not opened. One without a suffix, or with a suffix that nobody knows
(``photo.jpg_large``, ``IMG.0001``), is judged by its first bytes.
"""

from __future__ import annotations

import mimetypes
import textwrap
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import cache
from importlib.util import find_spec
from pathlib import PurePath

from embedserve.images.formats import SUFFIXES

HEAD_BYTES = 4096
"""At most so much of a file is read to see what it is."""

_COLUMNS = 80

HIDDEN = "hidden"
NO_SUFFIX = "without suffix"
OTHER_SUFFIX = "of other suffixes"
BROKEN_LINK = "broken links"
NO_FILE = "pipes and devices"

OLDER_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Suffixes of images until this room was made: runs that began before go on with them."""

_MORE_SUFFIXES = (".jfif", ".jpe", ".jif", ".apng")
"""Other names of formats that are read: JPEG three times, and PNG."""

_EXTRAS = {
    ".heic": ("heic", "pillow_heif"),
    ".heif": ("heic", "pillow_heif"),
    ".hif": ("heic", "pillow_heif"),
    ".dcm": ("medical", "pydicom"),
}
"""Suffix → the extra that brings its reader, and the module by which it is known to be installed."""

_FOLDERS = (
    *("@eaDir", "#recycle", "#snapshot", "@Recycle", "@Recently-Snapshot", "@__thumb", "@tmp"),  # Synology and QNAP
    *("$RECYCLE.BIN", "System Volume Information", "lost+found", "__MACOSX"),
    "*.lrdata",  # previews of Lightroom
)
"""Folders that devices and programs make for themselves: thumbnails, and what was deleted."""

_LIBRARIES = ("*.photoslibrary", "*.photolibrary", "*.migratedphotolibrary", "*.aplibrary")
_ORIGINALS = ("originals", "masters")
"""What a photo library of macOS has beside thumbnails and edited copies."""

# Many are TIFF by their first bytes, and the first picture in them is a thumbnail.
_CAMERA_RAW = (
    "3fr arw cr2 cr3 crw dcr dng erf fff gpr iiq kdc mef mos mrw nef nrw orf pef raf raw rw2 rwl sr2 srf srw x3f"
)
_SLIDES_AND_LAYERS = "ndpi scn svs lsm psd psb xcf thm ctg"
_NOT_READ = "jxl jp2 j2k jls exr hdr ico cur heic heif hif avif dcm svg eps"
# Unfinished downloads begin like images.
_BESIDE_IMAGES = (
    "aae xmp db ini log lnk url yaml yml toml npy npz onnx pt parquet part crdownload tmp lock md5 sha256 lrcat"
    " 7z rar gz xz bz2 mkv mts m2ts flac md rst docx xlsx pptx"
)
_OTHERS = frozenset(
    f".{name}" for name in " ".join([_CAMERA_RAW, _SLIDES_AND_LAYERS, _NOT_READ, _BESIDE_IMAGES]).split()
)
"""Suffixes of files that are no images for us, beside those in the table of media types."""


@cache
def _media_types() -> mimetypes.MimeTypes:
    return mimetypes.MimeTypes()  # the table of Python itself, so that all machines judge alike


def is_image_suffix(suffix: str) -> bool:
    """Whether files with this suffix, in lower case, are taken for images on this machine."""
    return (suffix in SUFFIXES or suffix in _MORE_SUFFIXES) and not remedy(suffix)


@cache
def remedy(kind: str) -> str:
    """What to type so that files of a kind are read; empty if nothing helps or is needed."""
    extra, module = _EXTRAS.get(kind, ("", ""))
    return f"pip install 'embedserve[{extra}]'" if extra and find_spec(module) is None else ""


@cache
def _is_known(suffix: str) -> bool:
    if suffix in _OTHERS:
        return True
    kind = _media_types().types_map[True].get(suffix, "application/octet-stream")
    return kind != "application/octet-stream"  # the type of .bin, which may be anything


def suffix_of(name: str) -> str:
    """The suffix of a file's name in lower case; empty if it has none."""
    return PurePath(name).suffix.lower()


def needs_a_look(suffix: str) -> bool:
    """Whether only the first bytes say what a file is."""
    return not is_image_suffix(suffix) and not _is_known(suffix)


def kind_of_suffix(suffix: str) -> str:
    """The kind under which a file that is passed over is counted."""
    if len(suffix) < 2:
        return NO_SUFFIX
    is_plain = len(suffix) <= 11 and suffix[1:].isascii() and suffix[1:].isalnum() and not suffix[1:].isdigit()
    return suffix if is_plain else OTHER_SUFFIX


def own_folder(name: str, parent: str) -> str:
    """The kind of a folder that a device or program keeps for itself; empty for any other.

    Args:
        name: of the folder.
        parent: name of the folder that it is in.
    """
    for pattern in _FOLDERS:
        if fnmatchcase(name.lower(), pattern.lower()):
            return pattern
    for pattern in _LIBRARIES:
        if fnmatchcase(parent.lower(), pattern) and name.lower() not in _ORIGINALS:
            return f"folders in {pattern}"
    return ""


def is_image(head: bytes) -> bool:
    """Whether a file that begins so has a format that is read."""
    if head[:4] == b"RIFF":
        return head[8:12] == b"WEBP"
    if head[:2] == b"BM":
        # Two letters are in many texts: a header of a known size too.
        return len(head) > 18 and int.from_bytes(head[14:18], "little") in (12, 40, 52, 56, 64, 108, 124)
    starts = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    return head.startswith(starts)


def passed_over_text(counts: Mapping[str, int]) -> str:
    """Counts by kind in words, the most frequent first: "7 .heic (pip install 'embedserve[heic]'), 3 .svg"."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    parts = [f"{count:,} {kind}" + (f" ({remedy(kind)})" if remedy(kind) else "") for kind, count in ranked]
    return ", ".join(parts)


def passed_over_lines(counts: Mapping[str, int]) -> list[str]:
    """ "passed over: 3 .svg, 2 hidden" in lines of at most 80 columns; none if nothing was."""
    if not counts:
        return []
    text = f"passed over: {passed_over_text(counts)}"
    return textwrap.wrap(text, _COLUMNS, subsequent_indent="  ", break_on_hyphens=False)
