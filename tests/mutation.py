"""Randomly damaged image files, the same for the same seed."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from embedserve.images.formats import AVIF, DICOM, HEIC

NASTY = (0, 1, 0x7F, 0x80, 0xFF)
"""Bytes at which lengths and signs overflow."""


def samples() -> dict[str, bytes]:
    """A small file of each format that is read, and of some that only look like one."""
    random_pixels = np.random.default_rng(0)
    noise = random_pixels.integers(0, 256, (61, 83, 3), dtype=np.uint8)
    y, x = np.mgrid[0:61, 0:83]
    smooth = np.stack([x * 3, y * 4, (x + y) * 2], axis=-1).astype(np.uint8)
    rgb, photo = Image.fromarray(noise), Image.fromarray(smooth)
    alpha = photo.convert("RGBA")
    alpha.putalpha(Image.fromarray(noise[..., 0]))
    grey16 = Image.fromarray((smooth[..., 0].astype(np.uint16)) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    frames = [Image.new("RGB", (20, 20), (n * 40, 0, 0)) for n in range(3)]
    made: dict[str, Callable[[io.BytesIO], None]] = {
        "jpeg": lambda out: photo.save(out, "JPEG", quality=85),
        "jpeg 444": lambda out: rgb.save(out, "JPEG", quality=95, subsampling=0),
        "jpeg exif": lambda out: photo.save(out, "JPEG", exif=exif),
        "jpeg progressive": lambda out: photo.save(out, "JPEG", progressive=True),
        "jpeg restarts": lambda out: photo.save(out, "JPEG", restart_marker_blocks=2),
        "jpeg optimised": lambda out: photo.save(out, "JPEG", optimize=True, subsampling="4:2:2"),
        "jpeg grey": lambda out: photo.convert("L").save(out, "JPEG"),
        "jpeg cmyk": lambda out: photo.convert("CMYK").save(out, "JPEG"),
        "png": lambda out: photo.save(out, "PNG"),
        "png alpha": lambda out: alpha.save(out, "PNG"),
        "png palette": lambda out: photo.convert("P").save(out, "PNG", transparency=3),
        "png 16": lambda out: grey16.save(out, "PNG"),
        "png 1": lambda out: photo.convert("1").save(out, "PNG"),
        "webp": lambda out: photo.save(out, "WEBP", quality=80),
        "webp lossless": lambda out: alpha.save(out, "WEBP", lossless=True),
        "webp animated": lambda out: frames[0].save(out, "WEBP", save_all=True, append_images=frames[1:]),
        "gif": lambda out: photo.convert("P").save(out, "GIF"),
        "gif animated": lambda out: frames[0].save(out, "GIF", save_all=True, append_images=frames[1:]),
        "bmp": lambda out: photo.save(out, "BMP"),
        "bmp palette": lambda out: photo.convert("P").save(out, "BMP"),
        "tiff": lambda out: photo.save(out, "TIFF"),
        "tiff lzw": lambda out: photo.save(out, "TIFF", compression="tiff_lzw"),
        "tiff deflate": lambda out: alpha.save(out, "TIFF", compression="tiff_adobe_deflate"),
        "tiff jpeg": lambda out: photo.save(out, "TIFF", compression="jpeg"),
        "tiff 16": lambda out: grey16.save(out, "TIFF"),
        "tiff pages": lambda out: frames[0].save(out, "TIFF", save_all=True, append_images=frames[1:]),
    }
    if AVIF.readable:
        made |= {
            "avif": lambda out: photo.save(out, "AVIF", speed=10, exif=exif),
            "avif alpha": lambda out: alpha.save(out, "AVIF", speed=10),
            "avif grey": lambda out: photo.convert("L").save(out, "AVIF", speed=10),
            "avif sequence": lambda out: frames[0].save(out, "AVIF", save_all=True, append_images=frames[1:]),
        }
    found = {}
    for name, save in made.items():
        out = io.BytesIO()
        save(out)
        found[name] = out.getvalue()
    return found | _heic(photo, alpha, exif) | _dicom(smooth)


def _heic(photo: Image.Image, alpha: Image.Image, exif: Image.Exif) -> dict[str, bytes]:
    if not HEIC.readable:
        return {}
    from pillow_heif import from_bytes

    found = {}
    for name, image, options in (
        ("heic", photo, {"exif": exif.tobytes()}),
        ("heic alpha", alpha, {}),
        ("heic tiles", photo, {"tile_size": 64}),
        ("heic thumbnail", photo, {"thumbnails": [32]}),
    ):
        out = io.BytesIO()
        from_bytes(image.mode, image.size, image.tobytes()).save(out, **options)
        found[name] = out.getvalue()
    return found


def _dicom(smooth: NDArray[np.uint8]) -> dict[str, bytes]:
    if not DICOM.readable:
        return {}
    from tests.images import medical

    signed, values = smooth[..., 0].astype(np.int16) * 9 - 1000, {"WindowCenter": "40", "WindowWidth": "400"}
    entries = np.arange(0, 65536, 256, dtype=np.uint16)
    jpeg = io.BytesIO()
    Image.fromarray(smooth).save(jpeg, "JPEG")
    size: dict[str, Any] = {"Rows": 61, "Columns": 83, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    size |= {"SamplesPerPixel": 3, "PhotometricInterpretation": "YBR_FULL_422", "PixelRepresentation": 0}
    return {
        "dicom": medical.dicom(signed, RescaleSlope="1", RescaleIntercept="-1", **values),
        "dicom implicit": medical.dicom(signed, medical.IMPLICIT, PixelPaddingValue=-1000),
        "dicom big-endian": medical.dicom(signed, medical.BIG_ENDIAN, **values),
        "dicom deflated": medical.dicom(smooth, medical.DEFLATED),
        "dicom rle": medical.dicom(signed, medical.RLE, **values),
        "dicom jpeg": medical.dicom(jpeg.getvalue(), medical.JPEG, **size),
        "dicom table": medical.dicom(smooth[..., 0], VOILUTSequence=medical.table(entries, 0, 16)),
    }


def mutated(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """``count`` damaged files, each with the name of its sample."""
    chance = random.Random(seed)
    files = list(samples().items())
    for number in range(count):
        name, data = files[number % len(files)]
        damaged = bytearray(data)
        for _ in range(chance.choice((1, 1, 2, 4, 16))):
            chance.choice(_WAYS)(damaged, chance)
        yield name, bytes(damaged)


def _place(data: bytearray, chance: random.Random) -> int:
    """A position, in half of the cases among the first 200 bytes, where headers are."""
    end = len(data) if chance.random() < 0.5 else min(len(data), 200)
    return chance.randrange(end) if end else 0


def _flip(data: bytearray, chance: random.Random) -> None:
    if data:
        data[_place(data, chance)] ^= 1 << chance.randrange(8)


def _nasty(data: bytearray, chance: random.Random) -> None:
    at = _place(data, chance)
    data[at : at + chance.choice((1, 2, 4))] = bytes(chance.choice(NASTY) for _ in range(chance.choice((1, 2, 4))))


def _cut(data: bytearray, chance: random.Random) -> None:
    del data[_place(data, chance) :]


def _remove(data: bytearray, chance: random.Random) -> None:
    at = _place(data, chance)
    del data[at : at + chance.choice((1, 2, 7, 40))]


def _repeat(data: bytearray, chance: random.Random) -> None:
    at = _place(data, chance)
    data[at:at] = data[at : at + chance.choice((1, 4, 30, 300))]


def _insert(data: bytearray, chance: random.Random) -> None:
    at = _place(data, chance)
    data[at:at] = chance.randbytes(chance.choice((1, 3, 20)))


def _swap(data: bytearray, chance: random.Random) -> None:
    if len(data) > 20:
        one, other = _place(data, chance), _place(data, chance)
        data[one : one + 8], data[other : other + 8] = data[other : other + 8], data[one : one + 8]


_WAYS = (_flip, _flip, _nasty, _nasty, _cut, _remove, _repeat, _insert, _swap)
