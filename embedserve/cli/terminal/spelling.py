"""What a text stands for, a number, a boolean or just a text: in conditions as people type them, and in tables."""

from __future__ import annotations

import re

from embedserve.errors import InvalidInput

_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"-?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_PADDED = re.compile(r"-?0[0-9]+(\.[0-9]*)?")
_INFINITE = re.compile(r"[+-]?inf(inity)?", re.IGNORECASE)
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


def boolean(text: str) -> bool | None:
    """The boolean that a text spells, as Python, JSON or a spreadsheet writes it; None if it spells none."""
    return _BOOLEANS.get(text)


def number(text: str) -> int | float | None:
    """The number that a text spells, an integer exactly; None if it spells none.

    Digits with a leading zero or a plus sign, such as zip codes and telephone numbers, spell none.

    Raises:
        InvalidInput: no item can have it: an integer that does not fit 64 bits, or a decimal number above 1.8e308.
    """
    if _INTEGER.fullmatch(text):
        # Python refuses to read integers of more than 4,300 digits.
        if len(text) > 20 or not -(2**63) <= (whole := int(text)) < 2**63:
            raise InvalidInput(f"{_short(text)} does not fit 64 bits")
        return whole
    if not _NUMBER.fullmatch(text):
        return None
    if (real := float(text)) in (float("inf"), float("-inf")):
        raise InvalidInput(f"{_short(text)} is larger than any number that can be kept")
    return real


def is_infinite(text: str) -> bool:
    """Whether a text spells an infinite number."""
    return _INFINITE.fullmatch(text) is not None


def is_padded(text: str) -> bool:
    """Whether a text is digits that begin with a zero, as in 01234: not how a number is written."""
    return _PADDED.fullmatch(text) is not None


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}…"
