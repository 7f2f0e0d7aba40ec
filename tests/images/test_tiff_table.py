"""Every way of writing a TIFF that tifffile and imagecodecs have: decoded rightly, or refused by its name.

What is right is worked out from the array that was written, value by value.
"""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from embedserve.errors import ImageFormatError
from embedserve.images import codec
from embedserve.images.pixel_rule import PixelRule

HEIGHT, WIDTH = 19, 37
COMPRESSIONS = {
    "none": "",
    "lzw": "",
    "deflate": "",
    "adobe_deflate": "",
    "packbits": "",
    "lzma": "",
    "zstd": "",
    "webp": "WebP",
    "jpeg": "lossless JPEG|JPEG compression",
    "jpeg2000": "JPEG 2000",
    "jpegxl": "JPEG XL",
    "lerc": "LERC",
    "png": "PNG",
    "jpegxr": "JPEG XR",
}
"""Compression → what a refusal names where it is the compression that is refused."""
TYPES = ["bool", "u1", "u2", "u4", "i1", "i2", "i4", "f2", "f4", "f8", "2", "4", "10", "12", "14"]
"""NumPy's sample types, and numbers of bits that are packed."""
KINDS = ["minisblack", "miniswhite", "rgb", "rgb+unspecified", "rgb+assocalpha", "rgb+unassalpha", "rgb+2", "palette"]
KINDS += ["separated", "minisblack+unassalpha"]
RANGED = ("u4", "i1", "i2", "i4", "f2", "f4", "f8")
"""Types that are refused unless the rule has a range; written in fewer kinds."""
LAYOUTS: list[dict[str, Any]] = [{}, {"rowsperstrip": 5}, {"tile": (16, 16)}]

WANTED: dict[tuple[str, bool], NDArray[np.float64]] = {}


@cache
def values_of(kind: str, dtype: str) -> NDArray[Any]:
    """An array [HEIGHT, WIDTH(, bands)] that uses the whole range of the type."""
    random = np.random.default_rng(len(kind) * 31 + len(dtype))
    bands = {"rgb": 3, "separated": 4}.get(kind.split("+")[0], 1)
    bands += {"2": 2}.get(kind.partition("+")[2], 1 if "+" in kind else 0)
    shape = (HEIGHT, WIDTH, bands) if bands > 1 else (HEIGHT, WIDTH)
    if dtype == "bool":
        values: NDArray[Any] = random.integers(0, 2, shape).astype(bool)
    elif dtype.isdigit():
        top = 2 ** int(dtype)
        values = random.integers(0, top, shape).astype("u1" if top <= 256 else "u2")
    elif dtype[0] == "f":
        values = random.random(shape).astype(dtype)
    else:
        info = np.iinfo(dtype)
        values = random.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)
    if "assocalpha" in kind and "un" not in kind:
        values[..., :-1] = np.minimum(values[..., :-1], values[..., -1:])
    return values


def palette_of(bits: int) -> NDArray[np.uint16]:
    return np.random.default_rng(bits).integers(0, 65_536, (3, 2**bits)).astype(np.uint16)


def bits_of(dtype: str) -> int:
    return 1 if dtype == "bool" else int(dtype) if dtype.isdigit() else 8 * int(dtype[1])


def range_of(dtype: str) -> tuple[float, float]:
    if dtype[0] == "f":
        return 0.125, 0.75
    if dtype[0] == "i":
        return -(2 ** (bits_of(dtype) - 1)) // 2, 2 ** (bits_of(dtype) - 1) - 1
    return 0, 2 ** bits_of(dtype) - 1


def eight(value: float, ends: tuple[float, float]) -> int:
    low, high = (Fraction(end) for end in ends)
    scaled = math.floor((Fraction(value) - low) * 255 / (high - low) + Fraction(1, 2))
    return min(max(scaled, 0), 255)


def expected(kind: str, dtype: str, values: NDArray[Any]) -> NDArray[np.float64]:
    """RGB of 0 to 255 in [HEIGHT, WIDTH, 3], by the definition of each photometric interpretation."""
    bits = bits_of(dtype)
    table = {value: eight(value, range_of(dtype)) for value in np.unique(values).tolist()}
    wide = np.vectorize(table.__getitem__, otypes=[np.float64])(values)
    if kind == "palette":
        colours = np.vectorize(lambda value: eight(int(value), (0, 65_535)))(palette_of(bits))
        return np.moveaxis(colours[:, values.astype(int)], 0, -1).astype(np.float64)
    if kind == "separated":
        return (255 - wide[..., :3]) * (255 - wide[..., 3:]) / 255
    if kind == "miniswhite":
        wide = 255 - wide
    if wide.ndim == 2:
        return np.stack([wide] * 3, axis=-1)
    if kind == "minisblack+unassalpha":
        wide = np.concatenate([wide[..., :1]] * 3 + [wide[..., 1:]], axis=-1)
    colours = wide[..., :3]
    alpha = wide[..., -1:] / 255
    if kind == "rgb+assocalpha":
        return colours + 255 * (1 - alpha)
    if kind.endswith("unassalpha"):
        return colours * alpha + 255 * (1 - alpha)
    return colours


def written(compression: str) -> Iterator[tuple[str, str, bytes, NDArray[Any]]]:
    """Name, kind and sample type, bytes and values of each way in which tifffile writes with the compression."""
    for kind, dtype in itertools.product(KINDS, TYPES):
        values = values_of(kind, dtype)
        bits = bits_of(dtype)
        if dtype in RANGED and kind not in ("minisblack", "miniswhite", "rgb"):
            continue
        if compression == "jpeg":  # which blurs noise
            slopes = np.linspace(values.min(), values.max(), values.size).astype(values.dtype)
            values = slopes.reshape(*values.shape[:2], -1).reshape(values.shape)
        options: dict[str, Any] = {"photometric": kind.split("+")[0], "metadata": None}
        if dtype.isdigit():
            options["bitspersample"] = bits
        if kind == "palette":
            if bits > 16 or dtype[0] in "if":
                continue
            options["colormap"] = palette_of(bits)
        if "+" in kind:
            extra = kind.partition("+")[2]
            options["extrasamples"] = [extra] if extra != "2" else ["unspecified", "unspecified"]
        if compression != "none":
            options["compression"] = compression
            if compression == "lzma":
                options["compressionargs"] = {"level": 0}
        for planar, order, big, layout, predictor in itertools.product(
            ("contig", "separate"), "<>", (False, True), LAYOUTS, (1, 2, 3)
        ):
            if (planar == "separate" and values.ndim == 2) or (predictor > 1 and compression in ("none", "packbits")):
                continue
            if big and (layout or predictor > 1):  # only offsets are wider there
                continue
            if dtype == "bool" and values.ndim == 3 and planar == "contig":
                continue  # tifffile 2026.3 pads each pixel and says otherwise: it reads them as other values itself
            array = np.moveaxis(values, -1, 0) if planar == "separate" else values
            more: dict[str, Any] = {"planarconfig": planar} if values.ndim == 3 else {}
            if predictor > 1:
                more |= {"predictor": predictor}
            if order == ">" and dtype in ("10", "12", "14"):
                array = array.byteswap()  # tifffile 2026.3 packs the bytes in the wrong order
            more |= {"byteorder": order, "bigtiff": big}
            out = io.BytesIO()
            try:
                tifffile.imwrite(out, np.ascontiguousarray(array), **options, **layout, **more)
            except Exception:  # tifffile, or the codec, does not write this
                continue
            name = f"{kind} {dtype} {planar} {order} {big} {layout} {predictor}"
            yield name, f"{kind} {dtype}", out.getvalue(), values


def count(compression: str) -> tuple[int, int, list[str]]:
    """Files decoded rightly, files refused by their name, and a line for each other one."""
    right, refused, wrong = 0, 0, []
    unranged: set[str] = set()
    for name, what, data, values in written(compression):
        kind, dtype = what.split()
        rule = PixelRule()
        if dtype in RANGED:
            if what not in unranged and not COMPRESSIONS[compression]:
                unranged.add(what)
                with pytest.raises(ImageFormatError, match=f"{bits_of(dtype)}-bit .* samples, whose range"):
                    codec.decode(data)
                refused += 1
            rule = PixelRule(value_range=range_of(dtype))
        try:
            pixels = codec.decode(data, rule=rule)
        except ImageFormatError as error:
            named = COMPRESSIONS[compression] or f"{bits_of(dtype)}-bit"
            if re.search(named, str(error)) and error.hint:
                refused += 1
            else:
                wrong.append(f"{name}: {error}")
            continue
        except Exception as error:
            wrong.append(f"{name}: {error!r}")
            continue
        if pixels.shape != (HEIGHT, WIDTH, 3):
            wrong.append(f"{name}: {pixels.shape}")
            continue
        if (key := (what, compression == "jpeg")) not in WANTED:
            WANTED[key] = expected(kind, dtype, values)
        off = np.abs(pixels - WANTED[key]).max()
        # Lossy JPEG differs by more; what Pillow blends with white, or multiplies for CMYK, rounds once or twice.
        exact = "assalpha" not in kind and "assocalpha" not in kind and kind != "separated"
        if off <= (40 if compression == "jpeg" else 0 if exact else 2):
            right += 1
        else:
            wrong.append(f"{name}: off by {off}")
    return right, refused, wrong


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_tiff_is_decoded_rightly_or_refused_by_its_name(compression: str) -> None:
    right, refused, wrong = count(compression)
    assert wrong == []
    assert right + refused > 0
    row = f"| {compression} | {right} | {refused} |"
    assert row in Path(__file__).parents[2].joinpath("docs/images.md").read_text(encoding="utf-8"), row
