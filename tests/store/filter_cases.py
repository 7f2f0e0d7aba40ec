"""Metadata that is hard to store and to compare, and filters over it."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from embedserve.types import And, Eq, Exists, In, Not, Or, Range

ALL_KEYS = ("a", "a.b", "b[0]", "$", "#-1", "ключ", "two words", "{%?}")
KEYS = st.sampled_from(ALL_KEYS)
TEXTS = st.one_of(
    st.sampled_from(
        ["", "5", "5.0", "true", "null", "a", "A", "a\x00b", "a\x01b", "a\x01\x02", '"', "\\u0001", "é", "é"]
    ),
    st.sampled_from(
        ["2026-11-24T09:30:00Z", "2026-11-24T09:30:00.5Z", "\uffff", "\U00010000", "a\x00", "a\x01", "a\x02"]
    ),
    st.text("\x00\x01\x02\x03\x04a", max_size=4),
    st.text(max_size=6),
)
INTS = st.one_of(
    st.integers(-3, 6),
    st.sampled_from(
        [2**53 - 1, 2**53, 2**53 + 1, -(2**53) - 1, 2**63 - 1, 2**63 - 513, -(2**63), -(2**63) + 1, 2**62 + 1]
    ),
    st.integers(-(2**63), 2**63 - 1),
)
FLOATS = st.one_of(
    st.sampled_from([0.0, -0.0, 5.0, 0.1, 1 / 3, 2.0**53, 2.0**63, -(2.0**63), 5e-324, 1.7976931348623157e308]),
    st.floats(allow_nan=False, allow_infinity=False),
)
SCALARS = st.one_of(TEXTS, INTS, FLOATS, st.booleans())
METADATA = st.dictionaries(KEYS, st.one_of(SCALARS, st.lists(TEXTS, max_size=3)), max_size=4)
NUMBER_BOUNDS = st.none() | FLOATS | INTS | st.sampled_from([float("inf"), float("-inf")])


def ranges(bounds: st.SearchStrategy[Any]) -> st.SearchStrategy[Range]:
    """Ranges with at least one of these bounds."""
    return st.builds(Range, KEYS, gt=bounds, gte=bounds, lt=bounds, lte=bounds).filter(lambda node: bool(node.bounds))


RANGES = ranges(NUMBER_BOUNDS) | ranges(st.none() | TEXTS)
CONDITIONS = st.recursive(
    st.one_of(
        st.builds(Eq, KEYS, SCALARS),
        st.builds(In, KEYS, st.lists(SCALARS, max_size=4).map(tuple)),
        RANGES,
        st.builds(Exists, KEYS),
    ),
    lambda inner: st.one_of(
        st.builds(And, st.lists(inner, max_size=3).map(tuple)),
        st.builds(Or, st.lists(inner, max_size=3).map(tuple)),
        st.builds(Not, inner),
    ),
    max_leaves=6,
)
