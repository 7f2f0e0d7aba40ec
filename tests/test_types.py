"""Checks on metadata, filters and limits."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest

from embedserve.errors import InvalidInput, LimitExceeded
from embedserve.types import (
    EXTERNAL,
    And,
    CollectionInfo,
    Eq,
    Exists,
    Filter,
    In,
    Keep,
    Limits,
    Metadata,
    Not,
    Or,
    Range,
    check_filter,
    check_metadata,
    check_metadata_key,
)

# --- Metadata ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"label": "shirt", "year": 2026, "price": 9.5, "sold": False, "tags": ["a", "b"]},
        {"smallest": -(2**63), "largest": 2**63 - 1},
        {"empty text": "", "no tags": [], "tuple": ("a",)},
        {"größe": "ü", "a.b/c": "x", "k" * 128: 1},
    ],
    ids=["nothing", "each-type", "64-bit-ends", "empty-values", "keys"],
)
def test_metadata_that_every_backend_can_store_is_accepted(metadata: Metadata) -> None:
    check_metadata(metadata)


@pytest.mark.parametrize("key", ["", "k" * 129, "a\nb", "it's", 'say "x"', "back\\slash", "`tick`", "nul\0", "\ud800"])
def test_a_key_that_could_end_a_quotation_or_is_not_printable_is_refused(key: str) -> None:
    with pytest.raises(InvalidInput, match="metadata key") as caught:
        check_metadata_key(key)
    assert "128" in caught.value.hint


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**30])
def test_an_integer_beyond_64_bits_is_refused(value: int) -> None:
    with pytest.raises(InvalidInput, match=f"'n' is {value}"):
        check_metadata({"n": value})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_float_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(InvalidInput, match="only finite numbers"):
        check_metadata({"x": value})


@pytest.mark.parametrize("value", [None, b"", b"bytes", {"a": "b"}, [1, 2], ["a", None], [["a"]], {"a"}, 1j])
def test_a_value_of_another_type_is_refused_with_the_types_that_are_allowed(value: object) -> None:
    with pytest.raises(InvalidInput, match="metadata 'key' is a ") as caught:
        check_metadata({"key": value})  # type: ignore[dict-item]
    assert "lists of strings" in caught.value.hint


@pytest.mark.parametrize("value", ["half a \ud83d", ["fine", "\udfff"]])
def test_text_that_is_not_unicode_is_refused(value: str | list[str]) -> None:
    with pytest.raises(InvalidInput, match="UTF-8"):
        check_metadata({"text": value})


# --- Filters -------------------------------------------------------------------------------------------------------


def nested(levels: int) -> Filter:
    """A filter with this many levels."""
    condition: Filter = Exists("k")
    for _ in range(levels - 1):
        condition = Not(condition)
    return condition


@pytest.mark.parametrize(
    "condition",
    [
        And(()),
        Or(()),
        And((Eq("a", 1), Or((In("b", ("x", "y")), Not(Exists("c")))))),
        In("a", ()),
        Range("a", gte=0.0),
        Range("a", gt=-math.inf, lt=math.inf),
        Eq("a", True),
    ],
    ids=repr,
)
def test_a_filter_within_the_rules_is_accepted(condition: Filter) -> None:
    check_filter(condition, Limits())


@pytest.mark.parametrize(
    "condition", [Eq("", 1), In("a'b", ("x",)), Range('"', gt=1), Exists("\n"), And((Not(Eq("", 1)),))], ids=repr
)
def test_a_bad_key_is_found_anywhere_in_a_filter(condition: Filter) -> None:
    with pytest.raises(InvalidInput, match="metadata key"):
        check_filter(condition, Limits())


def test_a_range_needs_a_bound() -> None:
    with pytest.raises(InvalidInput, match="the range on 'year' has no bound"):
        check_filter(Range("year"), Limits())


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ({"gt": 1.0, "lt": math.nan}, "the bound lt of the range on 'ts' is nan, which is not a number"),
        ({"lt": 2**63}, "the bound lt of the range on 'ts' is 9223372036854775808, which does not fit 64 bits"),
        ({"gte": -(2**63) - 1}, "the bound gte .* -9223372036854775809, which does not fit 64 bits"),
        ({"lt": 10**400}, "the bound lt .* an integer of 1329 bits, which does not fit 64 bits"),
        ({"gt": 10**10_000}, "the bound gt .* an integer of 33220 bits, which does not fit 64 bits"),
        ({"gt": True}, "the bound gt of the range on 'ts' is True"),
        ({"lte": ["x"]}, r"the bound lte of the range on 'ts' is \['x'\] \(list\)"),
        ({"lte": "\ud800"}, "the bound lte .* cannot be written in UTF-8"),
        ({"gt": "x", "lt": 5}, "has the text 'x' for gt and the number 5 for lt, and no value is both"),
    ],
)
def test_a_bound_that_cannot_be_compared_is_refused_by_name(bounds: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        check_filter(And((Range("ts", **bounds),)), Limits())


@pytest.mark.parametrize(
    "condition",
    [
        Range("ts", gt=2**63 - 1, gte=-(2**63)),
        Range("ts", gt=2**53 + 1, lt=1e300),
        Range("day", gte="", lt="2027"),
        Range("day", lt="\0"),
    ],
    ids=repr,
)
def test_integers_of_64_bits_and_texts_are_bounds(condition: Range) -> None:
    check_filter(condition, Limits())


def test_a_filter_may_be_as_deep_as_the_limit_and_no_deeper() -> None:
    limits = Limits(max_filter_depth=5)
    check_filter(nested(5), limits)
    with pytest.raises(LimitExceeded, match="6 levels in the filter; max_filter_depth is 5"):
        check_filter(nested(6), limits)


def test_a_filter_deeper_than_pythons_stack_is_refused_like_any_other() -> None:
    with pytest.raises(LimitExceeded, match="max_filter_depth"):
        check_filter(nested(100_000), Limits())


def test_values_of_a_list_count_towards_the_size_of_a_filter() -> None:
    limits = Limits(max_filter_nodes=10)
    check_filter(In("k", tuple(range(9))), limits)
    with pytest.raises(LimitExceeded, match="11 conditions and values in the filter; max_filter_nodes is 10"):
        check_filter(In("k", tuple(range(10))), limits)


# --- Limits and collections ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [limit.name for limit in fields(Limits)])
def test_a_limit_below_1_is_refused_by_name(name: str) -> None:
    with pytest.raises(InvalidInput, match=f"{name} is 0"):
        Limits(**{name: 0})


@pytest.mark.parametrize("value", [None, "5", 5.0, True, 2**32])
def test_a_limit_is_a_whole_number_as_wide_as_on_the_wire(value: Any) -> None:
    with pytest.raises(InvalidInput, match=f"max_k is {value}; a limit must be between 1 and 4294967295"):
        Limits(max_k=value)


def test_a_value_at_the_limit_passes_and_one_above_is_refused_with_both_numbers() -> None:
    limits = Limits(max_k=10)
    limits.check("max_k", 10, "hits")
    with pytest.raises(LimitExceeded, match="11 hits; max_k is 10"):
        limits.check("max_k", 11, "hits")


def test_every_limit_has_a_sentence_for_its_help() -> None:
    assert [limit.name for limit in fields(Limits) if not limit.metadata["help"].endswith(".")] == []


def test_a_collection_of_external_vectors_is_recognised() -> None:
    def collection(fingerprint: str) -> CollectionInfo:
        return CollectionInfo(
            name="c", fingerprint=fingerprint, encoder_name="", dimension=2, keep=Keep.NONE, created_unix_s=0.0
        )

    assert collection(EXTERNAL).external
    assert not collection("0" * 64).external


def test_the_old_name_of_deleted_rows_warns_and_still_works() -> None:
    info = CollectionInfo(
        name="photos", fingerprint="f", encoder_name="e", dimension=4, keep=Keep.NONE, created_unix_s=0.0, deleted=7
    )
    with pytest.warns(DeprecationWarning, match="now called deleted"):
        assert info.dead == 7
