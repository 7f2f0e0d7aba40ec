"""Profiles of grey and of inks, and which picture is nearest when the same ones are stored in wide gamuts."""

from __future__ import annotations

import io
import itertools
import struct

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from embedserve.images import codec
from embedserve.images.matrix_profile import ADOBE_GAMMA, ADOBE_RGB, matrix_profile
from embedserve.images.pixel_rule import STORED
from tests.images.quarters import encoded

WIDE = {
    "Display P3": matrix_profile(((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))),
    "Adobe RGB": matrix_profile(ADOBE_RGB, gamma=ADOBE_GAMMA),
    "BT.2020": matrix_profile(((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)), gamma=2.4),
}


OPTIONS: dict[str, dict[str, object]] = {"JPEG": {"quality": 100}, "PNG": {}, "TIFF": {}}


def profile(kind: bytes, colours: bytes, space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile (ICC.1:2022) of these tags."""
    text = struct.pack(">4sIII2s2sII", b"mluc", 0, 1, 12, b"en", b"US", 2, 28) + b"\0x"
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    tags = {b"desc": text, b"cprt": text, b"wtpt": white, **tags}
    table, body, at = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += struct.pack(">4sII", name, at + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(">I4sI4s4s4s", at + len(body), bytes(4), 4 << 24, kind, colours, space)
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head + bytes(128 - len(head)) + struct.pack(">I", len(tags)) + table + body


def of_grey(gamma: float) -> bytes:
    curve = struct.pack(">4sIHHi", b"para", 0, 0, 0, round(gamma * 65536))
    return profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": curve})


def of_inks() -> bytes:
    """Inks of which each full one, and their mixtures, have a colour in L*a*b*: black takes all light, cyan is grey."""
    same = bytes(range(256))
    corners = b""
    for cyan, magenta, yellow, black in itertools.product((0, 1), repeat=4):
        lightness = 0 if black else 255 - 80 * cyan - 40 * magenta - 10 * yellow
        corners += bytes(
            [max(lightness, 0), 128 + (60 * magenta if not black else 0), 128 + (60 * yellow if not black else 0)]
        )
    table = struct.pack(">4sIBBBB", b"mft1", 0, 4, 3, 2, 0) + struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    return profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table + same * 4 + corners + same * 3})


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("gamma", [1.0, 1.8])
def test_grey_with_another_curve_becomes_the_grey_that_it_means(format: str, gamma: float) -> None:
    stored = np.tile(np.arange(0, 256, 5, dtype=np.uint8), (8, 1))
    data = encoded(
        Image.fromarray(stored), format, icc_profile=of_grey(gamma), **({"quality": 100} if format == "JPEG" else {})
    )
    light = (stored / 255.0) ** gamma
    expected = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055) * 255
    decoded = codec.decode(data)
    # Of the darkest linear greys one step is eight of sRGB.
    np.testing.assert_allclose(decoded[..., 0][:, 2:], expected[:, 2:], atol=3 if format != "JPEG" else 12)
    assert (decoded == decoded[..., :1]).all()
    np.testing.assert_allclose(codec.decode(data, rule=STORED)[..., 0], stored, atol=2 if format == "JPEG" else 0)


@pytest.mark.parametrize("format", ["TIFF", "JPEG"])
def test_inks_become_what_their_profile_says_and_not_what_their_names_say(format: str) -> None:
    inks = [(0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 0, 255)]
    stored = np.repeat(np.array(inks, np.uint8)[None], 8, axis=0).repeat(8, axis=1)
    data = encoded(
        Image.fromarray(stored, "CMYK"), format, icc_profile=of_inks(), **({"quality": 100} if format == "JPEG" else {})
    )
    white, cyan, magenta, black = codec.decode(data)[4, 4::8].astype(int)
    assert white.min() >= 250
    assert black.max() <= 5
    assert np.ptp(cyan) <= 4, "the profile says that this ink is grey"
    # By hand: L* is 68.6, so that Y = ((68.6 + 16) / 116)³ = 0.388 (CIE 1976), which sRGB stores as 168.
    assert abs(cyan.mean() - 168) <= 4
    assert magenta[0] > magenta[1] + 60
    naive = codec.decode(data, rule=STORED)[4, 12].astype(int)
    assert naive[0] <= 5
    assert naive[1] >= 250, "without the profile cyan takes the red light"


def pictures() -> list[NDArray[np.uint8]]:
    """Twelve pictures of one scene, each a little more colourful than the one before."""
    coarse = np.random.default_rng(5).integers(70, 186, (6, 8, 3))
    grey = coarse.mean(axis=2, keepdims=True)
    found = []
    for step in range(12):
        coloured = np.clip(grey + (coarse - grey) * (0.45 + 0.05 * step), 0, 255).astype(np.uint8)
        found.append(np.asarray(Image.fromarray(coloured).resize((80, 60), Image.Resampling.BICUBIC)))
    return found


@pytest.mark.parametrize("name", WIDE)
def test_each_picture_is_nearest_to_its_own_original(name: str) -> None:
    originals = pictures()
    target = ImageCms.ImageCmsProfile(io.BytesIO(WIDE[name]))
    vectors = [_unit(codec.decode(encoded(Image.fromarray(one), "PNG"))) for one in originals]
    nearest: dict[str, list[int]] = {"srgb": [], "stored": []}
    for one in originals:
        converted = ImageCms.profileToProfile(
            Image.fromarray(one), ImageCms.createProfile("sRGB"), target, ImageCms.Intent.RELATIVE_COLORIMETRIC
        )
        assert converted is not None
        data = encoded(converted, "PNG", icc_profile=WIDE[name])
        for rule, found in ((None, nearest["srgb"]), (STORED, nearest["stored"])):
            found.append(int(np.argmax([_unit(codec.decode(data, rule=rule)) @ vector for vector in vectors])))
    assert nearest["srgb"] == list(range(12))
    assert nearest["stored"] != list(range(12)), "the pictures are too different to show anything"


def _unit(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    vector = pixels.astype(np.float64).ravel() - 128
    return vector / np.linalg.norm(vector)
