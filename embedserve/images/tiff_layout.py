"""What the header of a TIFF says about its samples, and the refusal, by name, of what is not read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from embedserve.errors import ImageFormatError, ImageTooLarge, ImageUndecodable
from embedserve.images import tiff_header as tags
from embedserve.images.pixel_rule import PixelRule
from embedserve.images.size_limits import check_size
from embedserve.images.tiff_header import Directory
from embedserve.types import Limits

MAX_BYTES_PER_PIXEL = 64
"""Of all bands together, as stored: 16 bands of 32 bits at the most pixels that the limits allow."""
_SMALL_BYTES = 4 << 20
"""What a tile may take even where the picture is smaller."""

BYTE_COMPRESSIONS = {1: "none", 5: "LZW", 8: "deflate", 32773: "PackBits", 32946: "deflate", 34925: "LZMA"}
BYTE_COMPRESSIONS |= {50000: "Zstandard"}
"""What gives bytes back as they were, whatever they stand for."""
PICTURE_COMPRESSIONS = {2: "CCITT RLE", 3: "CCITT group 3", 4: "CCITT group 4", 7: "JPEG"}
"""What is decoded as a picture of its own kind of samples."""
_PREDICTED = (5, 8, 32946, 34925, 50000)
_COMPRESSIONS = {6: "old-style JPEG", 9: "JBIG", 10: "JBIG", 22610: "JPEG XR", 32766: "NeXT", 32771: "CCITT RLE/W"}
_COMPRESSIONS |= {32809: "ThunderScan", 32908: "Pixar film", 32909: "PixarLog", 33003: "JPEG 2000", 33004: "JPEG 2000"}
_COMPRESSIONS |= {33005: "JPEG 2000", 33007: "lossless JPEG", 34661: "JBIG", 34676: "SGILog", 34677: "SGILog24"}
_COMPRESSIONS |= {34712: "JPEG 2000", 34713: "Nikon NEF", 34887: "LERC", 34892: "lossy DNG JPEG", 34933: "PNG"}
_COMPRESSIONS |= {
    34934: "JPEG XR",
    48124: "Jetraw",
    50002: "JPEG XL",
    52546: "JPEG XL",
    50001: "WebP",
    65535: "Pentax PEF",
}
_PHOTOMETRICS = {4: "a transparency mask", 8: "CIE Lab", 9: "ICC Lab", 10: "ITU Lab", 32803: "a colour filter array"}
_PHOTOMETRICS |= {32844: "LogL", 32845: "LogLuv", 34892: "linear raw", 51177: "a depth map"}
_KINDS = {1: "unsigned", 2: "signed", 3: "float", 5: "complex integer", 6: "complex"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Samples as they lie in the file."""

    width: int
    height: int
    bits: int
    kind: int
    """SampleFormat: 1 unsigned, 2 signed, 3 floating point."""
    samples: int
    """Per pixel."""
    photometric: int
    compression: int
    predictor: int
    planar: bool
    extras: tuple[int, ...]
    chunk_width: int
    """Of a tile; for strips that of the image."""
    chunk_height: int
    tiled: bool
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    value_range: tuple[float, float] | None
    """What becomes 0 and 255; None where samples of up to 8 bits are taken as they are."""

    @property
    def across(self) -> int:
        """Chunks beside each other."""
        return -(-self.width // self.chunk_width)

    @property
    def down(self) -> int:
        """Chunks below each other."""
        return -(-self.height // self.chunk_height)

    @property
    def chunk_row_bytes(self) -> int:
        """Bytes of a row of a chunk."""
        return -(-self.chunk_width * (1 if self.planar else self.samples) * self.bits // 8)


def refuse(
    what: str, hint: str = "save it with 8 or 16 bits per channel, as RGB or grey, without compression"
) -> NoReturn:
    """Refuse an intact file for what it is."""
    raise ImageFormatError(f"the TIFF has {what}, which is not read", hint=hint)


def layout_of(directory: Directory, limits: Limits, rule: PixelRule) -> Layout:
    """The layout of the samples, all limits checked.

    Raises:
        ImageUndecodable: fields are missing or contradict each other.
        ImageFormatError: it is a kind of TIFF that is not read; the message names it.
        ImageTooLarge: more pixels, or more bytes of samples, than allowed.
    """
    width, height = directory.number(tags.WIDTH, 0), directory.number(tags.LENGTH, 0)
    if width < 1 or height < 1:
        raise ImageUndecodable(f"the image is damaged: the TIFF is {width} × {height} pixels")
    check_size(width, height, limits)
    compression = directory.number(tags.COMPRESSION, 1)
    if compression not in BYTE_COMPRESSIONS and compression not in PICTURE_COMPRESSIONS:
        name = _COMPRESSIONS.get(compression, "an unknown")
        refuse(f"{name} compression (number {compression})", "save it without compression, or with deflate or LZW")
    samples = directory.number(tags.SAMPLES, 1)
    if not 1 <= samples <= 65_535:
        raise ImageUndecodable(f"the image is damaged: the TIFF has {samples} samples per pixel")
    photometric = directory.number(tags.PHOTOMETRIC, 2 if samples >= 3 else 0)
    lab = photometric == 8 and rule.colour == "srgb" and compression in BYTE_COMPRESSIONS and samples == 3
    if photometric not in (0, 1, 2, 3, 5, 6) and not lab:
        refuse(f"{_PHOTOMETRICS.get(photometric, 'unknown')} samples (PhotometricInterpretation {photometric})")
    if photometric == 5 and directory.number(tags.INK_SET, 1) != 1:
        refuse("inks other than cyan, magenta, yellow and black")
    bits, kind = _sample_type(directory)
    if lab and (bits, kind) != (8, 1):
        refuse(f"CIE Lab colours in {bits}-bit {_KINDS[kind]} samples")
    tiled = tags.TILE_OFFSETS in directory.fields
    chunk_width = directory.number(tags.TILE_WIDTH, 0) if tiled else width
    chunk_height = directory.number(tags.TILE_LENGTH, 0) if tiled else directory.number(tags.ROWS_PER_STRIP, height)
    if chunk_width < 1 or chunk_height < 1:
        raise ImageUndecodable(f"the image is damaged: its strips or tiles are {chunk_width} × {chunk_height} pixels")
    base = {2: 3, 5: 4, 6: 3, 8: 3}.get(photometric, 1)
    if samples < base:
        raise ImageUndecodable(f"the image is damaged: {samples} samples per pixel, and {base} are needed")
    extras = directory.integers(tags.EXTRA_SAMPLES)[: samples - base]
    layout = Layout(
        width=width,
        height=height,
        bits=bits,
        kind=kind,
        samples=samples,
        photometric=photometric,
        compression=compression,
        predictor=directory.number(tags.PREDICTOR, 1) if compression in _PREDICTED else 1,
        planar=directory.number(tags.PLANAR, 1) == 2 and samples > 1,
        extras=extras + (0,) * (samples - base - len(extras)),
        chunk_width=chunk_width,
        chunk_height=chunk_height if tiled else min(chunk_height, height),
        tiled=tiled,
        offsets=directory.integers(tags.TILE_OFFSETS if tiled else tags.STRIP_OFFSETS),
        counts=directory.integers(tags.TILE_COUNTS if tiled else tags.STRIP_COUNTS),
        value_range=_value_range(directory, bits, kind, rule),
    )
    return _checked(layout, directory, limits)


def _sample_type(directory: Directory) -> tuple[int, int]:
    all_bits = set(directory.integers(tags.BITS) or (1,))
    kinds = set(directory.integers(tags.SAMPLE_FORMAT) or (1,))
    if len(all_bits) > 1 or len(kinds) > 1:
        refuse(f"samples of different types ({' and '.join(str(bits) for bits in sorted(all_bits))} bits)")
    bits, kind = all_bits.pop(), kinds.pop()
    kind = 1 if kind == 4 else kind  # "undefined" is what writers say that mean bytes
    if kind not in (1, 2, 3) or not 1 <= bits <= 64:
        refuse(f"{bits}-bit {_KINDS.get(kind, 'undefined')} samples")
    if (kind == 3 and bits not in (16, 32, 64)) or (kind == 2 and bits not in (8, 16, 32, 64)) or 32 < bits < 64:
        refuse(f"{bits}-bit {_KINDS[kind]} samples")
    return bits, kind


def _value_range(directory: Directory, bits: int, kind: int, rule: PixelRule) -> tuple[float, float] | None:
    if directory.number(tags.PHOTOMETRIC, 1) == 3 or (kind == 1 and bits <= 8):
        return None
    if not isinstance(rule.value_range, str):
        return rule.value_range
    if rule.value_range == "tag":
        for low_tag, high_tag in ((tags.MIN_SAMPLE, tags.MAX_SAMPLE), (tags.S_MIN, tags.S_MAX)):
            low, high = directory.values(low_tag), directory.values(high_tag)
            # NaN and infinities compare as false.
            if low and high and -1e300 < min(low) < max(high) < 1e300:
                return min(low), max(high)
    if kind == 1 and bits <= 16:
        return 0, 2**bits - 1
    raise ImageFormatError(
        f"the TIFF has {bits}-bit {_KINDS[kind]} samples, whose range is not defined",
        hint="save it with 8 or 16 bits per channel, or train with --set value_range=0,1 or what the samples span",
    )


def _checked(layout: Layout, directory: Directory, limits: Limits) -> Layout:
    chunks = layout.across * layout.down * (layout.samples if layout.planar else 1)
    if len(layout.offsets) < chunks:
        raise ImageUndecodable(f"the image is damaged: {len(layout.offsets)} strips or tiles of {chunks}")
    if len(layout.counts) < chunks:
        if layout.compression != 1:
            raise ImageUndecodable("the image is damaged: the TIFF does not say how long its strips or tiles are")
        object.__setattr__(layout, "counts", (layout.chunk_row_bytes * layout.chunk_height,) * chunks)
    if max(layout.offsets[:chunks]) > len(directory.data):
        raise ImageUndecodable("the image is damaged: strips or tiles lie behind its end")
    if min(layout.counts[:chunks]) == 0:
        refuse("strips or tiles that are left out")
    stored = layout.width * layout.height * layout.samples * layout.bits // 8
    if stored > MAX_BYTES_PER_PIXEL * limits.max_image_pixels:
        raise ImageTooLarge(f"the TIFF has {stored} bytes of samples; max_image_pixels is {limits.max_image_pixels}")
    if layout.tiled and layout.chunk_row_bytes * layout.chunk_height > max(stored, _SMALL_BYTES):
        raise ImageTooLarge(f"the tiles of the TIFF are {layout.chunk_width} × {layout.chunk_height} pixels")
    if layout.tiled and layout.chunk_width * layout.bits % 8:
        refuse(f"tiles of {layout.chunk_width} pixels, not a multiple of 16")
    if layout.predictor not in (1, 2, 3):
        refuse(f"predictor {layout.predictor}")
    if (layout.predictor == 2 and layout.bits not in (8, 16, 32, 64)) or (layout.predictor == 3 and layout.kind != 3):
        refuse(f"predictor {layout.predictor} on {layout.bits}-bit {_KINDS[layout.kind]} samples")
    if layout.compression in PICTURE_COMPRESSIONS or layout.photometric == 6:
        _check_picture(layout, directory)
    return layout


def _check_picture(layout: Layout, directory: Directory) -> None:
    name = (BYTE_COMPRESSIONS | PICTURE_COMPRESSIONS)[layout.compression]
    what = f"{layout.samples} × {layout.bits}-bit samples with {name} compression"
    if layout.compression in (2, 3, 4):
        if layout.photometric not in (0, 1) or layout.samples != 1 or layout.bits != 1:
            refuse(what)
        return
    if layout.bits != 8 or layout.kind != 1 or layout.planar or layout.photometric in (0, 3):
        refuse(what + (" in planes" if layout.planar else ""))
    if layout.extras and (layout.extras not in ((1,), (2,)) or layout.photometric not in (1, 2)):
        refuse(what)
    if layout.photometric != 6 or layout.compression not in BYTE_COMPRESSIONS:
        return
    subsampling = directory.integers(tags.SUBSAMPLING) or (2, 2)
    if layout.compression == 1 and subsampling != (1, 1):
        refuse(f"YCbCr samples subsampled {subsampling[0]} × {subsampling[-1]} without compression")
    parts = directory.values(tags.REFERENCE_BLACK_WHITE)
    levels = [top / bottom if bottom else 0 for top, bottom in zip(parts[::2], parts[1::2], strict=False)]
    if levels and levels != [0, 255, 128, 255, 128, 255]:
        refuse("YCbCr samples with black and white levels of their own")
