"""What Python's types stand for as metadata, ids and bounds. The rules of what is stored are in test_types."""

from __future__ import annotations

import enum
import math
from collections import OrderedDict
from datetime import UTC, date, datetime, timedelta, timezone
from fractions import Fraction
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from embedserve.errors import InvalidInput
from embedserve.metadata import plain, plain_id, plain_metadata, shown
from embedserve.types import And, Eq, In, Or, Range, check_metadata

ID = UUID("12345678-1234-5678-1234-567812345678")
MOMENT = datetime(2026, 11, 24, 10, 30, tzinfo=timezone(timedelta(hours=1)))
TEXT = "2026-11-24T09:30:00.000000Z"


class Colour(enum.StrEnum):
    RED = "red"


class Size(enum.IntEnum):
    LARGE = 3


class Shape(str, enum.Enum):  # noqa: UP042  # as older programs write it
    ROUND = "round"


class Timestamp(datetime):
    """As pandas makes it: a datetime with nanoseconds."""

    nanosecond = 0


class NaT(datetime):
    """As pandas marks a missing time: a datetime that equals nothing."""

    def __eq__(self, other: object) -> bool:
        return False

    def __ne__(self, other: object) -> bool:
        return True

    __hash__ = datetime.__hash__


class NAType:
    """As pandas marks a missing value; comparisons with it give itself, which is neither true nor false."""

    def __eq__(self, other: object) -> Any:
        return self

    __ne__ = __eq__
    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        raise TypeError("boolean value of NA is ambiguous")

    def __repr__(self) -> str:
        return "<NA>"


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (np.int64(-(2**63)), -(2**63)),
        (np.uint8(7), 7),
        (np.float32(0.5), 0.5),
        (np.float64(0.1), 0.1),
        (np.float16(2), 2.0),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.array(5), 5),
        (Colour.RED, "red"),
        (Shape.ROUND, "round"),
        (Size.LARGE, 3),
        (ID, str(ID)),
        (MOMENT, TEXT),
        (Timestamp(2026, 11, 24, 9, 30, tzinfo=UTC), TEXT),
        (datetime(2026, 11, 24, 9, 30, 0, 5, UTC), "2026-11-24T09:30:00.000005Z"),
        (datetime(1, 1, 1, tzinfo=UTC), "0001-01-01T00:00:00.000000Z"),
        (date(2026, 11, 4), "2026-11-04"),
    ],
    ids=lambda value: f"{type(value).__name__} {value}",
)
def test_a_value_that_stands_for_a_stored_one_becomes_it_with_its_exact_type(given: Any, stored: Any) -> None:
    for found in (
        plain(given, "it"),
        plain_metadata({"key": given})["key"],
        Eq("key", given).value,
        In("key", [given]).values[0],
    ):
        assert (found, type(found)) == (stored, type(stored))
    check_metadata(plain_metadata({"key": given}))


def test_lists_of_what_stands_for_text_become_lists_of_text() -> None:
    for given in (["a", np.str_("b")], ("a", "b"), np.array(["a", "b"]), [Shape.ROUND, Colour.RED]):
        [value] = plain_metadata({"key": given}).values()
        assert value in (["a", "b"], ["round", "red"])
        assert {type(element) for element in value} == {str}
    assert plain_metadata({"key": [ID, MOMENT]}) == {"key": [str(ID), TEXT]}


def test_metadata_is_none_or_a_mapping_of_any_kind() -> None:
    assert plain_metadata(None) == {}
    assert plain_metadata(OrderedDict(a=1)) == {"a": 1}
    with pytest.raises(InvalidInput, match="metadata is ") as caught:
        plain_metadata(SimpleNamespace(to_dict=dict))
    assert "row.to_dict()" in caught.value.hint


def test_times_as_text_sort_as_the_times_do() -> None:
    tick, behind = timedelta(microseconds=1), timezone(-timedelta(hours=9))
    moments = [
        *(datetime(1, 1, 1, tzinfo=UTC), datetime(999, 12, 31, tzinfo=UTC), datetime(1969, 12, 31, 23, 59, 59, 9, UTC)),
        *(MOMENT - tick, MOMENT, MOMENT.astimezone(behind) + tick, MOMENT + timedelta(hours=1)),
        datetime(9999, 12, 31, tzinfo=UTC),
    ]
    texts = [plain(moment, "it") for moment in moments]
    assert texts == sorted(texts)
    assert {len(str(text)) for text in texts} == {27}
    # A date is the beginning of the times of its day, so a range from it to the next day holds exactly these.
    assert "2026-11-23T23:59:59.999999Z" < str(plain(date(2026, 11, 24), "it")) < TEXT < "2026-11-25"


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        (datetime(2026, 11, 24, 9, 30), "which has no time zone", "replace(tzinfo=datetime.UTC)"),
        (np.datetime64("2026-11-24T09:30:00.000000001"), "which has no time zone", "tz='UTC'"),
        (NaT(2026, 1, 1), "NaT, a missing time", "leave the key out"),
        (np.datetime64("NaT"), "it is ", "leave the key out"),
        (NAType(), "it is a NAType", "leave the key out"),
        (None, "it is None", "leave the key out"),
        (math.nan, "it is nan", "leave the key out"),
        (np.float32("nan"), "it is nan", "leave the key out"),
        (datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1))), "not in the years 1 to 9999", ""),
        (timedelta(hours=1), r"it is datetime.timedelta\(seconds=3600\) \(timedelta\)", "total_seconds"),
        (np.timedelta64(5, "ns"), "it is ", "total_seconds"),
        (2**63, "it is 9223372036854775808, which does not fit 64 bits", ""),
        (np.uint64(2**63), "it is 9223372036854775808, which does not fit 64 bits", ""),
        (10**5000, "it is an integer of 16610 bits, which does not fit 64 bits", ""),
        (Fraction(1, 3), r"Fraction\(1, 3\)", "integers, floats"),
        (np.complex64(1), "complex", "integers, floats"),
        (np.bytes_(b"a"), "it is a bytes", "decode"),
        (b"a" * 10**6, "it is a bytes of 1000000 bytes", "decode"),
        ({"a": 1}, r"it is \{'a': 1\} \(dict\)", "a key for each"),
        (str, "it is the class str", "integers, floats"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_stands_for_no_stored_value_is_refused_with_what_to_write(given: Any, message: str, hint: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        plain(given, "it")
    assert hint in caught.value.hint
    with pytest.raises(InvalidInput, match="'key'"):
        check_metadata(plain_metadata({"key": given}))


def test_a_time_finer_than_a_microsecond_is_not_cut_in_silence() -> None:
    moment = Timestamp(2026, 11, 24, 9, 30, tzinfo=UTC)
    moment.nanosecond = 1
    with pytest.raises(InvalidInput, match="finer than a microsecond") as caught:
        plain(moment, "it")
    assert "floor('us')" in caught.value.hint


def test_bounds_become_numbers_or_the_text_of_a_time() -> None:
    times: Any = Range("ts", gte=MOMENT, lt=date(2026, 11, 25))
    assert (times.gte, times.lt) == (TEXT, "2026-11-25")
    numbers = Range("n", gt=np.int64(2**62 + 1), lte=np.float32(0.5))
    assert (numbers.gt, type(numbers.gt), numbers.lte, type(numbers.lte)) == (2**62 + 1, int, 0.5, float)


def test_filters_take_lists_and_generators_and_keep_tuples() -> None:
    assert And([Eq("a", 1)]) == And((Eq("a", 1),))
    assert Or(Eq("a", n) for n in (1, 2)) == Or((Eq("a", 1), Eq("a", 2)))
    assert In("a", {1}) == In("a", [1]) == In("a", np.array([1])) == In("a", (n for n in (1,))) == In("a", (1,))
    assert hash(And([In("a", [1])])) == hash(And((In("a", (1,)),)))


@pytest.mark.parametrize(
    ("given", "id"),
    [("a", "a"), (7, "7"), (0, "0"), (np.int64(-7), "-7"), (ID, str(ID)), (np.str_("ü"), "ü"), (Size.LARGE, "3")],
)
def test_integers_and_uuids_are_ids_as_their_text(given: Any, id: str) -> None:
    found = plain_id(given, "id")
    assert (found, type(found)) == (id, str)


def test_a_value_is_shown_with_its_type_and_never_at_length() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError

    assert shown("5") == "'5' (str)"
    assert shown(None) == "None"
    assert shown(int) == "the class int"
    assert shown(n for n in [1]) == "a generator"
    assert shown(10**5000) == "an int of 16610 bits"
    assert shown(b"\0" * 10**7) == "a bytes of 10000000 bytes"
    assert shown("x" * 10**6) == f"'{'x' * 60}'… (str)"
    assert shown(list(range(10**5))) == "a list"
    assert shown(Broken()) == "a Broken"
