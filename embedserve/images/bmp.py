"""BMP files that are intact, and of a kind that Pillow does not read: which one."""

from __future__ import annotations

_WINDOWS_HEADERS = (40, 52, 56, 108, 124)
_KINDS = {
    3: "a BMP with bit masks of an uncommon layout",
    4: "a BMP with a JPEG inside",
    5: "a BMP with a PNG inside",
    6: "a BMP with bit masks of an uncommon layout",
    11: "a BMP in CMYK",
    12: "a BMP in CMYK",
    13: "a BMP in CMYK",
}
"""By biCompression, at byte 30 of the file."""


def unread_kind(data: bytes) -> str | None:
    """What a BMP that could not be opened is, as in "a BMP with a JPEG inside"; None if it is damaged, or no BMP."""
    if data[:2] != b"BM" or len(data) < 54 or int.from_bytes(data[14:18], "little") not in _WINDOWS_HEADERS:
        return None
    return _KINDS.get(int.from_bytes(data[30:34], "little"))
