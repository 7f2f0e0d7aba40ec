"""What bytes that are text may be, where an image was expected: a page, an address, an image in base64."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable

_BASE64 = re.compile(r"[A-Za-z0-9+/_\-\r\n]{16,}={0,2}\s*")
_HEX = re.compile(r"(0x)?([0-9A-Fa-f]{2}[\s:]?){8,}")
_PATH = re.compile(r"([A-Za-z]:[\\/]|~?/|\.{0,2}[\\/])?[^\r\n<>{}\"]{1,1000}\.[A-Za-z0-9]{2,5}\s*")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]{1,10}://\S+\s*")
_BOMS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_MAX_CONTROL_SHARE = 0.01


def what_text(head: bytes, kind_of: Callable[[bytes], object]) -> str | None:
    """A key of ``foreign.TEXTS`` for the first bytes of a text; None if they are not text.

    Args:
        head: first bytes of a file.
        kind_of: says what the bytes are that a text stands for, as base64 does.
    """
    if (text := _decoded(head)) is None:
        return None
    text = text.lstrip("\ufeff \t\r\n\"'")
    lower = text[:1024].lower()
    if text.startswith("version https://git-lfs"):
        return "LFS"
    if "/annex/objects/" in lower[:300]:
        return "annex"
    if lower.startswith("data:"):
        return "data URL"
    if lower.startswith(("http/1.", "http/2")):
        return "HTTP"
    if re.match(r"b['\"].*\\x", text, re.DOTALL) or (text.startswith("\\x") and len(text) > 8):
        return "bytes"
    if text.startswith("<") or "<svg" in lower or "<html" in lower:
        return _markup(lower)
    if text.startswith(("{", "[")):
        return "JSON"
    if _URL.fullmatch(text):
        return "URL"
    if _HEX.match(text) and _image_in(_from_hex(text), kind_of):
        return "hex"
    if _BASE64.match(text) and _image_in(_from_base64(text), kind_of):
        return "base64"
    if len(text) < 1200 and _PATH.fullmatch(text):
        return "path"
    return "text"


def _decoded(head: bytes) -> str | None:
    """The text; None if the bytes are none: not UTF-8 or UTF-16, too short, or with control characters."""
    encoding = next((name for bom, name in _BOMS.items() if head.startswith(bom)), "utf-8")
    text = ""
    for cut in range(4):  # the last character may be cut
        try:
            text = head[: len(head) - cut].decode(encoding)
            break
        except UnicodeDecodeError:
            continue
    # An image whose bytes were decoded with errors="replace" is valid UTF-8, and is no text.
    if len(text) < 4 or text.count("\ufffd") > 3:
        return None
    controls = sum(ord(letter) < 32 and letter not in "\t\r\n\f\x1b" for letter in text)
    return text if controls <= len(text) * _MAX_CONTROL_SHARE else None


def _markup(lower: str) -> str:
    if "<html" in lower or "<!doctype html" in lower or lower.startswith(("<head", "<body")):
        return "HTML"
    return "SVG" if "<svg" in lower or "<!doctype svg" in lower else "XML"


def _image_in(data: bytes, kind_of: Callable[[bytes], object]) -> bool:
    return len(data) >= 8 and _decoded(data) is None and kind_of(data) is not None


def _from_hex(text: str) -> bytes:
    digits = re.sub(r"[^0-9A-Fa-f]", "", text.removeprefix("0x"))
    return bytes.fromhex(digits[: len(digits) & ~1])


def _from_base64(text: str) -> bytes:
    letters = re.sub(r"[^A-Za-z0-9+/]", "", text.replace("-", "+").replace("_", "/"))[:1024]
    try:
        return base64.b64decode(letters[: len(letters) & ~3])
    except binascii.Error:
        return b""
