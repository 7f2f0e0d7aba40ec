"""How the samples of a TIFF are stored: which of its images is the picture, and what is refused by its name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from embedserve.errors import ImageFormatError, ImageTooLarge, ImageUndecodable
from embedserve.images import tiff_file
from embedserve.images.size_limits import check_size
from embedserve.images.tiff_file import Directory
from embedserve.types import Limits

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8
_COLOURS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3, LAB: 3}
"""Photometric interpretations that are read, and their number of bands."""
_NO_PICTURES = {
    4: "a mask of transparency",
    9: "ICC L*a*b* colours",
    10: "ITU L*a*b* colours",
    32803: "the raw data of a camera's sensor (CFA)",
    32844: "logarithmic luminance (LogL)",
    32845: "logarithmic luminance and colour (LogLuv)",
    34892: "the linear raw data of a camera",
    51177: "a map of depth",
    52527: "a map of semantic masks",
}
_COMPRESSIONS = {
    2: "CCITT", 3: "CCITT Group 3", 4: "CCITT Group 4", 6: "old-style JPEG", 7: "JPEG", 9: "JBIG (T.85)",
    10: "JBIG (T.43)", 32766: "NeXT", 32771: "CCITT with word alignment", 32809: "ThunderScan", 32895: "IT8 CT",
    32896: "IT8 LW", 32897: "IT8 MP", 32898: "IT8 BL", 32908: "Pixar film", 32909: "Pixar log", 33003: "JPEG 2000",
    33004: "JPEG 2000", 33005: "JPEG 2000", 33007: "JPEG XR", 34661: "JBIG", 34676: "LogL", 34677: "LogLuv 24",
    34712: "JPEG 2000", 34713: "Nikon raw", 34718: "Microsoft document imaging", 34887: "LERC",
    34892: "lossy JPEG (DNG)", 34926: "Zstandard (old number)", 34927: "WebP (old number)", 34933: "PNG",
    34934: "JPEG XR", 48124: "JETRAW", 50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL (DNG)", 65000: "Kodak raw",
    65535: "Pentax raw",
}  # fmt: skip
"""Names of the compressions that are not of bytes."""
_BY_PILLOW = frozenset({2, 3, 4, 7})
"""Those that libtiff in Pillow's packages decompresses."""
_NUMBERS = {1: "u", 2: "i", 3: "f"}
_MAX_BANDS = 65_535
_MAX_BYTES_PER_PIXEL = 8
"""As 16-bit RGB with transparency has. What takes more than so many for each pixel that the limits allow is refused."""

_SAVE = "save it as PNG, or as TIFF with 8 or 16 bits per band"


@dataclass(frozen=True)
class Layout:
    """How the samples of an image are stored, checked."""

    directory: Directory
    width: int
    height: int
    bands: int
    bits: int
    number: str
    """"u", "i" or "f", as in NumPy."""
    photometric: int
    compression: int
    planar: bool
    extra: tuple[int, ...]
    """ExtraSamples: 0 unspecified, 1 associated (premultiplied) alpha, 2 unassociated alpha."""

    @property
    def colours(self) -> int:
        """Number of the bands that are colours."""
        return _COLOURS[self.photometric]

    @cached_property
    def alpha(self) -> int | None:
        """Position of the band that the file calls transparency."""
        found = (self.colours + at for at, meaning in enumerate(self.extra) if meaning in (1, 2))
        return next((at for at in found if at < self.bands), None)


def find_picture(data: bytes, notes: list[str]) -> Directory:
    """The directory of the picture: of several the first that is neither a thumbnail nor a mask.

    Raises:
        ImageUndecodable: there is no directory.
        ImageFormatError: there are only thumbnails and masks.
    """
    found = tiff_file.directories(data)
    if not found:
        raise ImageUndecodable("the image is damaged: the TIFF has no directory")
    full = [directory for directory in found if directory.is_full_image]
    if not full or found[0] is not full[0]:
        # A raw file begins with its thumbnail, which names the full image as one of its own directories.
        full = [one for one in tiff_file.inside(data, found[0]) if one.is_full_image] or full
    if not full:
        raise refused("only a thumbnail or a mask of another image (NewSubfileType)")
    if len(full) > 1:
        notes.append("of several pages the first was taken")
    return full[0]


def read_layout(directory: Directory, limits: Limits) -> Layout:
    """How the samples of an image are stored.

    Raises:
        ImageUndecodable: what the directory says is not possible.
        ImageFormatError: it is something that is not read; the message names it.
        ImageTooLarge: it exceeds the limits.
    """
    for tag in (256, 257):
        if tag not in directory.tags:
            raise ImageUndecodable("the image is damaged: the TIFF does not say its size")
    width, height = directory.number(256, 0), directory.number(257, 0)
    if width < 1 or height < 1:
        raise ImageUndecodable(f"the image is damaged: its size is {width} × {height}")
    check_size(width, height, limits)
    compression = directory.number(259, tiff_file.NONE)
    photometric = directory.number(262, WHITE_IS_ZERO)
    bands = directory.number(277, 1)
    bits, numbers = directory.numbers(258, (1,)), directory.numbers(339, (1,))
    if compression == 6 and photometric in (RGB, YCBCR) and 277 not in directory.tags:
        bands = 3
    if not 1 <= bands <= _MAX_BANDS or not bits or not numbers:
        raise ImageUndecodable(f"the image is damaged: it has {bands} bands")
    if photometric not in _COLOURS:
        raise refused(_NO_PICTURES.get(photometric, f"colours of an unknown kind (photometric {photometric})"))
    if compression not in tiff_file.BYTES and compression not in _BY_PILLOW:
        raise refused(f"{compression_name(compression)} compression")
    if len(set(bits[:bands])) > 1:
        raise refused(f"bands of different depths ({', '.join(map(str, bits[:4]))} bits)")
    if len(set(numbers[:bands])) > 1:
        raise refused("bands of different kinds of numbers")
    if numbers[0] not in _NUMBERS:
        raise refused("complex numbers" if numbers[0] in (5, 6) else f"samples without a kind ({numbers[0]})")
    if photometric == PALETTE and compression not in tiff_file.BYTES:
        raise refused(f"a palette and {compression_name(compression)} compression")
    layout = Layout(
        directory, width, height, bands, bits[0], _NUMBERS[numbers[0]], photometric, compression,
        planar=bands > 1 and directory.number(284, 1) == 2, extra=directory.numbers(338),
    )  # fmt: skip
    _check_kind(layout, limits)
    return layout


def _check_kind(layout: Layout, limits: Limits) -> None:
    """Refuse what cannot be read whatever the rule says."""
    sizes = {"u": (*range(1, 17), 32, 64), "i": (8, 16, 32, 64), "f": (16, 32, 64)}[layout.number]
    if layout.bits not in sizes:
        raise refused(words(layout))
    if layout.bands < layout.colours:
        raise ImageUndecodable(f"the image is damaged: {layout.bands} bands, where its colours need {layout.colours}")
    if layout.photometric == CMYK and layout.directory.number(332, 1) != 1:
        raise refused("inks other than cyan, magenta, yellow and black")
    stored = layout.bands * layout.bits * (1 if not layout.planar else min(4, layout.bands) / layout.bands) / 8
    if stored * layout.width * layout.height > _MAX_BYTES_PER_PIXEL * limits.max_image_pixels:
        raise ImageTooLarge(
            f"the image has {layout.width} × {layout.height} pixels in {layout.bands} bands of {layout.bits} bits, more"
            f" than max_image_pixels = {limits.max_image_pixels} allows memory for"
        )


def is_simple(layout: Layout) -> bool:
    """Whether Pillow decodes it rightly: 8 bits or less, unsigned, bands beside each other, and no surprise in them."""
    if layout.number != "u" or layout.planar or layout.bits not in (1, 2, 4, 8):
        return False
    if layout.photometric in (YCBCR, LAB):
        return layout.bits == 8 and layout.bands == 3
    if layout.photometric == PALETTE:
        return False
    if layout.bits < 8:
        return layout.bands == 1
    return layout.bands == layout.colours or (layout.bands == 4 and layout.photometric == RGB and bool(layout.extra))


def words(layout: Layout) -> str:
    """What the samples are, as in "16-bit signed samples"."""
    kind = {"u": "unsigned", "i": "signed", "f": "floating-point"}[layout.number]
    number = "samples" if layout.number != "f" else "numbers"
    return f"{layout.bits}-bit {kind} {number}{' in a plane for each band' if layout.planar else ''}"


def compression_name(compression: int) -> str:
    """What people call a compression."""
    return _COMPRESSIONS.get(compression, f"unknown ({compression})")


def refused(what: str, hint: str = "") -> ImageFormatError:
    """The error about a TIFF that has something that is not read."""
    return ImageFormatError(f"the image is a TIFF with {what}, which is not read", hint=hint or _SAVE)
