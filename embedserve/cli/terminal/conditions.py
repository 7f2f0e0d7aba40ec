"""Conditions on metadata as people type them: ``--where year>=1999``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from embedserve.cli.terminal import spelling
from embedserve.errors import InvalidInput
from embedserve.types import And, Eq, Exists, Filter, In, Not, Range, check_metadata_key

GRAMMAR = 'write key=value, key!=value, key>=bound, key<=bound, key>bound, key<bound, "key in (a, b)", or just the key'

_CONDITION = re.compile(
    r"""(?P<key>"[^"]*"|'[^']*'|[^=!<>]+?)\s*(?P<sign>==|!=|>=|<=|=|>|<)\s*(?P<value>.*)""", re.DOTALL
)
_MEMBER = re.compile(r"""(?P<key>"[^"]*"|'[^']*'|[^=!<>\s]+)\s+in\s*\((?P<values>.*)\)""", re.DOTALL | re.IGNORECASE)
_BARE_KEY = re.compile(r"[\w.\-/@#$%+]+")
_OTHER_SIGNS = "~≥≤≠≈"
_RESERVED = {"and", "or", "not", "in", "is", "like", "between", "contains", "exists", "has"}
_SECOND = re.compile(r"\s(and|or|&&?|\|\|?)\s+\S[^=!<>]*(=|<|>)", re.IGNORECASE)
_ALMOST_NUMBER = re.compile(r"[+-]?[0-9][0-9,_' ]*([.,][0-9]*)?\s*%?|\+.*")
_RANGES = {">=": "gte", "<=": "lte", ">": "gt", "<": "lt"}


def parse_value(text: str) -> str | int | float | bool:
    """The value that a text stands for: an integer, a decimal number, true or false, or else the text itself.

    Anything in quotes, '…' or "…", is text. Digits with a leading zero stay text, so that an article number such as 007
    keeps its zeros, and so does what no item can have as a number.
    """
    if (quoted := _unquoted(text)) is not None:
        return quoted
    if (truth := spelling.boolean(text)) is not None:
        return truth
    try:
        number = spelling.number(text)
    except InvalidInput:
        return text
    return text if number is None else number


def parse_condition(text: str) -> Filter:
    """The filter that a condition stands for.

    ``key=value`` and ``key!=value`` compare with the value, ``key in (a, b)`` with several. A number or boolean without
    quotes equals a text that is spelt the same, too, since a table may have made it one. ``key>=bound``,
    ``key<=bound``, ``key>bound`` and ``key<bound`` compare with a number, or with a text if the bound is none, as dates
    are. ``key`` alone asks whether the item has it. A key or value in quotes may have any characters.

    Raises:
        InvalidInput: it is not a condition, or its bound is almost a number.
    """
    text = text.strip()
    if (members := _MEMBER.fullmatch(text)) is not None:
        key, values = _key(members["key"], text), _listed(members["values"], text)
        return In(key, tuple(dict.fromkeys(spelt for value in values for spelt in _spelt(value))))
    found = _CONDITION.fullmatch(text)
    if found is None:
        if (quoted := _unquoted(text)) is None and not _BARE_KEY.fullmatch(text):
            raise _refused(text, GRAMMAR if any(sign in text for sign in "=!<>~") else f"{GRAMMAR}; {_QUOTE_KEY}")
        key = text if quoted is None else quoted
        check_metadata_key(key)
        return Exists(key)
    key, sign, value = _key(found["key"], text), found["sign"], found["value"].strip()
    if not value:
        raise _refused(text, f'nothing follows {sign!r}; for the empty text write {key}{sign}""')
    if value[0] in f"=!<>{_OTHER_SIGNS}":
        raise _refused(text, f"{GRAMMAR}; a value that begins with {value[0]!r} goes in quotes")
    if _unquoted(value) is None:
        if _SECOND.search(value):
            raise _refused(text, "give --where once for each condition; a text that looks like one goes in quotes")
        if value[0] in "\"'":
            raise _refused(text, "its quotes do not match; a text with one kind of quotes goes in the other kind")
    if sign in _RANGES:
        bound: dict[str, Any] = {_RANGES[sign]: _bound(value, text)}
        return Range(key, **bound)
    return Not(_equals(key, value)) if sign == "!=" else _equals(key, value)


def all_of(conditions: Sequence[Filter]) -> Filter | None:
    """One filter for several conditions; None for none."""
    if len(conditions) <= 1:
        return conditions[0] if conditions else None
    return And(tuple(conditions))


_QUOTE_KEY = "a key with other characters than letters, digits and _.-/@#$%+ goes in quotes"


def _refused(text: str, hint: str) -> InvalidInput:
    return InvalidInput(f"{text!r} is not a condition", hint=hint)


def _unquoted(text: str) -> str | None:
    """The text inside quotes; None if it is not in quotes."""
    is_quoted = len(text) >= 2 and text[0] in "\"'" and text.find(text[0], 1) == len(text) - 1
    return text[1:-1] if is_quoted else None


def _key(written: str, text: str) -> str:
    """The key before a sign.

    Raises:
        InvalidInput: it is not allowed, or seems to be a part of something else.
    """
    written = written.strip()
    key = _unquoted(written)
    if key is None:
        key = written
        words = {word.lower() for word in key.split()}
        if any(sign in key for sign in _OTHER_SIGNS) or (len(words) > 1 and words & _RESERVED):
            raise _refused(text, f"{GRAMMAR}; a key that has such a sign or word goes in quotes")
    check_metadata_key(key)
    return key


def _spelt(value: str) -> tuple[str | int | float | bool, ...]:
    """What a value may be equal to: what it stands for, and the text itself."""
    parsed = parse_value(value)
    return (parsed,) if isinstance(parsed, str) else (parsed, value)


def _equals(key: str, value: str) -> Filter:
    values = _spelt(value)
    return Eq(key, values[0]) if len(values) == 1 else In(key, values)


def _bound(value: str, text: str) -> str | int | float:
    """The bound of a range: a number, or a text.

    Raises:
        InvalidInput: it is neither a number nor clearly a text.
    """
    if (quoted := _unquoted(value)) is not None:
        return quoted
    if any(sign in value for sign in "=<>"):
        raise _refused(text, f"{GRAMMAR}; give --where once for each bound")
    try:
        number = spelling.number(value)
    except InvalidInput as error:
        hint = "leave the condition out, or write a text in quotes"
        raise InvalidInput(f"{text!r}: {error.message}", hint=hint) from None
    if number is not None:
        return number
    if spelling.is_infinite(value) or value.lower() == "nan" or spelling.boolean(value) is not None:
        raise InvalidInput(
            f"{text!r} compares with {value!r}, which is not a finite number",
            hint="write a number, or a text in quotes",
        )
    if _ALMOST_NUMBER.fullmatch(value) and not spelling.is_padded(value):
        raise InvalidInput(
            f"{text!r} compares with {value!r}, which is not a number",
            hint="write it as in 1500 or 1.5, without separators and units; a text goes in quotes",
        )
    return value


def _listed(values: str, text: str) -> list[str]:
    """The values between the parentheses of ``key in (a, "b, c")``."""
    found = re.findall(r"""\s*("[^"]*"|'[^']*'|[^,]*?)\s*(?:,|$)""", values, re.DOTALL)
    # The expression also finds nothing after the last value.
    listed = found[:-1] if found and found[-1] == "" else found
    if not listed or "" in listed:
        raise _refused(text, 'a value is missing between the parentheses; the empty text is ""')
    return listed
