"""Every way of writing a TIFF that tifffile knows: the files, and what is in them by an independent, slow reading."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

HEIGHT, WIDTH = 20, 36
BYTES = ("none", "zlib", "lzw", "packbits", "lzma", "zstd")
PIXELS = ("jpeg", "webp", "jpeg2000", "jpegxl", "png", "lerc", "jpegxr", "ccittrle", "ccitt_t4", "ccitt_t6")
ORDERS = ("<", ">")
LAYOUTS = ("strips", "one strip", "tiles")


@dataclass(frozen=True)
class Kind:
    """What the samples of a picture are."""

    name: str
    dtype: str
    bands: int
    photometric: str
    extra: tuple[str, ...] = ()
    bits: int = 0
    """Of a sample, where they are not those of the type."""


def _kinds() -> list[Kind]:
    found = []
    for dtype in ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "f2", "f4", "f8"):
        for photometric in ("minisblack", "miniswhite"):
            found.append(Kind(f"{dtype} grey", dtype, 1, photometric))
        found.append(Kind(f"{dtype} grey and alpha", dtype, 2, "minisblack", ("unassalpha",)))
        found.append(Kind(f"{dtype} grey and another", dtype, 2, "minisblack", ("unspecified",)))
        found.append(Kind(f"{dtype} five bands", dtype, 5, "minisblack", ("unspecified",) * 4))
        found.append(Kind(f"{dtype} RGB", dtype, 3, "rgb"))
        for extra in ("unspecified", "assocalpha", "unassalpha"):
            found.append(Kind(f"{dtype} RGB and {extra}", dtype, 4, "rgb", (extra,)))
        found.append(Kind(f"{dtype} RGB and three", dtype, 6, "rgb", ("unspecified",) * 3))
        found.append(Kind(f"{dtype} CMYK", dtype, 4, "separated"))
    for bits in (*range(2, 8), *range(9, 16)):
        found.append(Kind(f"{bits}-bit grey", "u2" if bits > 8 else "u1", 1, "minisblack", (), bits))
    found += [Kind("bits", "?", 1, photometric) for photometric in ("minisblack", "miniswhite")]
    found += [Kind(f"{dtype} palette", dtype, 1, "palette") for dtype in ("u1", "u2")]
    return found


KINDS = {f"{kind.name}, {kind.photometric}": kind for kind in _kinds()}


def samples(kind: Kind) -> NDArray[Any]:
    """Samples [H, W, B] that fill the range of their type: ramps in several directions, and the ends."""
    dtype = np.dtype(kind.dtype)
    y, x, band = np.mgrid[0:HEIGHT, 0:WIDTH, 0 : kind.bands]
    share = ((x * (3 + band) + y * (7 + 2 * band) + 11 * band) % 97) / 96
    if dtype.kind == "b":
        return share > 0.5
    if dtype.kind == "f":
        return (share * 1.5 - 0.25).astype(dtype)
    bits = kind.bits or dtype.itemsize * 8
    low, high = (0, 2**bits - 1) if dtype.kind == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    whole = [low + round(Fraction(value).limit_denominator(96) * (high - low)) for value in share.ravel().tolist()]
    return np.array(whole, dtype=dtype).reshape(share.shape)


def written(
    kind: Kind, *, compression: str, order: Any, layout: str, separate: bool, predictor: bool = False, big: bool = False
) -> bytes | None:
    """The file; None where tifffile does not write such a one."""
    data = samples(kind)
    if kind.bands == 1:
        data = data[..., 0]
    elif separate:
        data = np.moveaxis(data, 2, 0)
    options: dict[str, Any] = {
        "photometric": kind.photometric,
        "compression": None if compression == "none" else compression,
        "planarconfig": ("separate" if separate else "contig") if kind.bands > 1 else None,
        "extrasamples": kind.extra or None,
        "metadata": None,
    }
    if kind.bits:
        options["bitspersample"] = kind.bits
    if predictor:
        options["predictor"] = True
    if kind.photometric == "palette":
        options["colormap"] = palette(kind)
    if layout == "tiles":
        options["tile"] = (16, 16)
    else:
        options["rowsperstrip"] = 7 if layout == "strips" else HEIGHT
    out = io.BytesIO()
    try:
        with tifffile.TiffWriter(out, byteorder=order, bigtiff=big) as file:
            file.write(data, **options)
    except (ValueError, TypeError, KeyError, RuntimeError, NotImplementedError, tifffile.TiffFileError):
        return None
    if kind.bits and not np.array_equal(tifffile.imread(io.BytesIO(out.getvalue())), data):
        return None  # tifffile 2026.3.3 packs big-endian samples of 9 to 15 bits after swapping their bytes
    return out.getvalue()


def palette(kind: Kind) -> NDArray[np.uint16]:
    """uint16 [3, 2^bits]: colours that are all different."""
    count = 2 ** (8 * np.dtype(kind.dtype).itemsize)
    index = np.arange(count, dtype=np.uint64)
    return np.stack([index * 40503 % 65536, index * 9973 % 65536, 65535 - index * 257 % 65536]).astype(np.uint16)


def expected(
    kind: Kind, low: float | None = None, high: float | None = None, *, data: NDArray[Any] | None = None
) -> NDArray[np.uint8] | None:
    """The picture, uint8 [H, W, 3], worked out number by number; None where black and white are not defined."""
    data, dtype = samples(kind) if data is None else data, np.dtype(kind.dtype)
    bits = kind.bits or dtype.itemsize * 8
    if dtype.kind == "b":
        low, high = 0, 1
    elif dtype.kind == "u" and bits <= 16:
        low, high = (0, 2**bits - 1) if low is None or bits <= 8 else (low, high)
    if low is None or high is None:
        return None
    if kind.photometric == "palette":
        colours = [[_share(int(value), 0, 65535) for value in entry] for entry in palette(kind).T]
        table = np.array([[_byte(value) for value in entry] for entry in colours], np.uint8)
        return table[data[..., 0]]
    shares_of = {value: _share(value, low, high) for value in np.unique(data).tolist()}
    out = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    full = (0, 2**bits - 1) if dtype.kind == "u" and bits <= 16 else (low, high)
    for y, x in itertools.product(range(HEIGHT), range(WIDTH)):
        pixel = data[y, x].tolist()
        shares = [shares_of[value] for value in pixel]
        if kind.photometric == "separated":
            out[y, x] = [_byte((1 - ink) * (1 - shares[3])) for ink in shares[:3]]
            continue
        colour = [shares[0]] * 3 if kind.photometric.startswith("minis") else shares[:3]
        if kind.photometric == "miniswhite":
            colour = [1 - share for share in colour]
        if kind.extra and kind.extra[0].endswith("alpha"):
            alpha = _share(pixel[len(shares) - len(kind.extra)], *full)
            if kind.extra[0] == "assocalpha":
                colour = [min(share / alpha, Fraction(1)) if alpha else Fraction(0) for share in colour]
            colour = [share * alpha + (1 - alpha) for share in colour]
        out[y, x] = [_byte(share) for share in colour]
    return out


def _share(value: float, low: float, high: float) -> Fraction:
    return min(max((Fraction(value) - Fraction(low)) / (Fraction(high) - Fraction(low)), Fraction(0)), Fraction(1))


def _byte(share: Fraction) -> int:
    return int(share * 255 + Fraction(1, 2))


def read_back(kind: Kind, data: bytes) -> NDArray[np.uint8] | None:
    """The picture of a file that loses something, from the samples that tifffile and imagecodecs read."""
    return expected(kind, data=tifffile.imread(io.BytesIO(data)).reshape(HEIGHT, WIDTH, kind.bands))


def every_way() -> Iterator[tuple[Kind, dict[str, Any]]]:
    """All combinations of kind, layout, byte order, compression and predictor."""
    for kind in KINDS.values():
        usual = kind.bits or kind.dtype in ("u1", "u2", "?")
        for compression, order, layout in itertools.product(
            BYTES if usual else ("none", "zlib", "lzw"), ORDERS, LAYOUTS if usual else ("strips",)
        ):
            for separate in (False, True) if kind.bands > 1 else (False,):
                yield kind, {"compression": compression, "order": order, "layout": layout, "separate": separate}
        for compression in PIXELS:
            yield kind, {"compression": compression, "order": "<", "layout": "strips", "separate": False}
        for compression, order in itertools.product(("zlib", "lzw"), ORDERS):
            yield (
                kind,
                {
                    "compression": compression,
                    "order": order,
                    "layout": "strips",
                    "separate": False,
                    "predictor": True,
                },
            )
        for order in ORDERS:
            yield kind, {"compression": "none", "order": order, "layout": "strips", "separate": False, "big": True}
