"""Conditions and values as people type them."""

from __future__ import annotations

import pytest

from embedserve.cli.terminal.conditions import all_of, parse_condition, parse_value
from embedserve.errors import InvalidInput
from embedserve.types import And, Eq, Exists, Filter, In, Not, Range


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
        ("True", True),
        ("FALSE", False),
        ("1e5", 1e5),
        ("1e-05", 1e-05),
        (".5", 0.5),
        ("5.", 5.0),
        ("-0", 0),
        ("01234", "01234"),
        ("1e400", "1e400"),
        ("4111111111111111111", 4111111111111111111),
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
        ("ts > 1768907725507217522", Range("ts", gt=1768907725507217522)),
        ("exif.iso<=.5", Range("exif.iso", lte=0.5)),
        ("label", Exists("label")),
        ("my label=a b", Eq("my label", "a b")),
        ("url=http://x/?a=b", Eq("url", "http://x/?a=b")),
        ('label=""', Eq("label", "")),
        ("formula=a>b", Eq("formula", "a>b")),
        ("title=salt and pepper", Eq("title", "salt and pepper")),
        ("\"my label\" = 'a, b'", Eq("my label", "a, b")),
        ("'not label'", Exists("not label")),
        ("exif.iso", Exists("exif.iso")),
        ("'my label' != a", Not(Eq("my label", "a"))),
        ("label in (a, 'b, c', \"\")", In("label", ("a", "b, c", ""))),
        ("label IN (a)", In("label", ("a",))),
        ("year in(1999, 2001)", In("year", (1999, "1999", 2001, "2001"))),
    ],
)
def test_a_condition_becomes_a_filter(text: str, condition: Filter) -> None:
    assert parse_condition(text) == condition


def test_a_large_integer_is_kept_exactly() -> None:
    parsed = parse_condition("ts>9223372036854775807")
    assert isinstance(parsed, Range)
    assert (type(parsed.gt), parsed.gt) == (int, 2**63 - 1)


@pytest.mark.parametrize("text", ["2024-01-01", "2024-01-01T10:00:00Z", "01234", "'5'", "1.2.3"])
def test_a_bound_that_is_no_number_is_text(text: str) -> None:
    assert parse_condition(f"date >= {text}") == Range("date", gte=text.strip("'"))


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("zip=12345", In("zip", (12345, "12345"))),
        ("sold=True", In("sold", (True, "True"))),
        ("price!=1e-05", Not(In("price", (1e-05, "1e-05")))),
        ("zip='12345'", Eq("zip", "12345")),
        ("zip=01234", Eq("zip", "01234")),
    ],
)
def test_a_number_equals_a_text_that_is_spelt_the_same_unless_it_is_in_quotes(text: str, condition: Filter) -> None:
    assert parse_condition(text) == condition


@pytest.mark.parametrize(
    "text",
    [
        *("", "  ", "=cat", "!", "!label", ">=3", "<>", "label=", "a==", "year<"),
        *("price => 3", "price =< 3", "a<>3", "a=!3", "a===3", "a!==3", "price≥3"),
        *("label~x", "label~=x", "label=~x", "label in x", "label in ()", "label in (a,,b)", "my label", "label:cat"),
        *("3<price<5", "price>3 and price<5", "a=1 and b=2", "a=1 || b=2", "a='x' or b='y'", "not label=cat"),
        *("a='x", "a=\"x'", "price>3<5"),
    ],
)
def test_a_malformed_condition_is_refused_with_the_grammar(text: str) -> None:
    with pytest.raises(InvalidInput, match="is not a condition") as refused:
        parse_condition(text)
    assert refused.value.hint


@pytest.mark.parametrize("bound", ["1,5", "1_000", "1 000", "5%", "+5", "inf", "-Infinity", "nan", "true"])
def test_a_bound_that_is_almost_a_number_is_refused(bound: str) -> None:
    with pytest.raises(InvalidInput, match=r"which is not a (finite )?number") as refused:
        parse_condition(f"year>{bound}")
    assert "quotes" in refused.value.hint


@pytest.mark.parametrize("bound", ["9223372036854775808", "1e400", "9" * 5000])
def test_a_bound_that_no_item_can_have_is_refused(bound: str) -> None:
    with pytest.raises(InvalidInput, match=r"does not fit 64 bits|is larger than any number"):
        parse_condition(f"year>{bound}")


def test_a_key_that_is_not_allowed_is_refused() -> None:
    with pytest.raises(InvalidInput, match="metadata key 'a\"b' is not allowed"):
        parse_condition('a"b=1')


def test_several_conditions_must_all_hold() -> None:
    one, two = Exists("a"), Exists("b")
    assert all_of([]) is None
    assert all_of([one]) == one
    assert all_of([one, two]) == And((one, two))
