"""Filters in SQL against the slow evaluator, over metadata that is hard to store and to compare."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from embedserve.errors import InvalidInput
from embedserve.store.local.records.database import connect
from embedserve.store.local.records.facets import TABLES, Facets
from embedserve.store.local.records.filters import condition
from embedserve.store.local.records.row import from_json, to_json
from embedserve.types import And, Eq, Exists, Filter, In, Metadata, Not, Or, Range
from tests.store.filter_cases import ALL_KEYS, CONDITIONS, FLOATS, KEYS, METADATA
from tests.store.store_cases import holds


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    connection = connect(tmp_path_factory.mktemp("filters") / "items.sqlite")
    connection.execute("CREATE TABLE item (rid INTEGER PRIMARY KEY, meta TEXT)")
    for statement in TABLES:
        connection.execute(statement)
    yield connection
    connection.close()


def matches(
    table: sqlite3.Connection, node: Filter, *documents: Metadata, declared: Sequence[str] | None = None
) -> list[bool]:
    """Which documents match a filter, with these declared keys; with None the same for none and for all of them."""
    if declared is None:
        without, declared_all = (matches(table, node, *documents, declared=keys) for keys in ((), ALL_KEYS))
        assert without == declared_all
        return without
    table.execute("DELETE FROM item")
    table.execute("DELETE FROM facet")
    facets = Facets(declared)
    for rid, document in enumerate(documents, 1):
        meta = to_json(document)
        table.execute("INSERT INTO item (rid, meta) VALUES (?, ?)", (rid, meta))
        table.executemany("INSERT INTO facet (key, value, rid) VALUES (?, ?, ?)", facets.rows(rid, meta.encode()))
    where = condition(node, declared)
    rids = {rid for (rid,) in table.execute(f"SELECT rid FROM item WHERE {where.sql}", where.values)}
    return [rid in rids for rid in range(1, len(documents) + 1)]


@settings(max_examples=400, deadline=None)
@given(st.lists(METADATA, min_size=1, max_size=5), CONDITIONS, st.sets(KEYS).map(tuple))
@example([{"a": 2**53 + 1}, {"a": 2.0**53}], Eq("a", 2**53), ("a",))
@example([{"a": 2**63 - 1}], Eq("a", 2.0**63), ("a",))
@example([{"a": 2**63 - 1}], In("a", (2.0**63, 2**63 - 1)), ("a",))
@example([{"a": True}, {"a": 1}, {"a": "1"}, {"a": 1.0}], In("a", (1, "x")), ("a",))
@example([{"a": True}, {"a": 1}, {"a": "1"}, {"a": False}], In("a", (True,)), ("a",))
@example([{"a": "x"}, {"a": True}, {"a": 5}, {"a": []}, {"a": 1e308}], Range("a", gte=5.0), ("a",))
@example([{"a": "x"}, {"a": True}, {"a": 5}, {"a": []}, {"a": ""}], Range("a", gt=float("inf")), ("a",))
@example([{"a": -0.0}, {"a": 0}, {"a": ""}], Eq("a", 0.0), ("a",))
@example([{"a": []}, {}], Not(Exists("a")), ("a",))
@example([{"a": ["x", "5"]}, {"a": "5"}, {"a": 5}], Eq("a", "5"), ("a",))
@example([{"a": "a\x00b"}, {"a": "a\x01b"}, {"a": ["a"]}], In("a", ("a\x00b", "a\x01\x03b")), ("a",))
@example([{"a": 1768907725507217522 + n} for n in (-1, 0, 1)], Range("a", gt=1768907725507217522), ("a",))
@example([{"a": 2**53 + n} for n in (-1, 0, 1)], Range("a", gt=2.0**53), ("a",))
@example([{"a": 2.0**53}, {"a": 2.0**53 + 2}], Range("a", gte=2**53 + 1), ("a",))
@example([{"a": 2**63 - 1}, {"a": 2.0**63}], Range("a", lt=2.0**63), ("a",))
@example([{"a": 2**63 - 1}, {"a": 2.0**63}], Range("a", lte=2**63 - 1), ("a",))
@example([{"a": -(2**63)}, {"a": -(2.0**63)}, {"a": -(2**63) + 1}], Range("a", gt=-(2**63)), ("a",))
@example([{"a": 0.1}, {"a": 0}, {"a": -0.0}, {"a": 5e-324}], Range("a", gt=0, lt=1), ("a",))
@example([{"a": 2**53 + 1}, {"a": 2.0**53}], In("a", (2.0**53, "x")), ("a",))
@example([{"a": "b"}, {"a": ["a", "c"]}, {"a": 5}, {"a": []}, {"a": True}], Range("a", gt="a", lt="c"), ("a",))
@example([{"a": "b"}, {"a": ["a", "c"]}, {"a": 5}, {"a": []}, {"a": ""}], Range("a", gte=""), ("a",))
@example([{"a": "b"}, {"a": ["a", "c"]}, {"a": 5}, {"a": []}, {"a": ""}], Range("a", lt="b"), ("a",))
@example([{"a": f"x{c}"} for c in ("", "\0", "\1", "\2", "\1\2", "\0\3")], Range("a", gt="x\0", lte="x\1"), ("a",))
@example([{"a": 5}, {"a": "5"}, {"a": "\x01"}, {"a": ["\0"]}, {"a": []}], Range("a", lt="\x01"), ("a",))
@example([{"a": "\U00010000"}, {"a": "\uffff"}], Range("a", gt="\uffff"), ("a",))
def test_sql_matches_the_same_items_as_the_slow_evaluator(
    table: sqlite3.Connection, documents: list[Metadata], node: Filter, some: tuple[str, ...]
) -> None:
    expected = [holds(node, document) for document in documents]
    for declared in ((), some, ALL_KEYS):
        assert matches(table, node, *documents, declared=declared) == expected


@settings(max_examples=300, deadline=None)
@given(FLOATS, st.integers(-2, 2))
def test_neighbouring_doubles_are_distinguished(table: sqlite3.Connection, number: float, steps: int) -> None:
    other = number
    for _ in range(abs(steps)):
        other = math.nextafter(other, math.copysign(math.inf, steps))
    if math.isinf(other):
        other = number
    assert matches(table, Eq("a", other), {"a": number}) == [number == other]
    assert matches(table, Range("a", lt=other), {"a": number}) == [number < other]
    assert matches(table, Range("a", gte=other), {"a": number}) == [number >= other]


@settings(max_examples=300, deadline=None)
@given(METADATA)
def test_metadata_keeps_values_and_types(metadata: Metadata) -> None:
    back = from_json(to_json(metadata).encode())
    assert repr(back) == repr(metadata)


def test_a_condition_on_a_missing_key_is_false_and_its_negation_true(table: sqlite3.Connection) -> None:
    for node in (Eq("a", 1), Eq("a", "x"), Eq("a", False), In("a", (1, "x", True)), Range("a", lt=1.0), Exists("a")):
        assert matches(table, node, {"b": 1}) == [False]
        assert matches(table, Not(node), {"b": 1}) == [True]


def test_an_empty_and_is_true_and_an_empty_or_or_in_is_false(table: sqlite3.Connection) -> None:
    assert matches(table, And(()), {}) == [True]
    assert matches(table, Or(()), {}) == [False]
    assert matches(table, In("a", ()), {"a": 1}) == [False]
    assert matches(table, Not(Or(())), {}) == [True]


def test_numbers_that_no_item_can_have_equal_nothing(table: sqlite3.Connection) -> None:
    assert matches(table, In("a", (2**70 + 1, float("nan"), 10**400)), {"a": 2.0**70}) == [False]
    assert matches(table, Eq("a", 2**70), {"a": 2.0**70}) == [True]


def test_a_text_that_looks_like_sql_is_a_text(table: sqlite3.Connection) -> None:
    text = "x'); DROP TABLE item; --"
    assert matches(table, Eq("a", text), {"a": text}, {"a": "x"}) == [True, False]


def test_a_key_with_a_quote_is_refused(table: sqlite3.Connection) -> None:
    with pytest.raises(InvalidInput, match="is not allowed"):
        condition(Exists('a" OR 1'))


def test_thousands_of_conditions_do_not_nest_too_deep(table: sqlite3.Connection) -> None:
    node = Or(tuple(Eq("a", number) for number in range(3000)))
    assert matches(table, node, {"a": 2999}, {"a": 3000}) == [True, False]
