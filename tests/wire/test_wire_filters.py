"""Filters as messages."""

from __future__ import annotations

import pytest
from hypothesis import example, given

from embedserve import wire
from embedserve.errors import InvalidInput
from embedserve.types import And, Exists, Filter, Limits, Not, Range
from embedserve.v1 import common_pb2 as pb
from tests.store.filter_cases import CONDITIONS, RANGES

UNLIMITED = Limits(max_filter_depth=1000, max_filter_nodes=1000)


def sent(condition: Filter) -> pb.Filter:
    """A filter as the server receives it."""
    return pb.Filter.FromString(wire.filter_to_proto(condition).SerializeToString())


@given(CONDITIONS)
def test_a_filter_comes_back_as_it_was_sent(condition: Filter) -> None:
    back = wire.filter_from_proto(sent(condition), UNLIMITED)
    assert back == condition


@given(RANGES)
@example(Range("ts", gt=1768907725507217522))
@example(Range("ts", gte=2**53 + 1, lt=2**63 - 1))
@example(Range("ts", lte=-(2**63) + 1))
def test_the_bounds_of_a_range_arrive_exactly(condition: Range) -> None:
    back = wire.filter_from_proto(sent(condition), UNLIMITED)
    assert isinstance(back, Range)
    for name, bound in condition.bounds.items():
        arrived = back.bounds[name]
        assert arrived == bound
        assert isinstance(arrived, str) == isinstance(bound, str)


@given(RANGES)
def test_a_bound_that_a_double_holds_is_sent_as_an_older_server_reads_it_and_any_other_is_not(condition: Range) -> None:
    message = sent(condition).range
    for name, bound in condition.bounds.items():
        fits = not isinstance(bound, str) and float(bound) == bound
        assert message.HasField(name) == fits  # type: ignore[arg-type]
        assert message.HasField(f"{name}_value") != fits  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (pb.FilterRange(key="a", gt=5, gt_value=pb.MetadataValue(int64_value=5)), "has both gt and gt_value"),
        (pb.FilterRange(key="a", lte=5, lte_value=pb.MetadataValue(string_value="5")), "has both lte and lte_value"),
        (pb.FilterRange(key="a", lt_value=pb.MetadataValue()), "no field set"),
        (pb.FilterRange(key="a", lt_value=pb.MetadataValue(string_list_value=pb.StringList())), "with a list"),
    ],
)
def test_a_bound_in_two_forms_or_without_a_value_is_refused(message: pb.FilterRange, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        wire.filter_from_proto(pb.Filter(range=message), Limits())


def test_a_bound_that_cannot_be_sent_is_refused_by_name() -> None:
    with pytest.raises(InvalidInput, match="the bound lt of the range on 'a'"):
        wire.filter_to_proto(And((Exists("b"), Not(Range("a", lt=10**400)))))
