"""A filter as an SQL condition on a row of the table item; every value and key is a bound parameter.

Declared keys are looked up in the table of facets, others are read from the column ``meta``. A condition is 1 or 0,
never NULL, so that NOT is a plain negation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from embedserve.conditions import check_bounds
from embedserve.store.local.records.facets import boolean
from embedserve.store.local.records.row import escaped
from embedserve.types import And, Eq, Exists, Filter, In, Not, Or, Range, check_metadata_key

Value = str | int | float | bytes
Leaf = Eq | In | Range | Exists


@dataclass(frozen=True, slots=True)
class Condition:
    """SQL with one ``?`` for each value."""

    sql: str
    values: tuple[Value, ...] = ()


NEVER = Condition("0")
ALWAYS = Condition("1")


def condition(
    node: Filter, filter_keys: Sequence[str] = (), worthwhile: Callable[[Leaf], bool] = lambda leaf: True
) -> Condition:
    """The SQL condition that is true for the items that match the filter.

    Args:
        node: the filter.
        filter_keys: the declared keys.
        worthwhile: false for conditions on declared keys that should be read from the metadata nevertheless.

    Raises:
        InvalidInput: a key is not allowed.
    """
    match node:
        case And(filters):
            return _joined([condition(child, filter_keys, worthwhile) for child in filters], "AND", ALWAYS)
        case Or(filters):
            return _joined([condition(child, filter_keys, worthwhile) for child in filters], "OR", NEVER)
        case Not(child):
            inner = condition(child, filter_keys, worthwhile)
            return Condition(f"NOT ({inner.sql})", inner.values)
        case Eq(key) | In(key) | Range(key) | Exists(key) if key in filter_keys and worthwhile(node):
            among = facet_condition(node, filter_keys)
            return Condition(f"item.rid IN (SELECT rid FROM facet WHERE {among.sql})", among.values)
        case Eq(key, value):
            return _one_of(path_of(key), [value])
        case In(key, values):
            return _one_of(path_of(key), values)
        case Range(key):
            bounds = _bounds(node)
            if _is_of_texts(node):
                return _text_within(path_of(key), bounds)
            return _number(
                path_of(key), " AND ".join(f"number {sign} ?" for sign, _ in bounds), [bound for _, bound in bounds]
            )
        case Exists(key):
            return Condition("json_type(item.meta, ?) IS NOT NULL", (path_of(key),))


def facet_condition(node: Leaf, filter_keys: Sequence[str]) -> Condition:
    """The SQL condition on rows of the table facet, for a condition on a declared key.

    Several rows of an item may match.
    """
    number = filter_keys.index(node.key)
    match node:
        case Eq(_, value):
            return _facet_among(number, [value])
        case In(_, values):
            return _facet_among(number, values)
        case Range():
            within = _facet_text_within(_bounds(node)) if _is_of_texts(node) else _facet_number_within(_bounds(node))
            return Condition(f"key = ? AND {within.sql}", (number, *within.values))
        case Exists():
            return Condition("key = ?", (number,))


def _facet_among(number: int, wanted: Sequence[str | int | float | bool]) -> Condition:
    values: list[Value] = []
    for value in wanted:
        if isinstance(value, bool):
            values.append(boolean(value))
        elif isinstance(value, str):
            values.append(escaped(value))
        elif (comparable := _comparable(value)) is not None:
            values.append(comparable)
    return Condition(f"key = ? AND value IN ({_marks(values)})", (number, *values)) if values else NEVER


# Values sort as numbers, then texts, the empty one first, then blobs, the empty one first.


def _facet_number_within(bounds: Sequence[tuple[str, Value]]) -> Condition:
    if not any(sign.startswith("<") for sign, _ in bounds):
        bounds = [*bounds, ("<", "")]
    return _compared("value", bounds)


def _facet_text_within(bounds: Sequence[tuple[str, Value]]) -> Condition:
    if _need_order(bounds):
        within = _compared_in_order("value", bounds)
        return Condition(f"typeof(value) = 'text' AND {within.sql}", within.values)
    if not any(sign.startswith(">") for sign, _ in bounds):
        bounds = [*bounds, (">=", "")]
    if not any(sign.startswith("<") for sign, _ in bounds):
        bounds = [*bounds, ("<", b"")]
    return _compared("value", bounds)


def _compared(value: str, bounds: Sequence[tuple[str, Value]]) -> Condition:
    return Condition(" AND ".join(f"{value} {sign} ?" for sign, _ in bounds), tuple(bound for _, bound in bounds))


def _bounds(node: Range) -> list[tuple[str, Value]]:
    """The bounds as SQLite compares them, each with its sign.

    Raises:
        InvalidInput: they are not allowed.
    """
    check_bounds(node.key, node.bounds)
    return [(_SIGNS[name], escaped(bound)) for name, bound in node.bounds.items()]


_SIGNS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}


def _is_of_texts(node: Range) -> bool:
    return any(isinstance(bound, str) for bound in node.bounds.values())


# The escapes for U+0000 and U+0001 begin with U+0001 and sort in the wrong order. That shows only where a bound has one
# of them itself: any other character is above both, and so above both escapes.


def _need_order(bounds: Sequence[tuple[str, Value]]) -> bool:
    return any(isinstance(bound, str) and "\x01" in bound for _, bound in bounds)


def _compared_in_order(value: str, bounds: Sequence[tuple[str, Value]]) -> Condition:
    """The same where a bound has an escape: both escapes change places on both sides."""
    for old, new in (("1, 2", "1, 4"), ("1, 3", "1, 2"), ("1, 4", "1, 3")):
        value = f"replace({value}, char({old}), char({new}))"
    swapped = {"\x01\x02": "\x01\x03", "\x01\x03": "\x01\x02"}
    return _compared(
        value, [(sign, re.sub("\x01[\x02\x03]", lambda found: swapped[found[0]], str(text))) for sign, text in bounds]
    )


def path_of(key: str) -> str:
    """The JSON path of a metadata key, for binding.

    Raises:
        InvalidInput: the key is not allowed.
    """
    # Allowed keys contain neither quotes nor backslashes, so they need no escapes.
    check_metadata_key(key)
    return f'$."{key}"'


def _one_of(path: str, values: Sequence[str | int | float | bool]) -> Condition:
    texts = [escaped(value) for value in values if isinstance(value, str)]
    booleans = ["true" if value else "false" for value in values if isinstance(value, bool)]
    numbers = [number for value in values if (number := _comparable(value)) is not None]
    conditions = []
    if texts:
        conditions.append(_text(path, texts))
    if numbers:
        conditions.append(_number(path, f"number IN ({_marks(numbers)})", numbers))
    if booleans:
        conditions.append(
            Condition(f"COALESCE(json_type(item.meta, ?), '') IN ({_marks(booleans)})", (path, *booleans))
        )
    return _joined(conditions, "OR", NEVER)


def _comparable(value: str | int | float | bool) -> int | float | None:
    """The number as SQLite can bind it; None if it is not a number, or no item can have an equal one."""
    if isinstance(value, (str, bool)):
        return None
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        try:
            as_float = float(value)
        except OverflowError:
            return None
        return as_float if as_float == value else None
    return None if math.isnan(value) else value


def _text(path: str, texts: Sequence[str]) -> Condition:
    marks = _marks(texts)
    return Condition(
        f"CASE json_type(item.meta, ?)"
        f" WHEN 'text' THEN json_extract(item.meta, ?) IN ({marks})"
        f" WHEN 'array' THEN EXISTS (SELECT 1 FROM json_each(item.meta, ?) AS element WHERE element.value IN ({marks}))"
        f" ELSE 0 END",
        (path, path, *texts, path, *texts),
    )


def _text_within(path: str, bounds: Sequence[tuple[str, Value]]) -> Condition:
    """True if the value is a text within the bounds, or a list with such an element."""
    # A text is a table of one row here.
    within = (_compared_in_order if _need_order(bounds) else _compared)("element.value", bounds)
    return Condition(
        f"EXISTS (SELECT 1 FROM json_each(item.meta, ?) AS element WHERE element.type = 'text' AND {within.sql})",
        (path, *within.values),
    )


def _number(path: str, test: str, values: Sequence[Value]) -> Condition:
    """``test`` on the value, called number; false if the value is not a number."""
    return Condition(
        "EXISTS (SELECT 1 FROM (SELECT CASE json_type(item.meta, ?)"
        " WHEN 'integer' THEN json_extract(item.meta, ?)"
        " WHEN 'real' THEN exact_real(item.meta -> ?)"
        f" END AS number) WHERE {test})",
        (path, path, path, *values),
    )


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))


def _joined(conditions: Sequence[Condition], operator: str, empty: Condition) -> Condition:
    if not conditions:
        return empty
    if len(conditions) == 1:
        return conditions[0]
    # In halves, since SQLite allows a depth of 1,000, and a plain chain nests once per term.
    middle = len(conditions) // 2
    left = _joined(conditions[:middle], operator, empty)
    right = _joined(conditions[middle:], operator, empty)
    return Condition(f"({left.sql} {operator} {right.sql})", left.values + right.values)
