"""Filters ↔ messages."""

from __future__ import annotations

from typing import Any

from embedserve.conditions import BOUNDS, check_bounds, is_double
from embedserve.errors import InvalidInput
from embedserve.types import And, Eq, Exists, Filter, In, Limits, Not, Or, Range
from embedserve.v1 import common_pb2 as common_pb
from embedserve.wire.metadata import value_from_proto, value_to_proto


def filter_to_proto(condition: Filter) -> common_pb.Filter:
    """A filter as a message.

    Raises:
        InvalidInput: the bounds of a range are not allowed.
    """
    match condition:
        case And(filters):
            return common_pb.Filter(all_of=common_pb.FilterList(filters=map(filter_to_proto, filters)))
        case Or(filters):
            return common_pb.Filter(any_of=common_pb.FilterList(filters=map(filter_to_proto, filters)))
        case Not(inner):
            return common_pb.Filter(not_of=filter_to_proto(inner))
        case Eq(key, value):
            return common_pb.Filter(equals=common_pb.FilterEquals(key=key, value=value_to_proto(value)))
        case In(key, values):
            return common_pb.Filter(one_of=common_pb.FilterOneOf(key=key, values=map(value_to_proto, values)))
        case Range():
            return common_pb.Filter(range=_range_to_proto(condition))
        case Exists(key):
            return common_pb.Filter(exists=common_pb.FilterExists(key=key))


def filter_from_proto(message: common_pb.Filter, limits: Limits) -> Filter:
    """The filter in a message. One that is too large is refused while it is read, not afterwards.

    Raises:
        InvalidInput: a node has no field set, a list instead of a single value, or two forms of one bound.
        LimitExceeded: max_filter_nodes or max_filter_depth is exceeded.
    """
    return _FilterReader(limits).read(message, 1)


class _FilterReader:
    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._nodes = 0

    def read(self, message: common_pb.Filter, depth: int) -> Filter:
        self._limits.check("max_filter_depth", depth, "levels in the filter")
        self._count(1)
        match message.WhichOneof("node"):
            case "all_of":
                return And(self._read_all(message.all_of, depth))
            case "any_of":
                return Or(self._read_all(message.any_of, depth))
            case "not_of":
                return Not(self.read(message.not_of, depth + 1))
            case "equals":
                return Eq(message.equals.key, _single(message.equals.key, message.equals.value))
            case "one_of":
                key = message.one_of.key
                self._count(len(message.one_of.values))
                return In(key, tuple(_single(key, value) for value in message.one_of.values))
            case "range":
                return _range_from_proto(message.range)
            case "exists":
                return Exists(message.exists.key)
            case None:
                raise InvalidInput("a filter node has no field set")

    def _read_all(self, filters: common_pb.FilterList, depth: int) -> tuple[Filter, ...]:
        self._limits.check(
            "max_filter_nodes", self._nodes + len(filters.filters), "conditions and values in the filter"
        )
        return tuple(self.read(inner, depth + 1) for inner in filters.filters)

    def _count(self, nodes: int) -> None:
        self._nodes += nodes
        self._limits.check("max_filter_nodes", self._nodes, "conditions and values in the filter")


def _single(key: str, message: common_pb.MetadataValue) -> str | int | float | bool:
    value = value_from_proto(message)
    if not isinstance(value, (str, int, float)):
        raise InvalidInput(f"the filter compares {key!r} with a list; only single values are allowed")
    return value


def _range_to_proto(condition: Range) -> common_pb.FilterRange:
    check_bounds(condition.key, condition.bounds)
    message = common_pb.FilterRange(key=condition.key)
    for name, bound in condition.bounds.items():
        # A double wherever it holds the bound, as older servers know only doubles. They find no bound in the others,
        # and refuse the range.
        if isinstance(bound, str) or (isinstance(bound, int) and not is_double(bound)):
            getattr(message, f"{name}_value").CopyFrom(value_to_proto(bound))
        else:
            setattr(message, name, bound)
    return message


def _range_from_proto(message: common_pb.FilterRange) -> Range:
    bounds: dict[str, Any] = {}
    for name in BOUNDS:
        value_name = f"{name}_value"
        if message.HasField(value_name):  # type: ignore[arg-type]  # one of its fields
            if message.HasField(name):  # type: ignore[arg-type]
                raise InvalidInput(
                    f"the range on {message.key!r} has both {name} and {value_name}", hint="set one of the two"
                )
            bounds[name] = _single(message.key, getattr(message, value_name))
        elif message.HasField(name):  # type: ignore[arg-type]
            bounds[name] = getattr(message, name)
    return Range(message.key, **bounds)
