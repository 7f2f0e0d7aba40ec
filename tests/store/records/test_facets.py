"""After every write the table of facets matches the items, and filters on declared keys read it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedserve.errors import DiskFull, StoreError
from embedserve.store.local.records.filters import condition, facet_condition
from embedserve.store.local.records.records import Records
from embedserve.store.local.records.row import Row
from embedserve.store.local.store import LocalStore
from embedserve.types import EXTERNAL, And, Eq, Exists, Filter, In, Include, Item, Keep, Metadata, Not, Or, Range
from tests.store.store_cases import EVERYTHING, holds, items_file, unit

KEYS = ("color", "n", "ключ")
Facet = tuple[str, object, int]


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    opened = Records(tmp_path / "items.sqlite", 4, create=True, filter_keys=KEYS)
    yield opened
    opened.close()


def put(records: Records, **items: Metadata) -> list[int]:
    """Upsert items by id; their row numbers."""
    rows = [(Row.of(Item(id=id, vector=unit(1, 0, 0, 0), metadata=meta), 4), None) for id, meta in items.items()]
    with records.writing() as writing:
        return writing.upsert(rows).rids.tolist()


def facets(records: Records) -> list[Facet]:
    query = "SELECT facet_key.key, value, rid FROM facet JOIN facet_key ON facet.key = number ORDER BY rid, 1, 2"
    with records.reading() as view:
        return view._connection.execute(query).fetchall()


def test_every_value_of_a_declared_key_is_a_row_with_its_type(records: Records) -> None:
    put(records, a={"color": "5", "n": 5, "other": "x"}, b={"color": True, "n": 5.5, "ключ": False})
    put(records, c={"color": ["x", "y", "x", "a\x00b"], "n": [], "ключ": 2**63 - 1}, d={"other": 1})
    assert facets(records) == [
        ("color", "5", 1),
        ("n", 5, 1),
        ("color", b"\x01", 2),
        ("n", 5.5, 2),
        ("ключ", b"\x00", 2),
        ("color", "a\x01\x03b", 3),
        ("color", "x", 3),
        ("color", "y", 3),
        ("n", b"", 3),
        ("ключ", 2**63 - 1, 3),
    ]


def test_replacing_an_item_replaces_its_facets(records: Records) -> None:
    put(records, a={"color": ["x", "y"]}, b={"color": "x"})
    assert put(records, a={"n": 1.0}) == [3]
    assert facets(records) == [("color", "x", 2), ("n", 1.0, 3)]


def test_deleting_an_item_removes_its_facets_and_no_others(records: Records) -> None:
    put(records, a={"color": ["x", "y"], "n": -0.0}, b={"color": "x", "n": 0}, c={})
    with records.writing() as writing:
        writing.delete(["a", "c", "nowhere"])
    assert facets(records) == [("color", "x", 2), ("n", 0, 2)]


def test_a_write_that_fails_leaves_the_facets_unchanged(records: Records) -> None:
    put(records, a={"color": "x"})
    before = facets(records)
    pages = records._writer.connection.execute("PRAGMA page_count").fetchone()[0]
    records._writer.connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(DiskFull):
        put(records, a={"color": "y"}, **{f"b{n}": {"color": "x" * 5000} for n in range(20)})
    assert facets(records) == before


@pytest.mark.parametrize("meta", ["no JSON", "[1]", '{"color":{"x":1}}', '{"color":"z"}', "{}"])
def test_an_item_with_damaged_metadata_can_be_deleted_with_all_its_facets(
    records: Records, tmp_path: Path, meta: str
) -> None:
    put(records, a={"color": ["x", "y"]}, b={"color": "x"})
    with closing(sqlite3.connect(tmp_path / "items.sqlite")) as connection, connection:
        connection.execute("UPDATE item SET meta = ? WHERE id = 'a'", (meta,))
    with records.writing() as writing:
        writing.delete(["a"])
    left = facets(records)
    assert [facet for facet in left if facet[2] == 2] == [("color", "x", 2)]
    # If metadata lost a value without a trace, its facet stays, although no item has the value.
    assert [facet for facet in left if facet[2] == 1] == (
        [("color", "x", 1), ("color", "y", 1)] if meta == "{}" else []
    )


def test_other_keys_than_those_declared_at_creation_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "items.sqlite"
    Records(path, 4, create=True, filter_keys=("a", "b")).close()
    Records(path, 4, create=False, filter_keys=("a", "b")).close()
    for keys in [(), ("a",), ("b", "a"), ("a", "b", "c")]:
        with pytest.raises(StoreError, match="is damaged: its filter keys are a, b; those of its collection are"):
            Records(path, 4, create=False, filter_keys=keys)


WORDS = st.sampled_from(["x", "y", ""])
VALUES = st.one_of(WORDS, st.integers(0, 2), st.sampled_from([0.0, 1.0]), st.booleans(), st.lists(WORDS, max_size=2))
WRITES = st.lists(
    st.tuples(st.sampled_from("abcd"), st.none() | st.dictionaries(st.sampled_from([*KEYS, "other"]), VALUES)),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(WRITES)
def test_after_any_writes_the_facets_are_those_of_the_items(
    tmp_path_factory: pytest.TempPathFactory, writes: list[tuple[str, Metadata | None]]
) -> None:
    path = tmp_path_factory.mktemp("facets") / "items.sqlite"
    with closing(Records(path, 4, create=True, filter_keys=KEYS)) as records:
        live: dict[str, tuple[int, Metadata]] = {}
        for id, metadata in writes:
            if metadata is None:
                with records.writing() as writing:
                    writing.delete([id])
                live.pop(id, None)
            else:
                live[id] = (put(records, **{id: metadata})[0], metadata)
        expected = {
            (key, repr(_kept(element)), rid)
            for rid, metadata in live.values()
            for key in KEYS
            if key in metadata
            for element in _elements(metadata[key])
        }
        found = facets(records)
        assert {(key, repr(value), rid) for key, value, rid in found} == expected
        assert len(found) == len(expected)


def _elements(value: object) -> list[object]:
    return (value or [b""]) if isinstance(value, list) else [value]


def _kept(value: object) -> object:
    return {True: b"\x01", False: b"\x00"}[value] if isinstance(value, bool) else value


# --- Reading -------------------------------------------------------------------------------------------------------

LEAVES = [
    Eq("color", "x"),
    Eq("n", True),
    In("n", (1, 2.5, "x", False)),
    Range("n", gt=1.0),
    Range("n", gte=1.0, lt=2.0),
    Range("n", lte=2.0),
    Exists("ключ"),
]


@pytest.mark.parametrize("leaf", LEAVES, ids=str)
def test_a_condition_on_a_declared_key_is_looked_up_and_no_item_is_scanned(records: Records, leaf: Eq) -> None:
    for node in (leaf, And((leaf, Eq("other", 1))), Or((leaf, Eq("color", "y")))):
        where = condition(node, KEYS)
        for query in ("SELECT rid FROM item WHERE", "SELECT * FROM item WHERE id > 'a' AND"):
            plan = query_plan(records, f"{query} {where.sql}", where.values)
            assert "SEARCH facet USING PRIMARY KEY (key=?" in plan
            assert "SCAN item" not in plan
    if not isinstance(leaf, Exists):
        among = facet_condition(leaf, KEYS)
        assert "(key=? AND value" in query_plan(records, f"SELECT rid FROM facet WHERE {among.sql}", among.values)


def query_plan(records: Records, query: str, values: tuple[object, ...]) -> str:
    with records.reading() as view:
        steps = view._connection.execute(f"EXPLAIN QUERY PLAN {query}", values).fetchall()
    return "\n".join(step for _, _, _, step in steps)


def test_facets_of_a_removed_item_are_found_without_a_scan(records: Records) -> None:
    put(records, a={"color": "x", "n": 1})
    statements: list[str] = []
    records._writer.connection.set_trace_callback(statements.append)
    with records.writing() as writing:
        writing.delete(["a"])
    deletes = [statement for statement in statements if statement.startswith("DELETE FROM facet")]
    assert len(deletes) == 2
    for statement in deletes:
        assert query_plan(records, statement, ()) == "SEARCH facet USING PRIMARY KEY (key=? AND value=? AND rid=?)"


DOCUMENTS: list[Metadata] = [
    {"color": "x", "n": 1},
    {"color": ["x", "y"], "n": 2.5},
    {"color": True, "other": 1},
    {"n": 2, "other": 1},
    {},
    {"ключ": [], "n": 3, "color": "y"},
]


@pytest.mark.parametrize("few", [0, 1, 100])
@pytest.mark.parametrize("node", [*LEAVES, Not(Eq("color", "x")), And((Exists("n"), Eq("other", 1)))], ids=str)
def test_pages_are_the_same_whether_few_or_many_items_have_the_value(
    data: Path, monkeypatch: pytest.MonkeyPatch, few: int, node: Filter
) -> None:
    monkeypatch.setattr("embedserve.store.local.records.view._FEW", few)
    with LocalStore.open(data) as store:
        store.create_collection(
            "photos", fingerprint=EXTERNAL, encoder_name="", dimension=4, keep=Keep.NONE, filter_keys=KEYS
        )
        items = [Item(id=f"{n:02}", vector=unit(1, n, 0, 0), metadata=DOCUMENTS[n % 6]) for n in range(30)]
        store.upsert("photos", items)
        ids, token = [], ""
        while True:
            page = store.list_items("photos", page_size=4, page_token=token, filter=node, include=EVERYTHING)
            ids += [item.id for item in page.items]
            token = page.next_page_token
            if not token:
                break
        assert ids == [item.id for item in items if holds(node, item.metadata)]


def test_a_restart_keeps_the_facets_of_a_collection(data: Path) -> None:
    with LocalStore.open(data) as store:
        store.create_collection(
            "photos", fingerprint=EXTERNAL, encoder_name="", dimension=4, keep=Keep.NONE, filter_keys=["color"]
        )
        store.upsert("photos", [Item(id="a", vector=unit(1, 0, 0, 0), metadata={"color": "red", "n": 1})])
    with LocalStore.open(data) as store:
        for node, ids in ((Eq("color", "red"), ["a"]), (Eq("color", "blue"), []), (Eq("n", 1), ["a"])):
            page = store.list_items("photos", page_size=4, page_token="", filter=node, include=Include())
            assert [item.id for item in page.items] == ids
    with closing(sqlite3.connect(items_file(data))) as connection:
        assert connection.execute("SELECT * FROM facet").fetchall() == [(0, "red", 1)]
