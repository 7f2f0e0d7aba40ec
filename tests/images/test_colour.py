"""Colour profiles: a picture that is written in other colours comes back as it was."""

from __future__ import annotations

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageCms

from embedserve.errors import ImageFormatError
from embedserve.images import codec, colour, jpeg
from embedserve.images.matrix_profile import ADOBE_GAMMA, ADOBE_RGB, matrix_profile
from embedserve.images.pixel_rule import STORED
from tests.images.quarters import encoded

PROFILES = {
    "Display P3": matrix_profile(((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))),
    "Adobe RGB": matrix_profile(ADOBE_RGB, gamma=ADOBE_GAMMA),
    "ProPhoto": matrix_profile(
        ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001 + 0.001)), white=(0.3457, 0.3585), gamma=1.8
    ),
}
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def picture() -> NDArray[np.uint8]:
    """Colours within sRGB, smooth enough for a JPEG."""
    y, x = np.meshgrid(np.linspace(70, 190, 64), np.linspace(70, 190, 80), indexing="ij")
    return np.stack([x, y, 250 - (x + y) / 2], axis=-1).astype(np.uint8)


def stored_in(profile: bytes) -> Image.Image:
    """The picture in the colours of the profile."""
    target = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    source = ImageCms.createProfile("sRGB")
    return ImageCms.profileToProfile(
        Image.fromarray(picture()), source, target, ImageCms.Intent.RELATIVE_COLORIMETRIC, outputMode="RGB"
    ) or Image.new("RGB", (1, 1))


OPTIONS: dict[str, dict[str, object]] = {
    "JPEG": {"quality": 98, "subsampling": 0},
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {"compression": "tiff_lzw"},
}


def distance(pixels: NDArray[np.uint8], expected: NDArray[np.uint8]) -> int:
    return int(np.abs(pixels.astype(int) - expected.astype(int)).max())


@pytest.mark.parametrize("format", OPTIONS)
@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_a_picture_in_other_colours_comes_back(format: str, profile: bytes) -> None:
    stored = stored_in(profile)
    data = encoded(stored, format, icc_profile=profile, **OPTIONS[format])
    assert distance(codec.decode(data), picture()) <= (9 if format == "JPEG" else 4)
    assert distance(codec.decode(data, rule=STORED), np.asarray(stored)) <= (5 if format == "JPEG" else 0)


@pytest.mark.parametrize("simplejpeg", [True, False])
def test_both_ways_of_decoding_a_jpeg_convert_alike(monkeypatch: pytest.MonkeyPatch, simplejpeg: bool) -> None:
    if not simplejpeg:
        monkeypatch.setattr(jpeg, "_simplejpeg", lambda: None)
    profile = PROFILES["Display P3"] + bytes(150_000)  # in three segments
    data = encoded(stored_in(profile), "JPEG", icc_profile=profile, exif=exif(), **OPTIONS["JPEG"])
    assert distance(codec.decode(data), picture()) <= 7


@pytest.mark.parametrize("format", OPTIONS)
def test_srgb_itself_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch, format: str) -> None:
    data = encoded(Image.fromarray(picture()), format, icc_profile=SRGB, **OPTIONS[format])
    codec.decode(data)
    monkeypatch.setattr(colour, "_converted", lambda *_: pytest.fail("something was converted"))
    notes: list[str] = []
    np.testing.assert_array_equal(codec.decode(data, notes=notes), codec.decode(data, rule=STORED))
    assert notes == []


@pytest.mark.parametrize(
    ("mode", "profile", "says"),
    [
        ("RGB", b"", "missing"),
        ("RGB", b"nonsense" * 100, "damaged"),
        ("RGB", PROFILES["Adobe RGB"][:200], "damaged"),
        ("RGB", PROFILES["Adobe RGB"][:16] + b"CMYK" + PROFILES["Adobe RGB"][20:], "CMYK colours"),
        ("RGB", PROFILES["Adobe RGB"][:12] + b"link" + PROFILES["Adobe RGB"][16:], "kind"),
        ("L", PROFILES["Adobe RGB"], "the picture is grey"),
        ("CMYK", PROFILES["Adobe RGB"], "the picture is CMYK"),
        ("RGB", PROFILES["Adobe RGB"][:300] + b"\xff" * (len(PROFILES["Adobe RGB"]) - 300), "damaged"),
        ("RGB", bytes(colour.MAX_PROFILE_BYTES + 1), "bytes, more than"),
    ],
)
def test_a_profile_that_cannot_be_used_is_left_out_and_noted(mode: str, profile: bytes, says: str) -> None:
    image = Image.fromarray(picture()).convert(mode)
    notes: list[str] = []
    assert np.array_equal(np.asarray(colour.to_srgb(image.copy(), profile, notes)), np.asarray(image))
    assert len(notes) == 1
    assert says in notes[0]


def test_a_jpeg_that_lacks_a_part_of_its_profile_is_read_without_it() -> None:
    profile = PROFILES["Display P3"] + bytes(150_000)
    data = encoded(Image.fromarray(picture()), "JPEG", icc_profile=profile, **OPTIONS["JPEG"])
    at = data.index(b"ICC_PROFILE\0\2") - 4
    data = data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]
    notes: list[str] = []
    assert distance(codec.decode(data, notes=notes), picture()) <= 5
    assert "missing" in notes[0]


def test_transparent_pictures_are_converted_before_they_are_composed_on_white() -> None:
    profile = PROFILES["Adobe RGB"]
    image = stored_in(profile)
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, (0, 0, 10, 64))
    alpha.paste(128, (10, 0, 20, 64))
    image.putalpha(alpha)
    pixels = codec.decode(encoded(image, "PNG", icc_profile=profile))
    share = np.asarray(alpha)[..., None] / 255
    assert distance(pixels, (picture() * share + 255 * (1 - share)).astype(np.uint8)) <= 4


def test_a_palette_is_converted() -> None:
    profile = PROFILES["Adobe RGB"]
    image = Image.new("P", (1, 1))
    image.putpalette([10, 200, 30])
    expected = codec.decode(encoded(image.convert("RGB"), "PNG", icc_profile=profile))
    assert codec.decode(encoded(image, "PNG", icc_profile=profile)).tolist() == expected.tolist() != [[[10, 200, 30]]]


def test_an_lab_tiff_has_its_colours() -> None:
    lab = ImageCms.profileToProfile(
        Image.fromarray(picture()), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    # Eight bits of a* and b* are up to 8 levels of blue apart.
    assert distance(codec.decode(encoded(lab, "TIFF")), picture()) <= 8


def test_the_profile_of_a_tiff_with_sixteen_bits_is_applied() -> None:
    profile = PROFILES["Adobe RGB"]
    values = np.asarray(stored_in(profile)).astype(np.uint16) * 257
    out = io.BytesIO()
    tifffile.imwrite(out, values, photometric="rgb", iccprofile=profile)
    assert distance(codec.decode(out.getvalue()), picture()) <= 4


def exif(*, interoperability: str = "R98", colour_space: int = 65535) -> bytes:
    block = Image.Exif()
    block[0x0112] = 1
    block.get_ifd(0x8769)[0xA001] = colour_space
    block.get_ifd(0x8769)[0xA005] = {1: interoperability}
    return block.tobytes()


@pytest.mark.parametrize("simplejpeg", [True, False])
def test_a_camera_says_adobe_rgb_in_its_exif_block(monkeypatch: pytest.MonkeyPatch, simplejpeg: bool) -> None:
    if not simplejpeg:
        monkeypatch.setattr(jpeg, "_simplejpeg", lambda: None)
    stored = stored_in(PROFILES["Adobe RGB"])
    as_adobe = encoded(stored, "JPEG", exif=exif(interoperability="R03"), **OPTIONS["JPEG"])
    assert distance(codec.decode(as_adobe), picture()) <= 7
    as_srgb = encoded(stored, "JPEG", exif=exif(interoperability="R03", colour_space=1), **OPTIONS["JPEG"])
    assert distance(codec.decode(as_srgb), np.asarray(stored)) <= 5


def test_threads_share_what_was_decided() -> None:
    files = [encoded(stored_in(profile), "PNG", icc_profile=profile) for profile in PROFILES.values()] * 8
    colour._decisions.clear()
    with ThreadPoolExecutor(8) as pool:
        assert all(distance(pixels, picture()) <= 4 for pixels in pool.map(codec.decode, files))
    assert len(colour._decisions) <= colour._CACHED


def test_the_memory_of_decisions_is_bounded() -> None:
    image = Image.fromarray(picture())
    for number in range(2 * colour._CACHED):
        colour.to_srgb(image, b"no profile %d" % number)
    assert len(colour._decisions) <= colour._CACHED


def with_chunk(data: bytes, kind: bytes, body: bytes) -> bytes:
    """A PNG with one more chunk after its header."""
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return data[:33] + chunk + data[33:]


P3_NUMBERS = (31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)


def test_a_png_names_its_colours_by_numbers() -> None:
    data = encoded(stored_in(PROFILES["Display P3"]), "PNG")
    assert distance(codec.decode(with_chunk(data, b"cICP", bytes([12, 13, 0, 1]))), picture()) <= 4
    by_primaries = with_chunk(
        with_chunk(data, b"gAMA", struct.pack(">I", 45455)), b"cHRM", struct.pack(">8I", *P3_NUMBERS)
    )
    assert distance(codec.decode(by_primaries), picture()) <= 4
    says_srgb = with_chunk(by_primaries, b"sRGB", b"\0")
    np.testing.assert_array_equal(codec.decode(says_srgb), codec.decode(data))
    with pytest.raises(ImageFormatError, match="HDR"):
        codec.decode(with_chunk(data, b"cICP", bytes([9, 16, 0, 1])))


@pytest.mark.parametrize("numbers", [(0,) * 8, (1,) * 8, (2**32 - 1,) * 8, (31270, 32900) * 4], ids=str)
def test_numbers_that_are_no_colours_are_left_out(numbers: tuple[int, ...]) -> None:
    data = encoded(Image.fromarray(picture()), "PNG")
    data = with_chunk(with_chunk(data, b"gAMA", struct.pack(">I", 45455)), b"cHRM", struct.pack(">8I", *numbers))
    np.testing.assert_array_equal(codec.decode(data), picture())
