"""Conditions and values as people type them."""

from __future__ import annotations

import pytest

from embedserve.cli.terminal.conditions import all_of, parse_condition, parse_value
from embedserve.errors import InvalidInput
from embedserve.types import And, Eq, Exists, Filter, Not, Range


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12),
        ("-3", -3),
        ("0", 0),
        ("0.5", 0.5),
        ("-1.25", -1.25),
        ("1.5e3", 1500.0),
        ("true", True),
        ("false", False),
        ("cat", "cat"),
        ("", ""),
        ("007", "007"),
        ("True", "True"),
        ("1e5", "1e5"),
        ("1.2.3", "1.2.3"),
        ("nan", "nan"),
        ("inf", "inf"),
        ("+5", "+5"),
        ("1_000", "1_000"),
        ("٣", "٣"),
        ("9223372036854775807", 9223372036854775807),
        ("9223372036854775808", "9223372036854775808"),
        ('"12"', "12"),
        ("'true'", "true"),
        ('""', ""),
        ('"', '"'),
        ("it's", "it's"),
    ],
)
def test_a_value_is_typed_by_its_spelling(text: str, value: object) -> None:
    parsed = parse_value(text)
    assert (type(parsed), parsed) == (type(value), value)


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("label=cat", Eq("label", "cat")),
        ("label==cat", Eq("label", "cat")),
        ("label = cat ", Eq("label", "cat")),
        ("label!=cat", Not(Eq("label", "cat"))),
        ("year>=1999", Range("year", gte=1999)),
        ("year<=1999.5", Range("year", lte=1999.5)),
        ("year > 1e3", Range("year", gt=1000)),
        ("year<-3", Range("year", lt=-3)),
        ("label", Exists("label")),
        ("my label=a b", Eq("my label", "a b")),
        ("url=http://x/?a=b", Eq("url", "http://x/?a=b")),
        ("label=", Eq("label", "")),
        ("formula=a>b", Eq("formula", "a>b")),
    ],
)
def test_a_condition_becomes_a_filter(text: str, condition: Filter) -> None:
    assert parse_condition(text) == condition


@pytest.mark.parametrize("text", ["", "  ", "=cat", "!", "!label", ">=3", "<>"])
def test_a_malformed_condition_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="is not a condition"):
        parse_condition(text)


@pytest.mark.parametrize("text", ["year>=old", "year<", "year>1,5"])
def test_an_order_needs_a_number(text: str) -> None:
    with pytest.raises(InvalidInput, match="which is not a number"):
        parse_condition(text)


def test_a_key_that_is_not_allowed_is_refused() -> None:
    with pytest.raises(InvalidInput, match="metadata key 'a\"b' is not allowed"):
        parse_condition('a"b=1')


def test_several_conditions_must_all_hold() -> None:
    one, two = Exists("a"), Exists("b")
    assert all_of([]) is None
    assert all_of([one]) == one
    assert all_of([one, two]) == And((one, two))
