"""Metadata: which values an item may carry, what Python's other types stand for, and how large they are.

What callers give (NumPy and pandas scalars, UUIDs, dates) becomes one of the stored types here, or is refused by name.
Neither NumPy nor pandas is imported: their scalars are known by their attributes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import Any, TypeAlias
from uuid import UUID

from embedserve.errors import InvalidInput

MetadataValue: TypeAlias = str | int | float | bool | Sequence[str]
Metadata: TypeAlias = Mapping[str, MetadataValue]

_TYPES_HINT = "values are strings, integers, floats, booleans or lists of strings"
_MISSING_HINT = "leave the key out where an item has no value"
_MAX_SHOWN = 60
_MAX_SHOWN_BITS = 256
"""Python itself refuses to print integers of more than 4,300 digits."""


def shown(value: object) -> str:
    """A value and its type for a message, as in "'5' (str)", "None", "the class Eq" or "a generator"."""
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    kind = type(value).__name__
    named = f"{'an' if kind[0] in 'aeiouAEIO' else 'a'} {kind}"
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"{named} of {len(value)} bytes"
    if isinstance(value, int) and value.bit_length() > _MAX_SHOWN_BITS:
        return f"{named} of {value.bit_length()} bits"
    if isinstance(value, str) and len(value) > _MAX_SHOWN:
        return f"{value[:_MAX_SHOWN]!r}… ({kind})"
    try:
        text = repr(value)
    except Exception:  # not ours; a message is better than none
        return named
    is_short = len(text) <= _MAX_SHOWN and "\n" not in text and not text.startswith("<")
    return f"{text} ({kind})" if is_short else named


# --- What Python's types stand for -----------------------------------------


def plain(value: object, what: str) -> str | int | float | bool:
    """A single value as it is stored and compared.

    NumPy's and pandas' scalars become Python's. UUIDs become text. A ``datetime`` becomes text in UTC that sorts, as in
    "2026-11-24T09:30:00.000000Z", and a ``date`` the beginning of such a text, "2026-11-24".

    Args:
        value: what the caller gave.
        what: names it in messages, as in "metadata 'year'".

    Raises:
        InvalidInput: it stands for none of the stored types, is missing, or could only be kept inexactly.
    """
    kind = type(value)
    if kind is str or kind is bool:
        return value  # type: ignore[return-value]
    if kind is int:
        if not -(2**63) <= value < 2**63:  # type: ignore[operator]
            raise InvalidInput(f"{what} is {digits(value)}, which does not fit 64 bits")  # type: ignore[arg-type]
        return value  # type: ignore[return-value]
    if kind is float:
        if value != value:
            raise InvalidInput(f"{what} is nan, not a number", hint=_MISSING_HINT)
        return value  # type: ignore[return-value]
    return _plain_of_another_type(value, what)


def _plain_of_another_type(value: Any, what: str) -> str | int | float | bool:
    if isinstance(value, str):  # np.str_, or a member of an enumeration
        return str.__str__(value)
    if isinstance(value, int):
        return plain(int(value), what)
    if isinstance(value, float):
        return plain(float(value), what)
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, datetime):
        return time_text(value, what)
    if isinstance(value, date):
        return value.isoformat()
    if getattr(value, "ndim", None) == 0 and callable(getattr(value, "item", None)):
        if getattr(value.dtype, "kind", "") not in "Mm":
            inner = value.item()
            if type(inner) is not type(value):
                return plain(inner, what)
        elif value.dtype.kind == "M" and value == value:
            raise InvalidInput(
                f"{what} is {shown(value)}, which has no time zone",
                hint="write pandas.Timestamp(value, tz='UTC'), or value.item().replace(tzinfo=datetime.UTC)",
            )
    raise InvalidInput(f"{what} is {shown(value)}", hint=_hint(value))


def _hint(value: Any) -> str:
    """What to write instead of a value that is not taken."""
    if value is None or type(value).__name__ in ("NAType", "NaTType", "datetime64"):
        return _MISSING_HINT
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"write text: value.decode(); {_TYPES_HINT}"
    from decimal import Decimal

    if isinstance(value, Decimal):
        return f"write float(value), or str(value) to keep every digit; {_TYPES_HINT}"
    if isinstance(value, timedelta) or type(value).__name__ == "timedelta64":
        return f"write a number of seconds: value.total_seconds(); {_TYPES_HINT}"
    if isinstance(value, time):
        return f"write text: value.isoformat(); {_TYPES_HINT}"
    if isinstance(value, Mapping):
        return f"write a key for each of its values; {_TYPES_HINT}"
    return _TYPES_HINT


def time_text(value: datetime, what: str) -> str:
    """A moment as text in UTC, always 27 characters, so that texts sort as the moments do.

    Raises:
        InvalidInput: it has no time zone, is missing (NaT), is finer than a microsecond, or UTC's calendar lacks it.
    """
    if value != value:
        raise InvalidInput(f"{what} is NaT, a missing time", hint=_MISSING_HINT)
    if value.tzinfo is None or value.utcoffset() is None:
        raise InvalidInput(
            f"{what} is {value.isoformat()}, which has no time zone",
            hint="say which it is: value.replace(tzinfo=datetime.UTC), or value.astimezone() for that of this machine",
        )
    if getattr(value, "nanosecond", 0):  # of pandas
        raise InvalidInput(f"{what} is {value}, which is finer than a microsecond", hint="write value.floor('us')")
    try:
        in_utc = value.astimezone(UTC)
    except OverflowError:
        raise InvalidInput(f"{what} is {value.isoformat()}, which is not in the years 1 to 9999 in UTC") from None
    return in_utc.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def plain_metadata(given: object) -> Metadata:
    """Metadata with the types that are stored; ``check_metadata`` holds the rest of their rules.

    Args:
        given: a mapping from text to values; None means none.

    Raises:
        InvalidInput: it is no mapping, or names the key that is no text or whose value is not taken.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        hint = "write a dict, as in metadata={'label': 'red'}"
        if callable(getattr(given, "to_dict", None)):
            hint = f"{hint}; of a pandas row: row.to_dict()"
        raise InvalidInput(f"metadata is {shown(given)}", hint=hint)
    result: dict[str, MetadataValue] = {}
    for key, value in given.items():
        if not isinstance(key, str):
            raise InvalidInput(f"metadata key {shown(key)} is no text", hint="write str(key)")
        kind = type(value)
        if kind is str or kind is int or kind is float or kind is bool:
            result[key] = value
        elif _is_list(value):
            result[key] = [_element(element, key) for element in value]
        else:
            result[key] = plain(value, f"metadata {key!r}")
    return result


def _is_list(value: Any) -> bool:
    if isinstance(value, (str, bytes, bytearray, memoryview)):
        return False
    return isinstance(value, Sequence) or getattr(value, "ndim", None) == 1


def _element(element: object, key: str) -> str:
    text = element if type(element) is str else plain(element, f"an element of metadata {key!r}")
    if not isinstance(text, str):
        raise InvalidInput(
            f"metadata {key!r} is a list with {shown(element)} in it",
            hint=f"write str(element) for each; {_TYPES_HINT}",
        )
    return text


def plain_id(value: object, what: str) -> str:
    """An item's id as text: UUIDs and integers are written out.

    Raises:
        InvalidInput: it is empty, of another type, or cannot be written in UTF-8.
    """
    if type(value) is str:
        text = value
    elif isinstance(value, str):
        text = str.__str__(value)
    elif isinstance(value, UUID):
        text = str(value)
    elif (number := _whole(value)) is not None and number.bit_length() <= _MAX_SHOWN_BITS:
        text = str(number)
    else:
        raise InvalidInput(f"{what} is {shown(value)}", hint="ids are text, integers or UUIDs; write str(value)")
    if not text:
        raise InvalidInput(f"{what} is empty", hint="an id has 1 to 256 bytes of UTF-8")
    if not text.isascii():
        check_utf_8(text, what)
    return text


def _whole(value: Any) -> int | None:
    """The integer that a value is, NumPy's included; None for anything else, booleans too."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return int(value)
    is_integer = getattr(value, "ndim", None) == 0 and getattr(getattr(value, "dtype", None), "kind", "") in "iu"
    return int(value) if is_integer else None


# --- Rules -----------------------------------------------------------------


@lru_cache(maxsize=1024)  # few keys recur; an exception is not cached
def check_metadata_key(key: str) -> None:
    """Refuse a key that is not 1–128 characters without quotes, backslashes and control characters.

    Raises:
        InvalidInput: with the offending key.
    """
    if not 1 <= len(key) <= 128 or not key.isprintable() or any(character in "\"'`\\" for character in key):
        raise InvalidInput(
            f"metadata key {key!r} is not allowed",
            hint="keys are 1–128 printable characters without quotes and backslashes",
        )


def check_metadata(metadata: Metadata) -> None:
    """Refuse keys and values that not every backend can store exactly.

    Raises:
        InvalidInput: names the key and says what is wrong with its value.
    """
    for key, value in metadata.items():
        check_metadata_key(key)
        if isinstance(value, bool):
            continue
        if isinstance(value, str):
            _check_text(key, value)
        elif isinstance(value, int):
            if not -(2**63) <= value < 2**63:
                raise InvalidInput(f"metadata {key!r} is {digits(value)}, which does not fit 64 bits")
        elif isinstance(value, float):
            if not math.isfinite(value):
                raise InvalidInput(
                    f"metadata {key!r} is {value}; only finite numbers can be kept",
                    hint=_MISSING_HINT if math.isnan(value) else "",
                )
        else:
            is_list = isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview))
            if not is_list or not all(isinstance(element, str) for element in value):
                raise InvalidInput(f"metadata {key!r} is a {type(value).__name__}", hint=_TYPES_HINT)
            for element in value:
                _check_text(key, element)


def _check_text(key: str, text: str) -> None:
    if not text.isascii():
        check_utf_8(text, f"metadata {key!r}")


def check_utf_8(text: str, what: str) -> None:
    """Refuse text with half a character, as file names may have.

    Raises:
        InvalidInput: with the text.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"{what} is {text!r}, which cannot be written in UTF-8") from None


def digits(number: int) -> str:
    """An integer for a message; one that would fill the screen, or that Python does not print, by its length."""
    return str(number) if number.bit_length() <= _MAX_SHOWN_BITS else f"an integer of {number.bit_length()} bits"


# --- Size ------------------------------------------------------------------


def metadata_bytes(metadata: Metadata) -> int:
    """Size of metadata as JSON in UTF-8, in bytes."""
    return len(json.dumps(dict(metadata), ensure_ascii=False).encode())


def metadata_bytes_at_most(metadata: Metadata) -> int:
    """An upper bound of ``metadata_bytes`` that is cheap to compute; about six times too high for plain text."""
    size_bytes = 2
    for key, value in metadata.items():
        size_bytes += 8 + _MAX_CHAR_BYTES * len(key)
        if isinstance(value, str):
            size_bytes += _MAX_CHAR_BYTES * len(value)
        elif isinstance(value, Sequence):
            size_bytes += sum(4 + _MAX_CHAR_BYTES * len(element) for element in value)
        else:
            size_bytes += _MAX_NUMBER_BYTES
    return size_bytes


_MAX_CHAR_BYTES = 6
"""Of one character in JSON: a control character becomes \\u0001; UTF-8 takes at most 4."""
_MAX_NUMBER_BYTES = 32
