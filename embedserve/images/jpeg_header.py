"""What the header of a JPEG says, read without decoding: its frame, its colour profile, what comes before pixels.

Decoders are native code, and each is given only the frames that it is meant for. Layout: ITU-T T.81, annex B.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from embedserve.errors import ImageFormatError
from embedserve.images.kind import SAVE

_SCAN, _END = 0xDA, 0xD9
_WITHOUT_LENGTH = frozenset((0x01, *range(0xD0, 0xD9)))
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_LOSSLESS, _ARITHMETIC = 0xC3, (0xC9, 0xCA)
_ORDINARY = (0xC0, 0xC1, 0xC2)
_REFUSED = {
    0xCB: "a lossless JPEG with arithmetic coding",
    0xF7: "JPEG-LS",
    0xDE: "a hierarchical JPEG",
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "a hierarchical JPEG"),
}
_PROFILE = b"ICC_PROFILE\0"
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/"
_ADOBE_RGB = b"R03\0"
"""What the Exif block of a camera says that writes Adobe RGB without a profile (DCF 2.0, InteroperabilityIndex)."""


_MOST_STEPS = 65_536
"""Segments and loose bytes; a file of nothing else is not worth more time."""


@dataclass(slots=True)
class JpegHeader:
    """What comes before the first scan."""

    kind: int = 0
    """Second byte of the frame's marker; 0 without one."""
    bits: int = 0
    height: int = 0
    width: int = 0
    components: int = 0
    in_first_scan: int = 0
    """Components of which the first scan has the pixels."""
    described: bool = False
    """Whether there is an EXIF or XMP block, which may hold an orientation."""
    adobe_rgb: bool = False
    """Whether the EXIF block holds what a camera writes for Adobe RGB. Other text may look the same."""
    profile_parts: list[tuple[int, int, bytes]] = field(default_factory=list)
    """Number, count and bytes of the segments of the colour profile."""

    @property
    def ordinary(self) -> bool:
        """Whether it is what nearly all JPEGs are: Huffman-coded, sequential or progressive, of 8 bits."""
        return self.kind in _ORDINARY and self.bits == 8 and self.components in (1, 3, 4) and self.height > 0

    @property
    def one_scan(self) -> bool:
        """Whether decoders read one scan and stop, however many follow."""
        return self.kind in (0xC0, 0xC1) and self.in_first_scan == self.components

    @property
    def profile(self) -> bytes | None:
        """The colour profile; None without one. It is empty if parts of it are missing."""
        if not self.profile_parts:
            return None
        parts = sorted(self.profile_parts, key=lambda part: part[0])
        whole = [part[0] for part in parts] == list(range(1, parts[0][1] + 1))
        return b"".join(part[2] for part in parts) if whole else b""

    def check(self) -> None:
        """Check that it is of a kind that is read here.

        Raises:
            ImageFormatError: it is not; the message names it.
        """
        what = _REFUSED.get(self.kind)
        if what is None and self.kind in (*_ORDINARY, _LOSSLESS, *_ARITHMETIC):
            if self.bits != 8:
                what = f"a JPEG of {self.bits} bits per sample"
            elif self.components not in (1, 3, 4):
                what = f"a JPEG with {self.components} colour components"
            elif self.height == 0:
                what = "a JPEG that states its height only after its pixels (DNL)"
        if what is not None:
            raise ImageFormatError(f"the image is {what}, which is not read", hint=SAVE)


def read_header(data: bytes) -> JpegHeader | None:
    """The header of a JPEG; None for other bytes, and where it is damaged before the first scan."""
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    header, at, end = JpegHeader(), 2, len(data) - 3
    for _ in range(_MOST_STEPS):
        if at >= end:
            break
        if data[at] != 0xFF:  # loose bytes, which decoders pass over
            at = data.find(b"\xff", at)
            if at < 0:
                break
            continue
        marker = data[at + 1]
        if marker == 0xFF:  # filling before a marker
            at += 1
            continue
        if marker == 0:  # no marker: two loose bytes more
            at += 2
            continue
        if marker in _WITHOUT_LENGTH:
            at += 2
            continue
        if marker == _END:
            return None
        length = data[at + 2] << 8 | data[at + 3]
        after = at + 2 + length
        if length < 2 or after > len(data):
            return None
        if marker in _FRAMES or marker in _REFUSED:
            if header.kind or (marker in _FRAMES and length < 8):
                return header if header.kind in _REFUSED else None
            header.kind = marker
            if marker in _FRAMES:
                header.bits, header.components = data[at + 4], data[at + 9]
                header.height, header.width = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
        elif marker == _SCAN:
            header.in_first_scan = data[at + 4] if length > 2 else 0
            return header if header.kind else None
        elif marker == 0xE1:
            _describe(header, data, at + 4, after)
        elif marker == 0xE2 and data.startswith(_PROFILE, at + 4) and length >= 16:
            header.profile_parts.append((data[at + 16], data[at + 17], data[at + 18 : after]))
        at = after
    return header if header.kind in _REFUSED else None


def _describe(header: JpegHeader, data: bytes, begin: int, end: int) -> None:
    if data.startswith(_EXIF, begin):
        header.described = True
        header.adobe_rgb = header.adobe_rgb or data.find(_ADOBE_RGB, begin, end) >= 0
    elif data.startswith(_XMP, begin):
        header.described = True
