"""Page tokens: the last id of the previous page, opaque and with a checksum."""

from __future__ import annotations

import base64
import binascii
import zlib

from embedserve.errors import InvalidInput

_VERSION = b"\x01"


def page_token(last_id: str) -> str:
    """The token of the page that starts after this id."""
    body = _VERSION + last_id.encode()
    return base64.urlsafe_b64encode(zlib.crc32(body).to_bytes(4, "big") + body).decode().rstrip("=")


def last_id(token: str) -> str:
    """The id after which the page starts; empty for an empty token, and no id is empty.

    Raises:
        InvalidInput: the token does not come from ``page_token``.
    """
    if not token:
        return ""
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        checksum, body = raw[:4], raw[4:]
        if checksum == zlib.crc32(body).to_bytes(4, "big") and body[:1] == _VERSION:
            found = body[1:].decode()
            if found and page_token(found) == token:
                return found
    except (binascii.Error, ValueError):
        pass
    raise InvalidInput(
        f"the page token {token[:80]!r} was not made by an earlier page",
        hint="use next_page_token of the page before, or leave it empty for the first page",
    )
