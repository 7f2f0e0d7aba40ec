"""AVIF and HEIC: which picture of a file is read, which way up, and what its sizes may be."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms, UnidentifiedImageError, features

from embedserve.errors import ImageFormatError, ImageUndecodable
from embedserve.images import boxes, codec
from embedserve.images.nclx import profile_of
from embedserve.images.pixel_rule import STORED
from embedserve.images.preprocess import PreprocessSpec, load
from tests.images.boxed_files import PICTURE, avif, box, heic
from tests.images.quarters import BLUE, assert_close, exif_with

pytestmark = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")

WRITERS = pytest.mark.parametrize("write", [avif, heic])


@WRITERS
def test_the_picture_is_read(write: Any) -> None:
    assert_close(codec.decode(write()), PICTURE, tolerance=2)
    square = load(PreprocessSpec(size_px=32), write())
    assert square.shape == (32, 32, 3)


@WRITERS
def test_grey_becomes_three_equal_channels(write: Any) -> None:
    grey = np.asarray(Image.fromarray(PICTURE).convert("L"))
    assert_close(codec.decode(write(grey)), np.repeat(grey[..., None], 3, axis=2), tolerance=2)


@WRITERS
@pytest.mark.parametrize("alpha", [0, 64, 255])
def test_transparency_is_composed_on_white(write: Any, alpha: int) -> None:
    pixels = np.dstack([PICTURE, np.full(PICTURE.shape[:2], alpha, np.uint8)])
    expected = PICTURE * (alpha / 255) + 255 * (1 - alpha / 255)
    assert_close(codec.decode(write(pixels)), expected.astype(np.uint8), tolerance=2)


def test_premultiplied_transparency_is_composed_once() -> None:
    pixels = np.dstack([PICTURE, np.full(PICTURE.shape[:2], 128, np.uint8)])
    data = avif(pixels, alpha_premultiplied=True)
    assert b"prem" in data
    expected = PICTURE * (128 / 255) + 255 * (1 - 128 / 255)
    assert_close(codec.decode(data), expected.astype(np.uint8), tolerance=3)


def upright(orientation: int) -> NDArray[np.uint8]:
    turns = {
        1: (0, False),
        2: (0, True),
        3: (2, False),
        4: (2, True),
        5: (1, True),
        6: (3, False),
        7: (3, True),
        8: (1, False),
    }
    quarter_turns, mirrored = turns[orientation]
    if orientation in (5, 7):  # transposed, or transposed along the other diagonal
        transposed = PICTURE.transpose(1, 0, 2)
        return transposed if orientation == 5 else transposed[::-1, ::-1]
    turned = np.rot90(PICTURE, quarter_turns)
    return turned[:, ::-1] if mirrored else turned


@WRITERS
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_exactly_once(write: Any, orientation: int) -> None:
    exif = exif_with(orientation)
    data = write(exif=exif if write is avif else exif.tobytes())
    assert_close(codec.decode(data), upright(orientation), tolerance=2)


XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="1"/></rdf:RDF></x:xmpmeta>'
)


@WRITERS
def test_an_orientation_in_the_metadata_alone_does_not_turn_the_picture(write: Any) -> None:
    data = write(xmp=XMP).replace(b'Orientation="1"', b'Orientation="6"')
    assert b'tiff:Orientation="6"' in data
    assert_close(codec.decode(data), PICTURE, tolerance=2)


def test_a_heic_of_ten_bits_is_read() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    sixteen = PICTURE.astype(np.uint16) * 257
    image = pillow_heif.from_bytes("RGB;16", (120, 80), sixteen.tobytes())
    out = io.BytesIO()
    image.save(out, quality=-1, chroma=444)
    assert_close(codec.decode(out.getvalue()), PICTURE, tolerance=2)


def test_of_several_pictures_in_a_heic_the_primary_is_read() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    file = pillow_heif.from_pillow(Image.new("RGB", (64, 64), BLUE))
    file.add_from_pillow(Image.fromarray(PICTURE))
    out = io.BytesIO()
    file.save(out, quality=-1, chroma=444, primary_index=1)
    assert_close(codec.decode(out.getvalue()), PICTURE, tolerance=2)


def test_a_thumbnail_in_a_heic_is_not_taken_for_the_picture() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    image = pillow_heif.from_pillow(Image.fromarray(PICTURE))
    image.info["thumbnails"] = [64]
    out = io.BytesIO()
    image.save(out, quality=-1, chroma=444, thumbnails=[64])
    assert codec.decode(out.getvalue(), min_side_px=32).shape == PICTURE.shape


def test_a_heic_of_tiles_is_one_picture() -> None:
    assert_close(codec.decode(heic(tile_size=64)), PICTURE, tolerance=2)


def test_of_a_sequence_the_still_image_is_read() -> None:
    blue = Image.new("RGB", (120, 80), BLUE)
    data = avif(save_all=True, append_images=[blue, blue])
    assert data[8:12] == b"avis"
    assert_close(codec.decode(data), PICTURE, tolerance=2)


def test_a_sequence_without_a_still_image_is_named() -> None:
    data = avif(save_all=True, append_images=[Image.new("RGB", (120, 80), BLUE)])
    with pytest.raises(ImageFormatError, match="sequence"):
        codec.decode(data.replace(b"pitm", b"free"))


@WRITERS
@pytest.mark.parametrize("brand", [b"mif1", b"avif", b"heic", b"miaf"])
def test_what_is_in_a_file_counts_whatever_its_brand(write: Any, brand: bytes) -> None:
    pytest.importorskip("pillow_heif")
    data = write()
    assert_close(codec.decode(data[:8] + brand + data[12:]), PICTURE, tolerance=2)
    end = int.from_bytes(data[:4], "big")  # and whatever the other brands
    bare = data[:8] + brand + data[12:16] + b"mif1" * ((end - 16) // 4) + data[end:]
    assert_close(codec.decode(bare), PICTURE, tolerance=2)


def test_premultiplied_transparency_of_a_heic_is_composed_once() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pixels = np.dstack([PICTURE // 2, np.full(PICTURE.shape[:2], 127, np.uint8)])
    out = io.BytesIO()
    pillow_heif.from_bytes("RGBa", (120, 80), pixels.tobytes()).save(out, quality=-1, chroma=444)
    assert b"prem" in out.getvalue()
    assert_close(codec.decode(out.getvalue()), PICTURE // 2 + 128, tolerance=3)


@WRITERS
def test_a_truncated_file_is_damaged_wherever_it_is_cut(write: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    data = write(noise)
    for percent in range(5, 100, 5):
        with pytest.raises(ImageUndecodable, match="damaged"):
            codec.decode(data[: len(data) * percent // 100])


@WRITERS
@pytest.mark.parametrize("rest", [b"SEFH\x6b\0\0\0\1\0\0\0 SEFT", bytes(50), b"\xff" * 7], ids=["SEF", "zeros", "ones"])
def test_what_phones_write_behind_the_picture_does_not_matter(write: Any, rest: bytes) -> None:
    assert_close(codec.decode(write() + rest), PICTURE, tolerance=2)


def test_other_code_of_the_process_does_not_meet_heic() -> None:
    codec.decode(heic())
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(heic()))


def with_property(data: bytes, added: bytes) -> bytes:
    """An AVIF with one item, which has one more property."""
    changed, grown = bytearray(data), len(added) + 1
    for name, growth in ((b"meta", grown), (b"iprp", grown), (b"ipco", len(added)), (b"ipma", 1)):
        at = data.index(name) - 4
        changed[at : at + 4] = (int.from_bytes(data[at : at + 4], "big") + growth).to_bytes(4, "big")
    offset = data.index(b"iloc") + 4 + 4 + 2 + 2 + 2 + 2 + 2
    changed[offset : offset + 4] = (int.from_bytes(data[offset : offset + 4], "big") + grown).to_bytes(4, "big")
    properties, uses = data.index(b"ipco") - 4, data.index(b"ipma") - 4
    properties_end = properties + int.from_bytes(data[properties : properties + 4], "big")
    uses_end = uses + int.from_bytes(data[uses : uses + 4], "big")
    count = len(list(boxes._boxes(data[properties + 8 : properties_end])))
    changed[uses + 18] += 1
    changed[uses_end:uses_end] = bytes([0x80 | count + 1])
    changed[properties_end:properties_end] = added
    return bytes(changed)


@pytest.mark.parametrize("turned", [False, True])
def test_only_the_part_of_an_avif_that_counts_is_taken(turned: bool) -> None:
    clean = struct.pack(">IIIIiIiI", 40, 1, 30, 1, -20, 1, 5, 1)  # 40 × 30, left of the middle and below it
    data = avif(exif=exif_with(6)) if turned else avif()
    data = with_property(data, box(b"clap", clean))
    part = PICTURE[30:60, 20:60]
    assert_close(codec.decode(data), np.rot90(part, 3) if turned else part, tolerance=2)
    outside = with_property(avif(), box(b"clap", struct.pack(">IIIIiIiI", 400, 1, 30, 1, 0, 1, 0, 1)))
    with pytest.raises(ImageUndecodable, match="damaged"):
        codec.decode(outside)


# --- Colours and bits ----------------------------------------------------------------------------------------------


def colours(primaries: int, transfer: int) -> bytes:
    return b"nclx" + struct.pack(">HHHB", primaries, transfer, 1, 0x80)


def test_colours_that_mean_srgb_need_no_profile() -> None:
    for primaries, transfer in ((1, 13), (2, 2), (1, 1), (6, 6), (5, 13)):
        assert profile_of(colours(primaries, transfer)) is None
    assert profile_of(b"prof" + bytes(200)) is None


@pytest.mark.parametrize(("primaries", "name"), [(12, "Display P3"), (9, "BT.2020")])
@pytest.mark.parametrize(("transfer", "gamma"), [(13, 0), (4, 2.2), (8, 1)])
def test_a_wide_gamut_in_numbers_is_the_profile_that_says_the_same(
    primaries: int, name: str, transfer: int, gamma: float
) -> None:
    """Against linear light, the matrices of CSS Color 4, and back."""
    to_srgb = {
        "Display P3": [[1.22494, -0.22494, 0], [-0.042057, 1.042057, 0], [-0.0196376, -0.078636, 1.0982736]],
        "BT.2020": [[1.660491, -0.587641, -0.07285], [-0.12455, 1.1329, -0.00835], [-0.018151, -0.100579, 1.11873]],
    }[name]
    stored = np.array([[[128, 128, 128], [150, 120, 100], [90, 140, 110], [200, 190, 180], [60, 70, 90]]], np.uint8)
    scaled = stored / 255
    linear = (
        np.where(scaled <= 0.04045, scaled / 12.92, ((scaled + 0.055) / 1.055) ** 2.4) if not gamma else scaled**gamma
    )
    srgb = np.clip(linear @ np.array(to_srgb).T, 0, 1)
    expected = np.where(srgb <= 0.0031308, srgb * 12.92, 1.055 * srgb ** (1 / 2.4) - 0.055) * 255
    profile = profile_of(colours(primaries, transfer))
    assert profile is not None
    converted = ImageCms.profileToProfile(
        Image.fromarray(stored), ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    )
    assert converted is not None
    assert np.abs(np.asarray(converted) - expected).max() <= 1.5


def test_hdr_is_refused_by_its_name_where_colours_are_converted() -> None:
    data = avif()
    at = data.index(b"nclx") + 6
    hdr = data[:at] + struct.pack(">H", 16) + data[at + 2 :]
    with pytest.raises(ImageFormatError, match=r"HDR \(PQ\)"):
        codec.decode(hdr)
    assert codec.decode(hdr, rule=STORED).shape == PICTURE.shape


@pytest.mark.parametrize("bits", [10, 12])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_an_avif_of_more_than_eight_bits_is_read(bits: int, channels: int) -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    full = (1 << bits) - 1
    pixels = ((PICTURE.astype(np.uint32) * full + 127) // 255).astype(np.uint16)
    expected = PICTURE
    if channels == 1:
        pixels, expected = pixels[..., :1], np.repeat(PICTURE[..., :1], 3, axis=2)
    elif channels == 4:
        pixels = np.dstack([pixels, np.full(pixels.shape[:2], full, np.uint16)])
    data = imagecodecs.avif_encode(np.ascontiguousarray(pixels), level=100, bitspersample=bits, speed=10)
    assert_close(codec.decode(data), expected, tolerance=2)
