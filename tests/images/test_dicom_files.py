"""The files that come with pydicom, of many makers and oddities, beside pydicom's own functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from embedserve.errors import ImageFormatError, ImageUndecodable
from embedserve.images import codec

pytest.importorskip("pydicom")

DAMAGED = {"MR_truncated.dcm", "badVR.dcm", "meta_missing_tsyntax.dcm", "rtplan_truncated.dcm"}
"""Files that were made to be damaged."""


def by_pydicom(path: Path) -> NDArray[np.float64]:
    """The picture by pydicom's own functions, 0 to 255, [H, W, 3]."""
    import pydicom
    from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut

    dataset: Any = pydicom.dcmread(path)
    stored = dataset.pixel_array
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        return np.asarray(apply_color_lut(stored, dataset) / 257)
    if dataset.SamplesPerPixel == 3:
        return np.asarray(stored.astype(float) * 255 / (2**dataset.BitsStored - 1))
    values = apply_modality_lut(stored, dataset).astype(float)
    low, high = values.min(), values.max()
    if "WindowCenter" in dataset:
        values = apply_voi_lut(values, dataset)
        slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
        first = -(2 ** (dataset.BitsStored - 1)) if dataset.PixelRepresentation else 0
        low, high = first * slope + intercept, (first + 2**dataset.BitsStored - 1) * slope + intercept
    elif dataset.BitsStored <= 8:
        low, high = 0, 2**dataset.BitsStored - 1
    grey = np.clip((values - low) / (high - low), 0, 1) * 255
    inverted = 255 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey
    return np.repeat(inverted[..., None], 3, axis=2)


@pytest.mark.filterwarnings("ignore")
def test_the_files_that_come_with_pydicom_are_read_as_it_reads_them_or_named() -> None:
    import pydicom

    paths = sorted((Path(pydicom.__file__).parent / "data" / "test_files").glob("*.dcm"))
    if not paths:
        pytest.skip("this pydicom comes without its files")
    read = refused = 0
    for path in paths:
        data = path.read_bytes()
        try:
            pixels = codec.decode(data)
        except ImageFormatError as error:
            refused += bool(error.hint)
        except ImageUndecodable:
            assert path.name in DAMAGED, path.name
        else:
            read += 1
            expected = by_pydicom(path)
            assert np.abs(pixels - expected).max() <= 1, path.name
    print(f"{read} of {len(paths)} files read, {refused} named")
    assert read >= 30
    assert read + refused >= len(paths) - len(DAMAGED)
