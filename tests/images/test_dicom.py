"""DICOM: every picture as a viewer shows it first, or refused by name. Expected values are the standard's formulas."""

from __future__ import annotations

import io
import struct
import threading
import warnings
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from embedserve.errors import ImageFormatError, ImageTooLarge, ImageUndecodable
from embedserve.images import codec
from embedserve.images.pixel_rule import STORED, PixelRule
from embedserve.types import Limits
from tests.images.medical import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    JPEG,
    JPEG_2000,
    RLE,
    dicom,
    grey,
    table,
    window,
)
from tests.images.quarters import QUARTERS, assert_close, encoded

SYNTAXES = {"implicit": IMPLICIT, "explicit": EXPLICIT, "deflated": DEFLATED, "big-endian": BIG_ENDIAN, "RLE": RLE}
HOUNSFIELD = np.array([[-1024, -161, -160, -60], [0, 39, 40, 41], [240, 241, 1000, 3071]], np.int16)


def row(pixels: NDArray[np.uint8]) -> list[list[int]]:
    listed: list[list[int]] = pixels.reshape(-1, 3).tolist()
    return listed


@pytest.mark.parametrize("syntax", SYNTAXES.values(), ids=SYNTAXES)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_grey_is_rescaled_and_windowed_however_it_is_written(dtype: type, syntax: str) -> None:
    stored: NDArray[Any] = (np.arange(35).reshape(5, 7) * 7).astype(dtype)
    data = dicom(stored, syntax, RescaleSlope="2", RescaleIntercept="-100", WindowCenter="100", WindowWidth="300")
    expected = grey([window(2 * int(value) - 100, 100, 300) for value in stored.flat])
    assert row(codec.decode(data)) == expected


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("center", "width"), [(40, 400), (40, 1.5), (0.5, 1), (-600, 1600)])
def test_each_function_of_a_window_is_that_of_the_standard(function: str, center: float, width: float) -> None:
    data = dicom(HOUNSFIELD, WindowCenter=str(center), WindowWidth=str(width), VOILUTFunction=function)
    expected = grey([window(int(value), center, width, function) for value in HOUNSFIELD.flat])
    assert row(codec.decode(data)) == expected


def test_of_several_windows_the_first_is_taken() -> None:
    data = dicom(HOUNSFIELD, WindowCenter=["40", "-600"], WindowWidth=["400", "1600"])
    assert row(codec.decode(data)) == grey([window(int(value), 40, 400) for value in HOUNSFIELD.flat])


def test_where_white_is_lowest_the_picture_is_inverted() -> None:
    values = {"WindowCenter": "40", "WindowWidth": "400"}
    bright = codec.decode(dicom(HOUNSFIELD, **values))
    np.testing.assert_array_equal(
        codec.decode(dicom(HOUNSFIELD, PhotometricInterpretation="MONOCHROME1", **values)), 255 - bright
    )


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("bits", "high_bit"), [(12, 11), (12, 13), (10, 15), (16, 15)])
def test_only_the_bits_that_are_stored_count(bits: int, high_bit: int, signed: bool) -> None:
    values = np.array([[0, 1, 100, (1 << bits) - 1, 1 << (bits - 1)]], np.uint16)
    shift = high_bit + 1 - bits
    noise = np.uint16(~(((1 << bits) - 1) << shift) & 0xFFFF)  # overlays and rubbish in all other bits
    data = dicom(
        values << shift | noise,
        BitsStored=bits,
        HighBit=high_bit,
        PixelRepresentation=int(signed),
        WindowCenter="50",
        WindowWidth="200",
    )
    meant = [int(value) - (1 << bits) if signed and value >> (bits - 1) else int(value) for value in values.flat]
    assert row(codec.decode(data)) == grey([window(value, 50, 200) for value in meant])


def test_a_table_for_display_is_applied() -> None:
    entries = np.array([0, 1000, 4095, 2000], np.uint16)
    stored = np.array([[9, 10, 11, 12, 13, 14, 200]], np.uint16)
    data = dicom(stored, VOILUTSequence=table(entries, 10, 12))
    assert row(codec.decode(data)) == grey([e * 255 / 4095 for e in (0, 0, 1000, 4095, 2000, 2000, 2000)])


def test_a_table_of_the_modality_is_applied_before_the_window() -> None:
    entries = np.array([5, 500, 50, 300], np.uint16)
    stored = np.array([[0, 1, 2, 3, 4]], np.uint16)
    data = dicom(stored, ModalityLUTSequence=table(entries, 0, 16), WindowCenter="250", WindowWidth="400")
    assert row(codec.decode(data)) == grey([window(e, 250, 400) for e in (5, 500, 50, 300, 300)])


def test_padding_is_black_and_does_not_count() -> None:
    stored = np.array([[-2000, 100, 200, 300]], np.int16)
    for photometric, expected in (("MONOCHROME2", [0, 0, 127.5, 255]), ("MONOCHROME1", [0, 255, 127, 0])):
        data = dicom(stored, PixelPaddingValue=-2000, PhotometricInterpretation=photometric)
        assert row(codec.decode(data)) == grey(expected)


def test_padding_of_signed_pixels_may_be_written_without_its_sign() -> None:
    data = dicom(np.array([[-2000, 100, 200, 300]], np.int16), PixelPaddingValue=-2000)
    unsigned = data.replace(b"\x28\0\x20\x01SS", b"\x28\0\x20\x01US")
    assert unsigned != data
    assert row(codec.decode(unsigned)) == grey([0, 0, 127.5, 255])


def test_without_a_window_the_range_of_the_image_is_taken_and_noted() -> None:
    stored = np.array([[1000, 1100, 1200]], np.uint16)
    notes: list[str] = []
    assert row(codec.decode(dicom(stored), notes=notes)) == grey([0, 127.5, 255])
    assert notes == ["the DICOM image has no window: its own lowest and highest value became black and white"]
    named = dicom(stored, SmallestImagePixelValue=1000, LargestImagePixelValue=1400)
    assert row(codec.decode(named, notes=notes)) == grey([0, 63.75, 127.5])
    assert len(notes) == 1


def test_eight_bits_without_a_window_stay_as_they_are() -> None:
    stored = np.array([[7, 100, 200]], np.uint8)
    assert row(codec.decode(dicom(stored))) == grey([7, 100, 200])


def test_a_value_range_of_the_encoder_comes_before_the_window() -> None:
    data = dicom(HOUNSFIELD, WindowCenter="40", WindowWidth="400", RescaleIntercept="0", RescaleSlope="1")
    lung = PixelRule(value_range=(-1000, 1000))
    expected = grey([min(max((int(value) + 1000) / 2000, 0), 1) * 255 for value in HOUNSFIELD.flat])
    assert row(codec.decode(data, rule=lung)) == expected
    full = grey([(int(value) + 32768) * 255 / 65535 for value in HOUNSFIELD.flat])
    assert row(codec.decode(data, rule=STORED)) == full


def test_a_newer_file_with_one_frame_has_its_window_in_a_group() -> None:
    from pydicom.dataset import Dataset

    transformation, voi, group = Dataset(), Dataset(), Dataset()
    transformation.RescaleSlope, transformation.RescaleIntercept = "2", "10"
    voi.WindowCenter, voi.WindowWidth = "50", "100"
    group.PixelValueTransformationSequence, group.FrameVOILUTSequence = [transformation], [voi]
    stored = np.array([[0, 10, 20, 40]], np.uint16)
    data = dicom(stored, NumberOfFrames="1", SharedFunctionalGroupsSequence=[group])
    assert row(codec.decode(data)) == grey([window(2 * int(value) + 10, 50, 100) for value in stored.flat])


# --- Colour --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("syntax", SYNTAXES.values(), ids=SYNTAXES)
def test_colours_are_read_pixel_by_pixel_or_plane_by_plane(syntax: str, planar: int) -> None:
    if syntax == RLE:
        data = dicom(QUARTERS, RLE)
    elif planar:
        data = dicom(QUARTERS, syntax, PixelData=QUARTERS.transpose(2, 0, 1).tobytes(), PlanarConfiguration=1)
    else:
        data = dicom(QUARTERS, syntax)
    np.testing.assert_array_equal(codec.decode(data), QUARTERS)


def ybr(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """PS3.3, C.7.6.3.1.2."""
    red, green, blue = (rgb[..., n].astype(float) for n in range(3))
    y = 0.299 * red + 0.587 * green + 0.114 * blue
    cb = -0.1687 * red - 0.3313 * green + 0.5 * blue + 128
    cr = 0.5 * red - 0.4187 * green - 0.0813 * blue + 128
    return np.clip(np.stack([y, cb, cr], axis=-1) + 0.5, 0, 255).astype(np.uint8)


def test_luminance_and_colour_differences_become_rgb() -> None:
    data = dicom(ybr(QUARTERS), PhotometricInterpretation="YBR_FULL")
    assert np.abs(codec.decode(data).astype(int) - QUARTERS).max() <= 2


def test_colour_differences_that_two_pixels_share_are_read() -> None:
    full = ybr(QUARTERS)
    pairs = np.stack([full[:, 0::2, 0], full[:, 1::2, 0], full[:, 0::2, 1], full[:, 0::2, 2]], axis=-1)
    data = dicom(QUARTERS, PixelData=pairs.tobytes(), PhotometricInterpretation="YBR_FULL_422")
    assert np.abs(codec.decode(data).astype(int) - QUARTERS).max() <= 2


@pytest.mark.parametrize("bits", [8, 16])
def test_a_palette_is_looked_up(bits: int) -> None:
    colours = np.array([[200, 30, 30], [30, 180, 40], [20, 40, 190], [128, 128, 128]])
    values: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for number, name in enumerate(("Red", "Green", "Blue")):
        entries = colours[:, number] * (257 if bits == 16 else 1)
        values[f"{name}PaletteColorLookupTableDescriptor"] = [4, 0, bits]
        values[f"{name}PaletteColorLookupTableData"] = entries.astype("<u2" if bits == 16 else "u1").tobytes()
    stored = np.array([[0, 1, 2, 3, 9]], np.uint8)
    assert row(codec.decode(dicom(stored, **values))) == [*colours.tolist(), colours[3].tolist()]


def test_a_jpeg_within_that_is_none_is_damaged() -> None:
    size = {"Rows": 3, "Columns": 4, "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2"}
    bits = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0}
    with pytest.raises(ImageUndecodable, match="the header of the JPEG in it cannot be read"):
        codec.decode(dicom(b"no JPEG at all, ", JPEG, **size, **bits))
    other = encoded(Image.new("L", (8, 8)), "JPEG")
    with pytest.raises(ImageUndecodable, match="its JPEG is 8 × 8 L"):
        codec.decode(dicom(other, JPEG, **size, **bits))


@pytest.mark.parametrize("photometric", ["YBR_FULL_422", "RGB", "MONOCHROME2"])
def test_a_jpeg_within_is_read(photometric: str) -> None:
    picture = Image.fromarray(QUARTERS)
    expected = QUARTERS
    if photometric == "MONOCHROME2":
        picture = picture.convert("L")
        expected = np.repeat(np.asarray(picture)[..., None], 3, axis=2)
    options = {"keep_rgb": True} if photometric == "RGB" else {}
    jpeg = encoded(picture, "JPEG", quality=95, subsampling=0, **options)
    data = dicom(
        jpeg,
        JPEG,
        Rows=32,
        Columns=48,
        SamplesPerPixel=1 if photometric == "MONOCHROME2" else 3,
        PhotometricInterpretation=photometric,
        BitsAllocated=8,
        BitsStored=8,
        HighBit=7,
        PixelRepresentation=0,
    )
    assert_close(codec.decode(data), expected, tolerance=2)


# --- What is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"NumberOfFrames": "12"}, "12 frames"),
        ({"PhotometricInterpretation": "YBR_PARTIAL_422"}, "YBR_PARTIAL_422"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "palette"),
        ({"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31}, "32 bits"),
        ({"VOILUTFunction": "GAMMA", "WindowCenter": "1", "WindowWidth": "2"}, "GAMMA"),
    ],
)
def test_what_is_not_read_is_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ImageFormatError, match=named) as caught:
        codec.decode(dicom(HOUNSFIELD, **values))
    assert caught.value.hint


def test_a_compression_that_is_not_read_is_named_with_a_way_out() -> None:
    data = dicom(
        b"\xff\x4f\xff\x51" + bytes(40),
        JPEG_2000,
        Rows=3,
        Columns=4,
        BitsAllocated=16,
        BitsStored=16,
        HighBit=15,
        SamplesPerPixel=1,
        PhotometricInterpretation="MONOCHROME2",
    )
    with pytest.raises(ImageFormatError, match="JPEG 2000") as caught:
        codec.decode(data)
    assert "gdcmconv" in caught.value.hint


def test_a_report_is_named_and_not_called_damaged() -> None:
    import pydicom

    dataset = pydicom.dcmread(io.BytesIO(dicom(HOUNSFIELD, Modality="SR")))
    del dataset.PixelData
    out = io.BytesIO()
    dataset.save_as(out)
    with pytest.raises(ImageFormatError, match=r"\(SR\) with no image"):
        codec.decode(out.getvalue())


@pytest.mark.parametrize("syntax", SYNTAXES.values(), ids=SYNTAXES)
def test_a_truncated_file_is_damaged(syntax: str) -> None:
    noise = np.random.default_rng(0).integers(0, 65536, (20, 30), dtype=np.uint16)
    data = dicom(noise, syntax)
    for percent in (50, 70, 90, 99):
        with pytest.raises(ImageUndecodable, match="damaged"):
            codec.decode(data[: len(data) * percent // 100])


# --- Limits --------------------------------------------------------------------------------------------------------


def test_the_size_is_checked_before_the_pixels() -> None:
    data = dicom(b"\0\0", Rows=60000, Columns=60000, BitsAllocated=8)
    with pytest.raises(ImageTooLarge, match="60000 × 60000"):
        codec.decode(data)


def test_a_deflated_file_may_not_grow_beyond_the_limit() -> None:
    data = dicom(np.zeros((1000, 1000), np.uint16), DEFLATED)
    assert len(data) < 10_000
    with pytest.raises(ImageTooLarge, match="inflated"):
        codec.decode(data, Limits(max_image_bytes=1_000_000))


def test_elements_by_the_million_are_refused_before_they_are_built() -> None:
    head = dicom(HOUNSFIELD)
    meta = head[: head.index(b"\x08\0\x16\0UI")]
    sequence = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
    items = struct.pack("<HHI", 0xFFFE, 0xE000, 0) * 200_000
    with pytest.raises(ImageUndecodable, match="50000 elements"):
        codec.decode(meta + sequence + items)


def test_an_element_that_is_there_twice_is_refused() -> None:
    data = dicom(HOUNSFIELD)
    rows = b"\x28\0\x10\0US\2\0\3\0"
    assert rows in data
    with pytest.raises(ImageUndecodable, match="0028,0010 twice"):
        codec.decode(data.replace(rows, rows * 2))


def test_a_file_that_is_not_quite_as_it_should_be_is_read_without_a_warning(capfd: pytest.CaptureFixture[str]) -> None:
    data = dicom(HOUNSFIELD, WindowCenter="40", WindowWidth="400").replace(b"DS\x04\x00400 ", b"DS\x04\x004E2 ")
    data = data.replace(b"CS\x02\x00CT", b"CS\x02\x00\xffT")
    expected = codec.decode(dicom(HOUNSFIELD, WindowCenter="40", WindowWidth="400"))
    found: list[NDArray[np.uint8]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        threads = [threading.Thread(target=lambda: found.append(codec.decode(data))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 4
    for pixels in found:
        np.testing.assert_array_equal(pixels, expected)
    assert capfd.readouterr().err == ""
