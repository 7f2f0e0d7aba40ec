"""Which files are images: the formats that are read, the suffixes that files have, and what their first bytes say."""

from __future__ import annotations

from embedserve.images import foreign
from embedserve.images.kind import SAVE, Kind
from embedserve.images.text_bytes import what_text

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
"""Formats that Pillow reads for us. Its other parsers, where its vulnerabilities have been, stay unreachable."""

HEAD_BYTES = 4096
"""First bytes of a file that are enough for ``kind_of``."""


def _read(name: str, *suffixes: str, media_type: str, package: str = "", extra: str = "") -> Kind:
    install = f"'embedserve[{extra}]'" if extra else "--upgrade pillow"
    remedy = f"where it is decoded: pip install {install}; or {SAVE}" if package else ""
    return Kind(
        name=name,
        suffixes=suffixes,
        media_type=media_type,
        package=package,
        extra=extra,
        remedy=remedy,
        supported=True,
    )


JPEG = _read("JPEG", ".jpg", ".jpeg", ".jpe", ".jfif", media_type="image/jpeg")
PNG = _read("PNG", ".png", ".apng", media_type="image/png")
WEBP = _read("WebP", ".webp", media_type="image/webp")
BMP = _read("BMP", ".bmp", media_type="image/bmp")
GIF = _read("GIF", ".gif", media_type="image/gif")
TIFF = _read("TIFF", ".tif", ".tiff", media_type="image/tiff")
AVIF = _read("AVIF", ".avif", media_type="image/avif", package="PIL._avif")
HEIC = _read("HEIC", ".heic", ".heif", ".hif", media_type="image/heic", package="pillow_heif", extra="heic")
DICOM = _read("DICOM", ".dcm", ".dicom", media_type="application/dicom", package="pydicom", extra="medical")
READ = (JPEG, PNG, WEBP, BMP, GIF, TIFF, AVIF, HEIC, DICOM)
"""Kinds that are read, the last two with an extra of embedserve."""

SUFFIXES = tuple(suffix for kind in READ if kind.readable for suffix in kind.suffixes)
"""Suffixes of the files that a folder scan takes for images: what is read with the packages that are installed."""

_BEGINNINGS = (
    (b"\xff\xd8\xff", JPEG),
    (b"\x89PNG\r\n\x1a\n", PNG),
    (b"GIF87a", GIF),
    (b"GIF89a", GIF),
    (b"II*\0", TIFF),
    (b"MM\0*", TIFF),
    (b"II+\0", TIFF),
    (b"MM\0+", TIFF),
)
_AVIF_BRANDS = (b"avif", b"avis")
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
_HEIF_BRANDS = (b"mif1", b"msf1", b"mif2", b"miaf", b"avci", b"avcs", b"jpeg", b"jpgs", b"j2ki", b"j2is", b"vvic")


def kind_of(head: bytes) -> Kind | None:
    """The kind of a file by its first ``HEAD_BYTES`` bytes; None if they are not known.

    A file that is read in several ways, as scanners for slides write them, is what it begins with.
    """
    if not head.startswith(b"\xff\xd8\xff\xf7"):  # JPEG-LS, which begins like a JPEG
        for beginning, kind in _BEGINNINGS:
            if head.startswith(beginning):
                return kind
    if _webp(head):
        return WEBP
    if head[4:8] == b"ftyp":
        return _by_brand(head)
    if head[128:132] == b"DICM":
        return DICOM
    if _bmp(head):
        return BMP
    for beginning, kind in foreign.BEGINNINGS:
        if head.startswith(beginning):
            return kind
    if foreign.is_pnm(head):
        return foreign.PNM
    if (text := what_text(head, kind_of)) is not None:
        return foreign.TEXTS[text]
    return next((kind for test, kind in foreign.TESTS if test(head)), None)


def _by_brand(head: bytes) -> Kind:
    """The kind of a file of boxes (ISO/IEC 14496-12), by the brands in its first."""
    end = min(max(int.from_bytes(head[:4], "big"), 12), len(head))
    major = head[8:12]
    brands = [major, *(head[at : at + 4] for at in range(16, end - 3, 4))]
    if major == b"crx ":
        return foreign.CANON_RAW
    for brand in brands:  # the first that says a codec
        if brand in _AVIF_BRANDS:
            return AVIF
        if brand in _HEIC_BRANDS:
            return HEIC
    if any(brand in _HEIF_BRANDS for brand in brands):  # general ones, which do not say what is in it
        return HEIC if b"hvcC" in head else AVIF if b"av1C" in head else foreign.HEIF
    return foreign.VIDEO


def _webp(head: bytes) -> bool:
    return head[:4] == b"RIFF" and (head[8:12] == b"WEBP" or len(head) < 12)


def _bmp(head: bytes) -> bool:
    return head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in (12, 16, 40, 52, 56, 64, 108, 124)
