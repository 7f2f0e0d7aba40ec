"""What the filters of ``embedserve.types`` take when they are made: their keys, values, bounds and inner filters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from embedserve.errors import InvalidInput
from embedserve.metadata import plain, shown

_NUMBERS = frozenset((int, float))
"""Taken as they are, nan and integers of any size too: in a store they equal nothing. The client refuses these."""


def check_is_filter(value: object, what: str, kinds: tuple[type, ...]) -> None:
    """Refuse anything but a filter.

    Args:
        value: what the caller gave.
        what: names it in messages.
        kinds: the classes of filters.

    Raises:
        InvalidInput: with its type, and how the filter is written.
    """
    if isinstance(value, kinds):
        return
    hint = f"write a filter ({', '.join(kind.__name__ for kind in kinds)}), as in Eq('label', 'red')"
    if isinstance(value, type) and issubclass(value, kinds):
        hint = f"write {value.__name__}({', '.join(each.name for each in fields(value))})"  # type: ignore[arg-type]
    elif isinstance(value, Mapping) and 1 <= len(value) <= 3:
        hint = ", ".join(f"Eq({key!r}, {one!r})" for key, one in value.items())
        hint = f"write {hint}" if len(value) == 1 else f"write And([{hint}])"
    elif isinstance(value, (list, tuple)):
        hint = "write And([…]) where all must hold, Or([…]) where one must"
    raise InvalidInput(f"{what} is {shown(value)}", hint=hint)


def inner_filters(given: object, name: str, kinds: tuple[type, ...]) -> tuple[Any, ...]:
    """The filters of And and Or.

    Raises:
        InvalidInput: they are not several, or one is no filter; says which.
    """
    if not isinstance(given, tuple):
        is_one = isinstance(given, (*kinds, str, bytes, bytearray, memoryview, Mapping))
        if is_one or not isinstance(given, Iterable) or getattr(given, "ndim", 1) != 1:
            raise InvalidInput(
                f"filters of {name} is {shown(given)}",
                hint=f"write several filters in a list, as in {name}([Eq('label', 'red'), Exists('price')])",
            )
        given = tuple(given)
    for position, one in enumerate(given, start=1):
        check_is_filter(one, f"filter {position} of {name}", kinds)
    return given


def key_text(key: object, name: str) -> str:
    """The metadata key of a condition.

    Raises:
        InvalidInput: it is no text.
    """
    if not isinstance(key, str):
        raise InvalidInput(f"key of {name} is {shown(key)}", hint="write the metadata key as text")
    return str.__str__(key)


def single_value(value: object, key: str) -> str | int | float | bool:
    """The value that Eq compares with.

    Raises:
        InvalidInput: it is not one value of metadata.
    """
    if isinstance(value, (list, tuple, set, frozenset)):
        raise InvalidInput(
            f"value of Eq on {key!r} is {shown(value)}",
            hint="Eq compares with one value; with one of several: In(key, values)",
        )
    return value if type(value) in _NUMBERS else plain(value, f"value of Eq on {key!r}")  # type: ignore[return-value]


def several_values(values: Any, key: str) -> tuple[str | int | float | bool, ...]:
    """The values that In compares with.

    Raises:
        InvalidInput: they are not several, or one is no value of metadata.
    """
    if type(values) is not tuple:
        is_one = isinstance(values, (str, bytes, bytearray, memoryview, Mapping))
        if is_one or not isinstance(values, Iterable) or getattr(values, "ndim", 1) != 1:
            raise InvalidInput(
                f"values of In on {key!r} is {shown(values)}",
                hint="write several in a list, as in In('label', ['red', 'blue']); for one: Eq('label', 'red')",
            )
        values = tuple(values)
    return tuple([value if type(value) in _NUMBERS else plain(value, f"a value of In on {key!r}") for value in values])


def bound_value(value: object, key: str, name: str) -> int | float | str:
    """A bound of a range as it is compared; a ``datetime`` becomes its text in UTC, a NumPy scalar a number.

    Raises:
        InvalidInput: it is neither a number nor text.
    """
    what = f"the bound {name} of the range on {key!r}"
    bound = plain(value, what)
    if isinstance(bound, bool):
        raise InvalidInput(
            f"{what} is {shown(value)}", hint=f"bounds are numbers or text; to compare with a boolean: Eq({key!r}, …)"
        )
    return bound


# --- Bounds of ranges ------------------------------------------------------

BOUNDS = ("gt", "gte", "lt", "lte")
"""The names of the bounds, in the range and in its message."""


def check_bounds(key: str, bounds: Mapping[str, object]) -> None:
    """Refuse bounds that do not say exactly which values lie within them.

    Args:
        key: of the range, for messages.
        bounds: by name; None for one that is open.

    Raises:
        InvalidInput: there is none, one is neither a number nor a text, or there are numbers and texts; names it.
    """
    given = {name: bound for name, bound in bounds.items() if bound is not None}
    if not given:
        raise InvalidInput(f"the range on {key!r} has no bound")
    for name, bound in given.items():
        if problem := _problem(bound):
            raise InvalidInput(f"the bound {name} of the range on {key!r} is {problem}", hint=_HINT)
    texts = [name for name, bound in given.items() if isinstance(bound, str)]
    if texts and len(texts) < len(given):
        numbers = [name for name in given if name not in texts]
        raise InvalidInput(
            f"the range on {key!r} has the text {given[texts[0]]!r} for {texts[0]} and the number"
            f" {given[numbers[0]]} for {numbers[0]}, and no value is both",
            hint="bounds are all numbers or all texts",
        )


_HINT = "bounds are integers from -2^63 to 2^63-1, floats, or texts"


def _problem(bound: object) -> str:
    """What a bound is, and why it is not allowed; empty if it is."""
    if isinstance(bound, str):
        try:
            bound.encode()
        except UnicodeEncodeError:
            return f"{bound!r}, which cannot be written in UTF-8"
        return ""
    if isinstance(bound, float):
        return "nan, which is not a number" if math.isnan(bound) else ""
    if isinstance(bound, int) and not isinstance(bound, bool):
        return "" if -(2**63) <= bound < 2**63 else f"{_short(bound)}, which does not fit 64 bits"
    shown = bound if isinstance(bound, bool) else f"a {type(bound).__name__}"
    return f"{shown}, which is neither a number nor a text"


def _short(number: int) -> str:
    """A number as it is typed, unless that would be long; Python refuses to write those of thousands of digits."""
    return str(number) if number.bit_length() <= 128 else f"an integer of {number.bit_length()} bits"


def is_double(number: int) -> bool:
    """Whether a double holds this integer, which fits 64 bits, exactly."""
    return int(float(number)) == number
