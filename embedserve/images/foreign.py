"""Kinds of files that are not read: how they are recognised, what they are called, and what to do with them.

What is known by its name and its remedy is never called damaged.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from embedserve.images.kind import SAVE, Kind

_RAW = "export it as JPEG or TIFF with the camera maker's program or a raw converter such as darktable"
_VIDEO = "take single pictures out of it: ffmpeg -i FILE -vf fps=1 frame-%05d.png"
_VOLUME = "save the slices that matter as 16-bit PNG or TIFF"
_UNPACK = "unpack it, and give the images in it"


def _other(name: str, *suffixes: str, phrase: str = "", remedy: str = SAVE, damaged: bool = False) -> Kind:
    return Kind(name=name, suffixes=suffixes, phrase=phrase, remedy=remedy, damaged=damaged)


_CHANGED_ENDS = _other(
    "PNG with changed line ends",
    phrase="a PNG whose line ends were changed",
    remedy="copy it again, in binary mode",
    damaged=True,
)
_ZEROS = _other("zero bytes", phrase="a file of zero bytes", remedy="copy it again", damaged=True)
_AS_TEXT = _other(
    "image read as text",
    phrase="an image whose bytes were read as text",
    remedy="read it as bytes: open(path, 'rb')",
    damaged=True,
)
VIDEO = _other("MP4 video", ".mp4", ".mov", ".m4v", ".3gp", phrase="a video", remedy=_VIDEO)
_JPEG_XL = _other("JPEG XL", ".jxl", remedy="convert it: djxl FILE.jxl FILE.png")
_JPEG_2000 = _other("JPEG 2000", ".jp2", ".j2k", ".jpx", ".j2c", ".jpf")
CANON_RAW = _other("raw (Canon CR3)", ".cr3", phrase="a raw photo of Canon", remedy=_RAW)
HEIF = _other("HEIF", ".heif", phrase="HEIF with another codec than HEVC or AV1")
_BARE_DICOM = _other(
    "DICOM without its preamble",
    phrase="DICOM without the 132 bytes that such files begin with",
    remedy="write it as a file: gdcmconv FILE FILE.dcm",
)
TEXTS = {
    "HTML": _other(
        "HTML",
        ".html",
        ".htm",
        phrase="an HTML page, perhaps the error page of a download",
        remedy="open it in an editor to see what the server answered, and download the image again",
    ),
    "SVG": _other(
        "SVG", ".svg", phrase="an SVG drawing", remedy="draw it as pixels: rsvg-convert -w 512 FILE -o FILE.png"
    ),
    "XML": _other("XML", ".xml", ".xmp", phrase="XML text", remedy="give the images themselves"),
    "JSON": _other("JSON", ".json", ".jsonl", phrase="JSON text", remedy="give the bytes of the image itself"),
    "base64": _other("base64 text", phrase="base64 text", remedy="decode it first: base64.b64decode(text)"),
    "hex": _other("hex text", phrase="an image in hexadecimal", remedy="decode it first: bytes.fromhex(text)"),
    "data URL": _other(
        "data URL",
        phrase="a data: URL",
        remedy="decode what follows the comma: base64.b64decode(url.partition(',')[2])",
    ),
    "URL": _other("URL", phrase="the address of an image", remedy="download it, and give its bytes"),
    "path": _other("file path", phrase="the path of a file", remedy="give its bytes: pathlib.Path(path).read_bytes()"),
    "LFS": _other("Git LFS pointer", phrase="a Git LFS pointer, not the image itself", remedy="git lfs pull"),
    "annex": _other("git-annex pointer", phrase="a git-annex pointer, not the image itself", remedy="git annex get ."),
    "HTTP": _other("HTTP response", phrase="a whole HTTP response", remedy="give its body alone"),
    "bytes": _other("bytes in Python's notation", remedy="give the bytes themselves, without str() or repr()"),
    "text": _other("text", ".txt", ".csv", ".md", remedy="give the bytes of an image file"),
}

BEGINNINGS: tuple[tuple[bytes, Kind], ...] = (
    (b"\xff\xd8\xff\xf7", _other("JPEG-LS", ".jls", phrase="JPEG-LS")),
    (b"\x89PNG\n", _CHANGED_ENDS),
    (b"\x89PNG\r\r", _CHANGED_ENDS),
    (b"\x89PNG\r\n\x1a\r", _CHANGED_ENDS),
    (b"%PDF-", _other("PDF", ".pdf", ".ai", phrase="a PDF document", remedy="draw its pages: pdftoppm -png FILE page")),
    (
        b"8BPS",
        _other("PSD", ".psd", ".psb", phrase="a Photoshop document", remedy="export it as PNG, JPEG or flat TIFF"),
    ),
    (b"%!PS", _other("EPS", ".eps", ".ps", phrase="PostScript", remedy="draw it: gs -sDEVICE=png16m -o FILE.png FILE")),
    (b"\xc5\xd0\xd3\xc6", _other("EPS", ".eps", phrase="PostScript", remedy="draw it as PNG with Ghostscript")),
    (b"\xff\x0a", _JPEG_XL),
    (b"\0\0\0\x0cJXL \r\n\x87\n", _JPEG_XL),
    (b"\0\0\0\x0cjP  \r\n\x87\n", _JPEG_2000),
    (b"\xff\x4f\xff\x51", _JPEG_2000),
    (b"II\xbc", _other("JPEG XR", ".jxr", ".wdp")),
    (b"\x8bJNG", _other("JNG", ".jng")),
    (b"\x8aMNG", _other("MNG", ".mng")),
    (b"FUJIFILMCCD-RAW", _other("raw (Fujifilm)", ".raf", phrase="a raw photo of Fujifilm", remedy=_RAW)),
    (b"IIRO", _other("raw (Olympus)", ".orf", phrase="a raw photo of Olympus", remedy=_RAW)),
    (b"IIRS", _other("raw (Olympus)", ".orf", phrase="a raw photo of Olympus", remedy=_RAW)),
    (b"MMOR", _other("raw (Olympus)", ".orf", phrase="a raw photo of Olympus", remedy=_RAW)),
    (b"IIU\0", _other("raw (Panasonic)", ".rw2", phrase="a raw photo of Panasonic", remedy=_RAW)),
    (b"II\x1a\0\0\0HEAPCCDR", _other("raw (Canon CRW)", ".crw", phrase="a raw photo of Canon", remedy=_RAW)),
    (b"FOVb", _other("raw (Sigma)", ".x3f", phrase="a raw photo of Sigma", remedy=_RAW)),
    (b"\0MRM", _other("raw (Minolta)", ".mrw", phrase="a raw photo of Minolta", remedy=_RAW)),
    (b"icns", _other("ICNS", ".icns", phrase="an icon of macOS")),
    (b"\x02\0\0\0UL\4\0", _BARE_DICOM),
    (b"\x08\0\0\0UL\4\0", _BARE_DICOM),
    (b"\x08\0\0\0\4\0\0\0", _BARE_DICOM),
    (b"\x08\0\5\0CS", _BARE_DICOM),
    (b"\x08\0\5\0\x0a\0\0\0ISO", _BARE_DICOM),
    (b"\x08\0\x08\0CS", _BARE_DICOM),
    (b"v/1\x01", _other("OpenEXR", ".exr", remedy="bring its values to 0…255 (tone mapping), and save it as PNG")),
    (b"#?RADIANCE", _other("Radiance HDR", ".hdr", remedy="bring its values to 0…255, and save it as PNG")),
    (b"#?RGBE", _other("Radiance HDR", ".hdr", remedy="bring its values to 0…255, and save it as PNG")),
    (b"DDS ", _other("DDS", ".dds", phrase="a DDS texture")),
    (b"\xabKTX ", _other("KTX", ".ktx", ".ktx2", phrase="a KTX texture")),
    (b"\x13\xab\xa1\x5c", _other("ASTC", ".astc", phrase="an ASTC texture")),
    (b"PVR\3", _other("PVR", ".pvr", phrase="a PVR texture")),
    (b"SIMPLE  =", _other("FITS", ".fits", ".fit", remedy="save what matters as 16-bit TIFF")),
    (b"NRRD000", _other("NRRD", ".nrrd", remedy=_VOLUME)),
    (b"\x93NUMPY", _other("NumPy array", ".npy", phrase="a NumPy array", remedy="PIL.Image.fromarray(array).save(…)")),
    (b"\x89HDF\r\n\x1a\n", _other("HDF5", ".h5", ".hdf5", remedy="save the images in it as files")),
    (b"CDF\1", _other("netCDF", ".nc", remedy="save the images in it as files")),
    (b"PAR1", _other("Parquet", ".parquet", phrase="a Parquet table", remedy="write the images in it to files")),
    (b"ARROW1", _other("Arrow", ".arrow", phrase="an Arrow table", remedy="write the images in it to files")),
    (b"SQLite format 3\0", _other("SQLite", ".db", ".sqlite", phrase="a SQLite database", remedy="give image files")),
    (b"PK\3\4", _other("ZIP", ".zip", phrase="a ZIP archive", remedy=_UNPACK)),
    (b"PK\5\6", _other("ZIP", ".zip", phrase="an empty ZIP archive", remedy=_UNPACK)),
    (b"\x1f\x8b", _other("gzip", ".gz", ".tgz", phrase="a gzip file", remedy="unpack it: gunzip FILE.gz")),
    (b"BZh", _other("bzip2", ".bz2", phrase="a bzip2 file", remedy="unpack it: bunzip2 FILE.bz2")),
    (b"\xfd7zXZ\0", _other("xz", ".xz", phrase="an xz file", remedy="unpack it: unxz FILE.xz")),
    (b"\x28\xb5\x2f\xfd", _other("zstd", ".zst", phrase="a zstd file", remedy="unpack it: unzstd FILE.zst")),
    (b"7z\xbc\xaf\x27\x1c", _other("7z", ".7z", phrase="a 7z archive", remedy=_UNPACK)),
    (b"Rar!\x1a\x07", _other("RAR", ".rar", phrase="a RAR archive", remedy=_UNPACK)),
    (b"\x1aE\xdf\xa3", _other("WebM video", ".webm", ".mkv", phrase="a video", remedy=_VIDEO)),
    (b"\0\0\1\xba", _other("MPEG video", ".mpg", ".vob", phrase="a video", remedy=_VIDEO)),
    (b"\0\0\1\xb3", _other("MPEG video", ".mpg", phrase="a video", remedy=_VIDEO)),
    (b"FLV\1", _other("FLV video", ".flv", phrase="a video", remedy=_VIDEO)),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", _other("WMV video", ".wmv", phrase="a video", remedy=_VIDEO)),
    (b"OggS", _other("Ogg", ".ogg", ".ogv", phrase="sound or a video", remedy="give image files")),
    (b"ID3", _other("MP3", ".mp3", phrase="sound", remedy="give image files")),
    (b"fLaC", _other("FLAC", ".flac", phrase="sound", remedy="give image files")),
    (
        b"\0\5\x16\7",
        _other(
            "AppleDouble",
            phrase="a file of macOS beside an image (AppleDouble), not the image",
            remedy="leave it out; the image has the same name without ._ before it",
        ),
    ),
    (b"\0\0\0\1Bud1", _other(".DS_Store", phrase="a file of macOS about a folder", remedy="leave it out")),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", _other("OLE document", ".doc", ".db", phrase="an Office document")),
    (b"gimp xcf", _other("XCF", ".xcf", phrase="a GIMP document", remedy="export it as PNG")),
    (b"AT&TFORM", _other("DjVu", ".djvu", remedy="draw its pages: ddjvu -format=tiff FILE FILE.tif")),
    (b"\xd7\xcd\xc6\x9a", _other("WMF", ".wmf", phrase="a WMF drawing")),
    (b"qoif", _other("QOI", ".qoi")),
    (b"FLIF", _other("FLIF", ".flif")),
    (b"BPG\xfb", _other("BPG", ".bpg")),
    (b"farbfeld", _other("farbfeld", ".ff")),
    (b"SDPX", _other("DPX", ".dpx")),
    (b"XPDS", _other("DPX", ".dpx")),
    (b"\x01\xda", _other("SGI", ".sgi", ".rgb")),
    (b"\x59\xa6\x6a\x95", _other("Sun raster", ".ras")),
    (b"/* XPM */", _other("XPM", ".xpm")),
    (b"MZ", _other("Windows program", ".exe", phrase="a program", remedy="give image files")),
    (b"\x7fELF", _other("Linux program", phrase="a program", remedy="give image files")),
)


PNM = _other("PNM", ".ppm", ".pgm", ".pbm", ".pnm", ".pam", ".pfm", phrase="PPM, PGM or a relative of them")
_PNM = re.compile(rb"P([1-6]\s+[0-9#]|7\s+[A-Z#]|[Ff]\s+[0-9])")


def is_pnm(head: bytes) -> bool:
    """Whether the bytes begin as PPM or a relative of it, which are text in part."""
    return _PNM.match(head) is not None


def _nifti(head: bytes) -> bool:
    return head[344:348] in (b"n+1\0", b"ni1\0") or head[:8] in (b"\x1c\2\0\0n+2\0", b"\0\0\2\x1cn+2\0")


def _tar(head: bytes) -> bool:
    return head[257:262] == b"ustar"


def _targa(head: bytes) -> bool:
    """TGA has no signature: a header of 18 bytes in which everything is possible."""
    if len(head) < 18 or head[1] > 1 or head[2] not in (1, 2, 3, 9, 10, 11) or head[16] not in (8, 15, 16, 24, 32):
        return False
    return bool((head[1] or not any(head[3:8])) and not head[17] & 0xC0 and any(head[12:14]) and any(head[14:16]))


def _pcx(head: bytes) -> bool:
    return head[:1] == b"\x0a" and head[1:2] in b"\0\2\3\4\5" and head[2:3] == b"\1" and head[3:4] in b"\1\2\4\x08"


def _zeros(head: bytes) -> bool:
    return len(head) >= 64 and not any(head)


def _icon(head: bytes) -> bool:
    """An icon or a mouse pointer; a TGA may begin with the same four bytes, and has zeros behind them."""
    return head[:4] in (b"\0\0\1\0", b"\0\0\2\0") and any(head[4:6])


def _riff(form: bytes) -> Callable[[bytes], bool]:
    return lambda head: head[:4] == b"RIFF" and head[8:12] == form


def _emf(head: bytes) -> bool:
    return head[:4] == b"\1\0\0\0" and head[40:44] == b" EMF"


def _old_movie(head: bytes) -> bool:
    return head[4:8] in (b"moov", b"mdat", b"wide", b"skip")


def _transport_stream(head: bytes) -> bool:
    return len(head) > 376 and head[0] == head[188] == head[376] == 0x47


def _replaced(head: bytes) -> bool:
    """Bytes that were decoded as text, where what is no text became the sign for that."""
    return head.startswith(b"\xef\xbf\xbd") and head.count(b"\xef\xbf\xbd") > 3


TESTS: tuple[tuple[Callable[[bytes], bool], Kind], ...] = (
    (_riff(b"AVI "), _other("AVI video", ".avi", phrase="a video", remedy=_VIDEO)),
    (_riff(b"WAVE"), _other("WAV", ".wav", phrase="sound", remedy="give image files")),
    (_nifti, _other("NIfTI", ".nii", remedy=_VOLUME)),
    (_tar, _other("tar", ".tar", phrase="a tar archive", remedy=_UNPACK)),
    (_emf, _other("EMF", ".emf", phrase="an EMF drawing")),
    (_old_movie, VIDEO),
    (_transport_stream, _other("MPEG video", ".ts", ".mts", phrase="a video", remedy=_VIDEO)),
    (_replaced, _AS_TEXT),
    (_icon, _other("icon", ".ico", ".cur", phrase="an icon")),
    (_pcx, _other("PCX", ".pcx")),
    (_targa, _other("TGA", ".tga")),
    (_zeros, _ZEROS),
)
"""What takes more than the first bytes to recognise, and ends with what has no signature."""
