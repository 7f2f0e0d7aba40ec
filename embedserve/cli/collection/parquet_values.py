"""Columns of Parquet files as ids, vectors and metadata: what DuckDB, pandas, Polars, Spark and Arrow write.

    boolean, integers                  as they are
    floats, decimals                   numbers; NaN is missing
    text, dictionaries and enums of it text
    UUID                               text, as in "0b8d9a3e-…"
    date                               text, as in "2026-11-24"
    timestamp                          text in UTC with microseconds, as in "2026-11-24T09:30:00.000000Z", which sorts
    time                               text, as in "09:30:00.000000"
    lists of what becomes text         lists of strings
    JSON                               what the text holds
    struct, and objects of JSON        a key for each field: {"a": {"b": 1}} becomes "a.b"

What is null sets no key. Everything else, such as maps, bytes, intervals and lists of numbers, cannot be metadata.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from embedserve.errors import InvalidInput

Value = Any
"""A metadata value, a mapping of them, None if it is missing, or the InvalidInput that says why it cannot be kept."""
Reader = Callable[[Any], list[Value]]
"""Arrow array → a value for each row."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNITS_PER_S = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


# --- Ids and vectors ---


def is_text(pa: Any, kind: Any) -> bool:
    """Whether a column holds text, plain or in a dictionary."""
    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def is_id(pa: Any, kind: Any) -> bool:
    """Whether a column can hold ids: text, integers, or UUIDs with or without their logical type."""
    return is_text(pa, kind) or pa.types.is_integer(kind) or _is_uuid(pa, kind)


def id_texts(pa: Any, column: Any) -> list[str | None]:
    """The ids of a column as text."""
    if _is_uuid(pa, column.type):
        return _uuids(column)
    ids: list[str | None] = column.cast(pa.string()).to_pylist()
    return ids


def is_json(kind: Any) -> bool:
    """Whether a column holds text that its program declared to be JSON."""
    return getattr(kind, "extension_name", "") == "arrow.json"


def storage_type(kind: Any) -> Any:
    """The type of the numbers or texts behind a type that a program added to Arrow, such as fixed_shape_tensor."""
    return getattr(kind, "storage_type", kind)


def storage(column: Any) -> Any:
    """The column in the type of ``storage_type``."""
    return getattr(column, "storage", column)


def why_no_vectors(pa: Any, kind: Any) -> str:
    """Why a column cannot hold vectors; empty if it can."""
    shape = list(getattr(kind, "shape", ()))
    if sum(size > 1 for size in shape) > 1:
        return f"tensors of {' × '.join(map(str, shape))}, not vectors"
    inner, types = storage_type(kind), pa.types
    if not (types.is_list(inner) or types.is_large_list(inner) or types.is_fixed_size_list(inner)):
        return f"{kind}, not lists of floats"
    element = inner.value_type
    # DuckDB's [0.1, 0.2] is a list of decimals, and [1, 2] one of integers.
    if not (types.is_floating(element) or types.is_integer(element) or types.is_decimal(element)):
        return f"{kind}, not lists of floats"
    return ""


def floats(pa: Any, numbers: Any) -> Any:
    """The numbers of vectors as float32."""
    if not pa.types.is_floating(numbers.type):
        numbers = numbers.cast(pa.float64(), safe=False)
    return numbers.cast(pa.float32(), safe=False)


# --- Metadata ---


def reader(pa: Any, kind: Any, name: str, unread: list[str], notes: set[str]) -> Reader | None:
    """What reads a column of this type as metadata; None if it cannot be.

    Args:
        pa: pyarrow.
        kind: Arrow type of the column.
        name: of the column, or the path of a field in it.
        unread: receives the columns and fields that cannot be metadata, with their types.
        notes: receives what is not kept exactly, also while the column is read.
    """
    types = pa.types
    if _is_uuid(pa, kind) and hasattr(kind, "extension_name"):
        return _uuids
    if is_json(kind):
        return _jsons
    if types.is_dictionary(kind):
        if (plain := reader(pa, kind.value_type, name, unread, notes)) is None:
            return None
        return _decoded(plain)
    if types.is_boolean(kind) or types.is_integer(kind) or is_text(pa, kind) or types.is_null(kind):
        return lambda column: column.to_pylist()
    if types.is_floating(kind):
        return lambda column: [_float(number) for number in column.to_pylist()]
    if types.is_decimal(kind):
        return lambda column: [_number(number) for number in column.to_pylist()]
    if types.is_date(kind):
        return lambda column: [_date(days) for days in column.cast(pa.date32()).cast(pa.int32()).to_pylist()]
    if types.is_timestamp(kind):
        if kind.tz is None:
            notes.add(f"{name} has no time zone and is taken as UTC")
        unit = kind.unit
        return lambda column: [_timestamp(count, unit, name, notes) for count in column.cast(pa.int64()).to_pylist()]
    if types.is_time(kind):
        return lambda column: [_time(of_day) for of_day in column.cast(pa.time64("us"), safe=False).to_pylist()]
    if types.is_struct(kind):
        return _struct_reader(pa, kind, name, unread, notes)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        element = kind.value_type
        if _becomes_text(pa, element) and (inner := reader(pa, element, name, unread, notes)) is not None:
            return lambda column: _lists(column, inner)
    unread.append(f"{name} ({kind})")
    return None


def unknown_extension(field: Any) -> str:
    """The name of a type that a program added to Arrow and pyarrow does not know, such as pandas.period; or empty.

    What its values stand for is unknown: a period is a number of months since 1970.
    """
    if hasattr(field.type, "extension_name") or not field.metadata:
        return ""
    name: bytes = field.metadata.get(b"ARROW:extension:name", b"")
    return name.decode("utf-8", "replace")


def parsed(text: str) -> Any:
    """What a JSON text holds.

    Raises:
        InvalidInput: it is not JSON, or an object has a key twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"is not JSON: {error}") from None


def _without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        raise InvalidInput("has a key twice in one JSON object")
    return document


def _is_uuid(pa: Any, kind: Any) -> bool:
    return getattr(kind, "extension_name", "") == "arrow.uuid" or kind == pa.binary(16)


def _becomes_text(pa: Any, kind: Any) -> bool:
    types = pa.types
    is_uuid = getattr(kind, "extension_name", "") == "arrow.uuid"
    return bool(is_uuid or is_text(pa, kind) or types.is_date(kind) or types.is_timestamp(kind) or types.is_time(kind))


def _uuids(column: Any) -> list[Value]:
    return [None if data is None else str(UUID(bytes=data)) for data in storage(column).to_pylist()]


def _jsons(column: Any) -> list[Value]:
    return [_json(text) for text in storage(column).to_pylist()]


DECLARED: Mapping[str, Reader] = {"JSON": _jsons, "UUID": _uuids}
"""Logical type in Parquet → what reads it."""


def _json(text: str | None) -> Value:
    try:
        return None if text is None else parsed(text)
    except InvalidInput as error:
        return error


def _float(number: Any) -> Value:
    return None if number is None or math.isnan(number) else float(number)


def _number(number: Decimal | None) -> Value:
    """A decimal number; one that neither an integer of 64 bits nor a float64 can hold is refused."""
    if number is None:
        return None
    if number == number.to_integral_value() and number.as_tuple().exponent == 0:
        return int(number)  # if it does not fit 64 bits, the check of all metadata says so
    if Decimal(repr(real := float(number))) != number:
        return InvalidInput(
            f"is {number}, which has more digits than a number keeps", hint="cast the column to double, or to text"
        )
    return real


def _date(days: int | None) -> Value:
    if days is None:
        return None
    try:
        return (date(1970, 1, 1) + timedelta(days=days)).isoformat()
    except OverflowError:
        return InvalidInput(f"is {days} days after 1970; only the years 1 to 9999 can be kept")


def _timestamp(count: int | None, unit: str, name: str, notes: set[str]) -> Value:
    if count is None:
        return None
    microseconds, rest = divmod(count * 1_000_000, _UNITS_PER_S[unit])
    if rest:
        notes.add(f"{name} has nanoseconds and is cut to microseconds")
    try:
        moment = _EPOCH + timedelta(microseconds=microseconds)
    except OverflowError:
        return InvalidInput(f"is {count} {unit} after 1970; only the years 1 to 9999 can be kept")
    return f"{moment.replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


def _time(of_day: time | None) -> Value:
    return None if of_day is None else of_day.isoformat(timespec="microseconds")


def _struct_reader(pa: Any, kind: Any, name: str, unread: list[str], notes: set[str]) -> Reader | None:
    fields = [kind.field(number) for number in range(kind.num_fields)]
    readers = [reader(pa, field.type, f"{name}.{field.name}", unread, notes) for field in fields]

    def read(column: Any) -> list[Value]:
        # flatten(), not field(): it leaves out what is below a null.
        columns = [
            (field.name, read_field(values))
            for field, read_field, values in zip(fields, readers, column.flatten(), strict=True)
            if read_field is not None
        ]
        return [{name: values[row] for name, values in columns} for row in range(len(column))]

    return read if any(found is not None for found in readers) else None


def _decoded(read: Reader) -> Reader:
    return lambda column: read(column.dictionary_decode())


def _lists(column: Any, read: Reader) -> list[Value]:
    import pyarrow.compute as pc

    elements, at = read(column.flatten()), 0
    lists: list[Value] = []
    for length in pc.list_value_length(column).to_pylist():
        if length is None:
            lists.append(None)
            continue
        part = [element for element in elements[at : at + length] if element is not None]
        lists.append(next((element for element in part if isinstance(element, InvalidInput)), part))
        at += length
    return lists
