"""The bounds of a range: all numbers or all texts, each of which every store can compare exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping

from embedserve.errors import InvalidInput

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
