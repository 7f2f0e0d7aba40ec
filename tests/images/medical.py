"""DICOM files as pydicom writes them, and what the standard says their greys are, worked out value by value."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pydicom = pytest.importorskip("pydicom")

IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN = (f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".1.99", ".2"))
RLE, JPEG, JPEG_2000 = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.90"


def dicom(pixels: NDArray[Any] | bytes, syntax: str = EXPLICIT, **values: Any) -> bytes:
    """A file with the pixels, [H, W] or [H, W, 3], or with their bytes, and the values by their names."""
    from pydicom.dataset import Dataset, FileMetaDataset

    dataset: Any = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    dataset.Modality = "CT"
    if isinstance(pixels, np.ndarray):
        dataset.Rows, dataset.Columns = pixels.shape[:2]
        dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
        dataset.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
        if pixels.ndim == 3:
            dataset.PlanarConfiguration = 0
        dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.itemsize
        dataset.HighBit = dataset.BitsStored - 1
        dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
        dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
        if syntax == BIG_ENDIAN:
            dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
    else:
        dataset.PixelData = pixels
    compressed = syntax not in (IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN)
    for name, value in values.items():
        setattr(dataset, name, value)
    if compressed and isinstance(pixels, np.ndarray) and syntax == RLE:
        dataset.file_meta.TransferSyntaxUID = EXPLICIT
        dataset.compress(RLE, generate_instance_uid=False)
    elif compressed:
        dataset.PixelData = pydicom.encaps.encapsulate([dataset.PixelData])
        dataset["PixelData"].is_undefined_length = True
    if len(dataset.PixelData) % 2:
        dataset.PixelData += b"\0"
    wide = isinstance(pixels, np.ndarray) and pixels.itemsize == 2 and not compressed
    dataset["PixelData"].VR = "OW" if wide or syntax == IMPLICIT else "OB"
    out = io.BytesIO()
    if compressed:
        dataset.save_as(out, enforce_file_format=True)
    else:
        dataset.save_as(
            out,
            implicit_vr=syntax == IMPLICIT,
            little_endian=syntax != BIG_ENDIAN,
            enforce_file_format=True,
        )
    return out.getvalue()


def table(values: NDArray[np.uint16], first: int, bits: int) -> Any:
    """A sequence with a table for VOI or modality."""
    from pydicom.dataset import Dataset

    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(values) & 0xFFFF, first, bits])
    item.add_new("LUTData", "US", [int(value) for value in values])
    item.LUTExplanation = item.ModalityLUTType = "US"
    return [item]


def window(value: float, center: float, width: float, function: str = "LINEAR") -> float:
    """0 to 255 by PS3.3, C.11.2.1.2.1 and C.11.2.1.3: the pseudocode of the standard."""
    if function == "SIGMOID":
        return 255 / (1 + math.exp(min(-4 * (value - center) / width, 700)))
    if function == "LINEAR_EXACT":
        if value <= center - width / 2:
            return 0
        if value > center + width / 2:
            return 255
        return ((value - center) / width + 0.5) * 255
    if value <= center - 0.5 - (width - 1) / 2:
        return 0
    if value > center - 0.5 + (width - 1) / 2:
        return 255
    return ((value - (center - 0.5)) / (width - 1) + 0.5) * 255


def grey(values: Sequence[float]) -> list[list[int]]:
    """RGB of each grey, rounded."""
    return [[math.floor(value + 0.5)] * 3 for value in values]
