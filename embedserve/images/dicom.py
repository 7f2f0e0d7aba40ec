"""DICOM with one frame, through pydicom, an optional package: the picture that a viewer shows first.

Grey values are rescaled, brought to 0…255 by the file's first window or table, and inverted where white is the lowest.
Standard: DICOM PS3.3, sections C.7.6.3 (pixels), C.11.1 (rescaling), C.11.2 (windows); PS3.5, annex G (RLE).
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from typing import TYPE_CHECKING, Any

from embedserve.errors import ImageFormatError, ImageUndecodable
from embedserve.images.dicom_file import BIG_ENDIAN, DEFLATED, EXPLICIT, IMPLICIT, DicomFile, read_dicom
from embedserve.images.dicom_levels import Levels, levels_table, look_up, table_of
from embedserve.images.formats import DICOM, HEAD_BYTES, TIFF, kind_of
from embedserve.images.jpeg import check_scans
from embedserve.images.jpeg_header import read_header
from embedserve.images.pixel_rule import PixelRule
from embedserve.images.size_limits import check_size
from embedserve.types import Limits

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_RLE = "1.2.840.10008.1.2.5"
_JPEG_BASELINE, _JPEG_EXTENDED = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"
_UNCOMPRESSED = (IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN)
_NAMES = {
    "1.2.840.10008.1.2.4.57": "lossless JPEG",
    "1.2.840.10008.1.2.4.70": "lossless JPEG",
    "1.2.840.10008.1.2.4.80": "JPEG-LS",
    "1.2.840.10008.1.2.4.81": "JPEG-LS",
    "1.2.840.10008.1.2.4.90": "JPEG 2000",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
    "1.2.840.10008.1.2.4.110": "JPEG XL",
    "1.2.840.10008.1.2.4.111": "JPEG XL",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
    "1.2.840.10008.1.2.4.201": "high-throughput JPEG 2000",
    "1.2.840.10008.1.2.4.202": "high-throughput JPEG 2000",
    "1.2.840.10008.1.2.4.203": "high-throughput JPEG 2000",
}
_GREY, _COLOUR = ("MONOCHROME1", "MONOCHROME2"), ("RGB", "YBR_FULL", "YBR_FULL_422")
_UNCOMPRESS = "write it uncompressed: gdcmconv --raw FILE.dcm FILE2.dcm"
_SAVE = "save what a viewer shows as PNG"
_PALETTE = ((0x00281101, 0x00281201), (0x00281102, 0x00281202), (0x00281103, 0x00281203))
_PYDICOM = re.compile(r"pydicom\b")
_NAMED_RGB = re.compile(rb"\xff[\xc0-\xc2].{7}\x03[Rr].{2}[Gg].{2}[Bb]", re.DOTALL)
"""The header of a JPEG whose three colours have these names."""
_GROUPS = (0x52009229, 0x52009230)
_WANTED = frozenset((
    0x00080060, 0x00280002, 0x00280004, 0x00280006, 0x00280008, 0x00280010, 0x00280011, 0x00280100, 0x00280101,
    0x00280102, 0x00280103, 0x00280106, 0x00280107, 0x00280120, 0x00280121, 0x00281050, 0x00281051, 0x00281052,
    0x00281053, 0x00281056, 0x00281101, 0x00281102, 0x00281103, 0x00281201, 0x00281202, 0x00281203, 0x00283000,
    0x00283010, *_GROUPS,
))  # fmt: skip


def is_dicom(data: bytes) -> bool:
    """Whether bytes are DICOM, and can be read as such. What can be opened as TIFF as well, as slides can, is not."""
    from PIL import Image, UnidentifiedImageError

    kind = kind_of(data[:HEAD_BYTES])
    if data[128:132] != b"DICM" or not DICOM.readable or kind is not TIFF:
        return kind is DICOM and DICOM.readable
    try:
        with Image.open(io.BytesIO(data), formats=("TIFF",)):
            return False
    except UnidentifiedImageError:
        return True


def decode_dicom(data: bytes, limits: Limits, rule: PixelRule, notes: list[str] | None = None) -> NDArray[np.uint8]:
    """The pixels of a DICOM file with one frame.

    Args:
        data: the bytes of the file.
        limits: are enforced before pixels are decoded.
        rule: its ``value_range`` says which rescaled values become 0 and 255: "tag", the window of the file; "full",
            all that the stored bits can hold; or two numbers, such as Hounsfield units.
        notes: receives what was decided without the file saying so.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ImageUndecodable: the file is damaged.
        ImageFormatError: it has no image, several frames, or pixels of a kind that is not read.
        ImageTooLarge: more pixels than the limits allow.
    """
    file = read_dicom(data, _WANTED, limits)
    header = _Header(file)
    width, height = header.number("Columns"), header.number("Rows")
    if file.fragments is None or not width or not height:
        what = "floating-point pixels, whose range is not defined" if file.has_float_pixels else "no image in it"
        kind = f" ({header.text('Modality')})" if header.text("Modality") else ""
        raise ImageFormatError(f"the file is DICOM{kind} with {what}", hint="leave it out")
    check_size(width, height, limits)
    if (frames := header.number("NumberOfFrames", 1)) > 1:
        raise ImageFormatError(
            f"the image is DICOM with {frames} frames; one is read", hint="save the frames that matter as PNG"
        )
    return _Pixels(file, header, width, height).to_rgb(rule, notes)


class _Header:
    """Values of a DICOM file, by the names that the standard gives them."""

    def __init__(self, file: DicomFile) -> None:
        _quiet()
        from pydicom.filereader import read_dataset

        self._dataset = read_dataset(io.BytesIO(file.elements), file.implicit, file.little_endian)
        self.little_endian = file.little_endian

    def find(self, name: str) -> Any:
        """The value; None without it. In newer files, some values are in a group for the frame."""
        if (value := self._dataset.get(name)) is not None:
            return value
        for tag in _GROUPS:
            for group in self._dataset[tag].value[:1] if tag in self._dataset else ():
                for inner in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                    for item in (group.get(inner) or ())[:1]:
                        if (value := item.get(name)) is not None:
                            return value
        return None

    def number(self, name: str, default: int = 0) -> int:
        """A whole number."""
        value = self.decimal(name)
        return default if value is None else int(value)

    def decimal(self, name: str) -> float | None:
        """The first number of a value; None without it."""
        value = self.find(name)
        if isinstance(value, (str, bytes)) or value is None:
            return float(value) if value else None
        try:
            return float(value)
        except TypeError:
            return float(value[0]) if len(value) else None

    def text(self, name: str) -> str:
        """Text without the spaces around it."""
        value = self.find(name)
        return value.strip(" \0") if isinstance(value, str) else ""

    def table(self, sequence: str) -> tuple[int, NDArray[np.uint16], int] | None:
        """The first table of a sequence: see ``table_of``."""
        for item in (self.find(sequence) or ())[:1]:
            return table_of(item["LUTDescriptor"].value, item["LUTData"].value, self.little_endian)
        return None

    def palette(self) -> list[tuple[int, NDArray[np.uint16], int]]:
        """The tables for red, green and blue."""
        if any(tag not in self._dataset for pair in _PALETTE for tag in pair):
            raise ImageFormatError("the image is DICOM whose palette is missing or in segments", hint=_SAVE)
        return [
            table_of(self._dataset[descriptor].value, self._dataset[values].value, self.little_endian)
            for descriptor, values in _PALETTE
        ]


def _quiet() -> None:
    """Keep pydicom's warnings about files that are not quite as they should be out of the caller's output."""
    # Filters are of the whole process, and so is this one: it names pydicom's modules alone, and stays.
    if not any(module == _PYDICOM for _, _, _, module, _ in warnings.filters):
        warnings.filterwarnings("ignore", module=_PYDICOM.pattern)
        logging.getLogger("pydicom").setLevel(logging.CRITICAL)


class _Pixels:
    """The pixels of one frame."""

    def __init__(self, file: DicomFile, header: _Header, width: int, height: int) -> None:
        self._file, self._header, self._width, self._height = file, header, width, height
        self._photometric = header.text("PhotometricInterpretation")
        self._samples = header.number("SamplesPerPixel", 1)
        self._allocated = header.number("BitsAllocated")
        self._bits = header.number("BitsStored", self._allocated)
        self._high_bit = header.number("HighBit", self._bits - 1)
        self._signed = header.number("PixelRepresentation") == 1

    def to_rgb(self, rule: PixelRule, notes: list[str] | None) -> NDArray[np.uint8]:
        """uint8 [H, W, 3]."""
        import numpy as np

        self._check()
        codes = self._codes()
        if self._photometric in _COLOUR:
            return self._colour(codes)
        if codes.ndim == 3:
            raise ImageUndecodable("the image is damaged: it is grey, and its pixels are coloured")
        if self._photometric == "PALETTE COLOR":
            every = np.arange(1 << self._bits)
            channels = []
            for first, table, bits in self._header.palette():
                eight = (table.astype(np.float64) * 255 / ((1 << bits) - 1) + 0.5).astype(np.uint8)
                channels.append(eight[np.clip(every - first, 0, len(eight) - 1)])
            return look_up(np.stack(channels, axis=1), codes)
        grey = levels_table(self._levels(), codes, rule.value_range, notes)
        return look_up(np.repeat(grey[:, None], 3, axis=1), codes)

    def _levels(self) -> Levels:
        header = self._header
        return Levels(
            bits=self._bits,
            signed=self._signed,
            inverted=self._photometric == "MONOCHROME1",
            slope=1.0 if (slope := header.decimal("RescaleSlope")) is None else slope,
            intercept=header.decimal("RescaleIntercept") or 0.0,
            modality=header.table("ModalityLUTSequence"),
            center=header.decimal("WindowCenter"),
            width=header.decimal("WindowWidth"),
            function=header.text("VOILUTFunction") or "LINEAR",
            voi=header.table("VOILUTSequence"),
            smallest=self._stored("SmallestImagePixelValue"),
            largest=self._stored("LargestImagePixelValue"),
            padding=self._stored("PixelPaddingValue"),
            padding_limit=self._stored("PixelPaddingRangeLimit"),
        )

    def _stored(self, name: str) -> float | None:
        """A stored value, which some programs write without its sign."""
        value = self._header.decimal(name)
        return value - 0x10000 if value is not None and value > 0x7FFF and self._signed else value

    def _check(self) -> None:
        what, syntax = "", self._file.syntax
        if syntax not in (*_UNCOMPRESSED, _RLE, _JPEG_BASELINE, _JPEG_EXTENDED):
            name = _NAMES.get(syntax, f"the transfer syntax {syntax}")
            raise ImageFormatError(f"the image is DICOM compressed with {name}, which is not read", hint=_UNCOMPRESS)
        if self._photometric not in (*_GREY, *_COLOUR, "PALETTE COLOR"):
            what = f"colours of the kind {self._photometric!r}"
        elif self._allocated not in (1, 8, 16):
            what = f"{self._allocated} bits per sample"
        if what:
            raise ImageFormatError(f"the image is DICOM with {what}, which is not read", hint=_SAVE)
        if self._samples != (3 if self._photometric in _COLOUR else 1):
            raise ImageUndecodable(f"the image is damaged: it is {self._photometric} with {self._samples} samples")
        if not 0 < self._bits <= self._high_bit + 1 <= self._allocated:
            raise ImageUndecodable(
                f"the image is damaged: it has {self._bits} bits up to number {self._high_bit} of {self._allocated}"
            )

    def _codes(self) -> NDArray[Any]:
        """Stored samples, uint8 or uint16, [H, W] or [H, W, 3]: their bits alone, with no sign yet."""
        import numpy as np

        syntax, fragments = self._file.syntax, self._file.fragments or ()
        if syntax in (_JPEG_BASELINE, _JPEG_EXTENDED):
            return self._jpeg(b"".join(fragments))
        samples = self._rle(b"".join(fragments)) if syntax == _RLE else self._uncompressed(b"".join(fragments))
        shift, mask = self._high_bit + 1 - self._bits, (1 << self._bits) - 1
        if shift:
            samples = samples >> shift
        return samples if self._bits == 8 * samples.itemsize else samples & np.asarray(mask, samples.dtype)

    def _uncompressed(self, data: bytes) -> NDArray[Any]:
        import numpy as np

        count = self._width * self._height * self._samples
        if self._photometric == "YBR_FULL_422":
            return self._with_full_chroma(self._samples_of(data, self._width * self._height * 2))
        if self._allocated == 1:
            bits = np.frombuffer(data, np.uint8, self._needed(data, -(-count // 8)))
            return np.unpackbits(bits, bitorder="little")[:count].reshape(self._height, self._width)
        samples = self._samples_of(data, count)
        if self._samples == 1:
            return samples.reshape(self._height, self._width)
        if self._header.number("PlanarConfiguration"):
            return samples.reshape(3, self._height, self._width).transpose(1, 2, 0)
        return samples.reshape(self._height, self._width, 3)

    def _samples_of(self, data: bytes, count: int) -> NDArray[Any]:
        import numpy as np

        size = self._allocated // 8
        self._needed(data, count * size)
        if size == 1 and self._file.pixel_words and not self._file.little_endian:
            words = np.frombuffer(data, ">u2")  # two pixels in each, the second one first
            return words.astype("<u2").view(np.uint8)[:count]
        order = "<" if self._file.little_endian else ">"
        return np.frombuffer(data, np.dtype(f"{order}u{size}"), count)

    def _needed(self, data: bytes, size: int) -> int:
        if len(data) < size:
            raise ImageUndecodable(f"the image is damaged: it has {len(data)} bytes of pixels, not {size}")
        return size

    def _with_full_chroma(self, samples: NDArray[Any]) -> NDArray[Any]:
        """Two pixels share a blue and a red difference: Y Y Cb Cr."""
        import numpy as np

        if self._width % 2:
            raise ImageUndecodable("the image is damaged: pixels share colours in pairs, and its width is odd")
        groups = samples.reshape(self._height, self._width // 2, 4)
        full = np.empty((self._height, self._width, 3), samples.dtype)
        full[:, 0::2, 0], full[:, 1::2, 0] = groups[..., 0], groups[..., 1]
        full[..., 1:] = np.repeat(groups[..., 2:], 2, axis=1)
        return full

    def _rle(self, data: bytes) -> NDArray[Any]:
        """Each byte of each sample is a segment of its own, the highest byte first, packed as TIFF's PackBits."""
        import numpy as np
        from PIL import Image

        size, count = self._allocated // 8, self._width * self._height
        if self._allocated == 1 or self._photometric == "YBR_FULL_422":
            raise ImageFormatError("the image is DICOM with RLE of a kind that is not read", hint=_UNCOMPRESS)
        header = np.frombuffer(data, "<u4", 16) if len(data) >= 64 else np.zeros(16, np.uint32)
        segments = int(header[0])
        offsets = [int(offset) for offset in header[1 : segments + 1]]
        if segments != size * self._samples or sorted(offsets) != offsets or offsets[0] < 64:
            raise ImageUndecodable("the image is damaged: its segments of RLE are not where they should be")
        samples = np.zeros((self._samples, count), np.uint16 if size == 2 else np.uint8)
        for number, (first, end) in enumerate(zip(offsets, [*offsets[1:], len(data)], strict=True)):
            plane = np.asarray(Image.frombytes("L", (count, 1), data[first:end], "packbits", "L"))[0]
            samples[number // size] |= plane.astype(samples.dtype) << (8 * (size - 1 - number % size))
        grid = samples.reshape(self._samples, self._height, self._width)
        return grid[0] if self._samples == 1 else grid.transpose(1, 2, 0)

    def _jpeg(self, data: bytes) -> NDArray[Any]:
        """The pixels of a JPEG; those of a coloured one are RGB, or as the file's colours say."""
        import numpy as np
        from PIL import Image, UnidentifiedImageError

        if self._bits != 8 or self._allocated != 8:
            raise ImageFormatError(
                f"the image is DICOM compressed with JPEG of {self._bits} bits, which is not read", hint=_UNCOMPRESS
            )
        if (header := read_header(data)) is not None and not header.ordinary:
            raise ImageFormatError("the image is DICOM with an unusual JPEG in it, which is not read", hint=_UNCOMPRESS)
        check_scans(data)
        try:
            opened = Image.open(io.BytesIO(data), formats=("JPEG",))
        except UnidentifiedImageError:
            raise ImageUndecodable("the image is damaged: the header of the JPEG in it cannot be read") from None
        with opened as image:
            if image.size != (self._width, self._height) or image.mode != ("RGB" if self._samples == 3 else "L"):
                raise ImageUndecodable(f"the image is damaged: its JPEG is {image.width} × {image.height} {image.mode}")
            says = {"jfif", "adobe_transform"} & image.info.keys() or _NAMED_RGB.search(data)
            if self._photometric == "RGB" and not says:
                image.draft("YCbCr", image.size)  # as stored: the JPEG itself does not say what its colours are
            return np.asarray(image)

    def _colour(self, codes: NDArray[Any]) -> NDArray[np.uint8]:
        import numpy as np
        from PIL import Image

        if self._bits != 8:
            table = np.arange(1 << self._bits) * 255 / ((1 << self._bits) - 1) + 0.5
            codes = table.astype(np.uint8)[codes]
        codes = np.ascontiguousarray(codes)
        if self._photometric == "RGB" or self._file.syntax in (_JPEG_BASELINE, _JPEG_EXTENDED):
            return codes.copy()
        return np.array(Image.frombytes("YCbCr", (self._width, self._height), codes.tobytes()).convert("RGB"))
