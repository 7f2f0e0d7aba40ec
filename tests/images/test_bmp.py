"""BMP files of kinds that are not read are refused by name."""

from __future__ import annotations

import struct

import pytest

from embedserve.errors import ImageFormatError, ImageUndecodable
from embedserve.images import codec


def bmp(compression: int, bits: int, masks: tuple[int, ...] = (), size: int = 40) -> bytes:
    """A BMP of 4 × 4 zeros."""
    body = bytes(4 * 4 * max(bits, 8) // 8)
    offset = 14 + size + 4 * len(masks)
    head = struct.pack("<2sIHHI", b"BM", offset + len(body), 0, 0, offset)
    info = struct.pack("<IiiHHIIiiII", size, 4, 4, 1, bits, compression, len(body), 0, 0, 0, 0)
    return head + info + struct.pack(f"<{len(masks)}I", *masks) + body


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (bmp(3, 16, (0xF00, 0xF0, 0xF)), "bit masks"),
        (bmp(4, 0), "a JPEG inside"),
        (bmp(5, 0), "a PNG inside"),
        (bmp(11, 32), "CMYK"),
    ],
)
def test_kinds_of_bmp_that_are_not_read_are_refused_by_name(data: bytes, name: str) -> None:
    with pytest.raises(ImageFormatError, match=name):
        codec.decode(data)


def test_common_bit_masks_are_read() -> None:
    assert codec.decode(bmp(3, 16, (0xF800, 0x7E0, 0x1F))).tolist() == [[[0, 0, 0]] * 4] * 4


def test_a_bmp_without_its_pixels_is_damaged() -> None:
    with pytest.raises(ImageUndecodable):
        codec.decode(bmp(0, 24)[:60])
