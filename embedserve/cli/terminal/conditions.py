"""Conditions and values as users type them: ``--where year>=1999``, and the cells of a metadata table."""

from __future__ import annotations

import re
from collections.abc import Sequence

from embedserve.errors import InvalidInput
from embedserve.types import And, Eq, Exists, Filter, Not, Range, check_metadata_key

_CONDITION = re.compile(r"(?P<key>[^=!<>]+?)\s*(?P<sign>==|!=|>=|<=|=|>|<)\s*(?P<value>.*)", re.DOTALL)
_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
_DECIMAL = re.compile(r"-?(0|[1-9][0-9]*)\.[0-9]+([eE][+-]?[0-9]+)?")


def parse_value(text: str) -> str | int | float | bool:
    """The value that a text stands for: an integer, a decimal number, true or false, or else the text itself.

    Anything in quotes, '…' or "…", is text. Unusual spellings of numbers stay text, so that an article number such as
    007 keeps its zeros.
    """
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1]
    if text in ("true", "false"):
        return text == "true"
    if _INTEGER.fullmatch(text) and -(2**63) <= int(text) < 2**63:
        return int(text)
    if _DECIMAL.fullmatch(text):
        return float(text)
    return text


def parse_condition(text: str) -> Filter:
    """The filter that a condition stands for.

    ``key=value`` and ``key!=value`` compare with the value, ``key>=n``, ``key<=n``, ``key>n`` and ``key<n`` with a
    number, and ``key`` alone asks whether the item has it.

    Raises:
        InvalidInput: it is not a condition, or a number is needed and missing.
    """
    text = text.strip()
    match = _CONDITION.fullmatch(text)
    if match is None:
        if not text or any(sign in text for sign in "=!<>"):
            raise InvalidInput(f"{text!r} is not a condition", hint="write key=value, key!=value, key>=n or key")
        check_metadata_key(text)
        return Exists(text)
    key, sign, value = match["key"].strip(), match["sign"], match["value"].strip()
    check_metadata_key(key)
    if sign in ("=", "=="):
        return Eq(key, parse_value(value))
    if sign == "!=":
        return Not(Eq(key, parse_value(value)))
    try:
        bound = float(value)
    except ValueError:
        raise InvalidInput(f"{text!r} compares with {value!r}, which is not a number") from None
    match sign:
        case ">=":
            return Range(key, gte=bound)
        case "<=":
            return Range(key, lte=bound)
        case ">":
            return Range(key, gt=bound)
        case _:
            return Range(key, lt=bound)


def all_of(conditions: Sequence[Filter]) -> Filter | None:
    """One filter for several conditions; None for none."""
    if len(conditions) <= 1:
        return conditions[0] if conditions else None
    return And(tuple(conditions))
