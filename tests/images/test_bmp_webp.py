"""BMP and WebP: the ways in which they are written, each compared with the pixels worked out from what was written."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from embedserve.images import codec
from tests.images.quarters import encoded

HEIGHT, WIDTH = 9, 13
RANDOM = np.random.default_rng(11)
RGBA = RANDOM.integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
WORDS = RANDOM.integers(0, 65_536, (HEIGHT, WIDTH), dtype=np.uint16)
PALETTE = RANDOM.integers(0, 256, (256, 4), dtype=np.uint8)
INDICES = RANDOM.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)


def bmp(
    bits: int,
    compression: int,
    pixels: bytes,
    *,
    masks: tuple[int, ...] = (),
    palette: bytes = b"",
    header: int = 40,
    height: int = HEIGHT,
) -> bytes:
    """A BMP file; masks belong to the header if it is longer than 40 bytes, and follow it otherwise."""
    colours = len(palette) // 4
    head = struct.pack("<IiiHHIIiiII", header, WIDTH, height, 1, bits, compression, len(pixels), 0, 0, colours, 0)
    head += struct.pack(f"<{len(masks)}I", *masks)
    head += bytes(max(header - len(head), 0)) + palette
    return b"BM" + struct.pack("<IHHI", 14 + len(head) + len(pixels), 0, 0, 14 + len(head)) + head + pixels


def padded(row: bytes) -> bytes:
    return row + bytes(-len(row) % 4)


def upwards(rows: NDArray[np.generic]) -> bytes:
    """Rows as a BMP stores them: the lowest first, each a multiple of four bytes."""
    return b"".join(padded(row.tobytes()) for row in rows[::-1])


def widened(values: NDArray[np.uint16], shift: int, bits: int) -> NDArray[np.int64]:
    top = (1 << bits) - 1
    return ((values >> shift & top).astype(np.int64) * 255 + top // 2) // top


RGB555 = np.stack([widened(WORDS, shift, 5) for shift in (10, 5, 0)], axis=-1)
RGB565 = np.stack([widened(WORDS, 11, 5), widened(WORDS, 5, 6), widened(WORDS, 0, 5)], axis=-1)
BGRA = RGBA[..., [2, 1, 0, 3]]
SHARE = RGBA[..., 3:].astype(float) / 255
ON_WHITE = RGBA[..., :3] * SHARE + 255 * (1 - SHARE)
NAMED = PALETTE[..., [2, 1, 0]]
ALPHA = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)


def run_lengths(row: NDArray[np.uint8]) -> bytes:
    return b"".join(bytes([1, value]) for value in row.tolist()) + b"\0\0"


RUNS = b"".join(map(run_lengths, INDICES[::-1])) + b"\0\1"
CASES: dict[str, tuple[bytes, NDArray[np.generic]]] = {
    "24 bits": (bmp(24, 0, upwards(BGRA[..., :3])), RGBA[..., :3]),
    "24 bits, from the top": (bmp(24, 0, upwards(BGRA[::-1, :, :3]), height=-HEIGHT), RGBA[..., :3]),
    "32 bits, the fourth byte means nothing": (bmp(32, 0, upwards(BGRA)), RGBA[..., :3]),
    "16 bits": (bmp(16, 0, upwards(WORDS)), RGB555),
    "16 bits, 5-6-5": (bmp(16, 3, upwards(WORDS), masks=(0xF800, 0x7E0, 0x1F)), RGB565),
    "32 bits with transparency": (bmp(32, 3, upwards(BGRA), masks=ALPHA, header=108), ON_WHITE),
    "32 bits, no mask of transparency": (bmp(32, 3, upwards(BGRA), masks=(*ALPHA[:3], 0), header=124), RGBA[..., :3]),
    "8 bits": (bmp(8, 0, upwards(INDICES), palette=PALETTE.tobytes()), NAMED[INDICES]),
    "8 bits in runs": (
        bmp(8, 1, b"".join(map(run_lengths, INDICES[::-1])) + b"\0\1", palette=PALETTE.tobytes()),
        NAMED[INDICES],
    ),
    "1 bit": (
        bmp(
            1,
            0,
            b"".join(padded(np.packbits(row & 1).tobytes()) for row in INDICES[::-1]),
            palette=PALETTE[:2].tobytes(),
        ),
        NAMED[INDICES & 1],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_bmp_is_what_was_written(name: str) -> None:
    data, expected = CASES[name]
    # 5 bits become 8 by repeating them or by a fraction: up to four levels apart.
    tolerance = 4 if "16" in name else 1
    assert np.abs(codec.decode(data).astype(float) - expected).max() <= tolerance


@pytest.mark.parametrize("lossless", [True, False])
def test_a_transparent_webp_is_composed_on_white(lossless: bool) -> None:
    alpha = np.zeros((64, 64), np.uint8)
    alpha[:, 32:] = 255
    red = np.full((64, 64, 3), (200, 30, 40), np.uint8)
    data = encoded(Image.fromarray(np.dstack([red, alpha])), "WEBP", lossless=lossless, quality=90)
    decoded = codec.decode(data).astype(int)
    assert (decoded[:, :28] >= 250).all()
    assert np.abs(decoded[:, 36:] - (200, 30, 40)).max() <= (0 if lossless else 12)


def test_an_animated_webp_is_its_first_frame_on_its_canvas() -> None:
    frames = [Image.new("RGBA", (40, 30), (0, 0, 0, 0)) for _ in range(2)]
    frames[0].paste((10, 200, 30, 255), (5, 6, 20, 20))
    frames[1].paste((200, 10, 30, 255), (0, 0, 40, 30))
    data = encoded(frames[0], "WEBP", lossless=True, save_all=True, append_images=frames[1:], duration=40)
    decoded = codec.decode(data)
    assert decoded.shape == (30, 40, 3)
    assert decoded[10, 10].tolist() == [10, 200, 30]
    assert decoded[28, 38].tolist() == [255, 255, 255]
