"""A filter as an SQL condition on a row of the table item; every value and key is a bound parameter.

Declared keys are looked up in the table of facets, others are read from the column ``meta``. A condition is 1 or 0,
never NULL, so that NOT is a plain negation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
            tests = [(f"number {sign} ?", bound) for sign, bound in _bounds(node)]
            return _number(path_of(key), " AND ".join(sql for sql, _ in tests), [bound for _, bound in tests])
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
            tests: list[tuple[str, Value]] = [(f"value {sign} ?", bound) for sign, bound in _bounds(node)]
            if node.lt is None and node.lte is None:
                # Texts sort after all numbers, the empty one first, and blobs after texts.
                tests.append(("value < ?", ""))
            return Condition(" AND ".join(["key = ?", *(sql for sql, _ in tests)]), (number, *(v for _, v in tests)))
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


def _bounds(node: Range) -> list[tuple[str, float]]:
    bounds = [(">", node.gt), (">=", node.gte), ("<", node.lt), ("<=", node.lte)]
    return [(sign, bound) for sign, bound in bounds if bound is not None]


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


def _number(path: str, test: str, values: Sequence[float]) -> Condition:
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
