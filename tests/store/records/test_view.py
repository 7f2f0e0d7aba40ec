"""What a read transaction returns, by row and by range."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from embedserve.errors import StoreError
from embedserve.store.local.records.records import Records
from embedserve.store.local.records.row import Row
from embedserve.types import Item
from tests.store.store_cases import random_units

VECTORS = random_units(40, 4)


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    """40 items, inserted in another order than that of their ids; row numbers 5, 6 and 40 are removed."""
    opened = Records(tmp_path / "items.sqlite", 4, create=True)
    with opened.writing() as writing:
        writing.upsert([(Row.of(Item(id=name(rid), vector=VECTORS[rid - 1]), 4), None) for rid in range(1, 41)])
    with opened.writing() as writing:
        writing.delete([name(rid) for rid in (5, 6, 40)])
    yield opened
    opened.close()


def name(rid: int) -> str:
    return f"é{rid * 7 % 41:02}"


LIVE = [rid for rid in range(1, 40) if rid not in (5, 6)]


def test_row_numbers_ascend_whatever_the_order_of_ids(records: Records) -> None:
    with records.reading() as view:
        rids = view.all_rids()
    assert rids.dtype == np.int64
    assert rids.tolist() == LIVE


def test_an_empty_collection_has_no_row_numbers_and_no_rows(tmp_path: Path) -> None:
    with closing(Records(tmp_path / "empty.sqlite", 4, create=True)) as records, records.reading() as view:
        assert view.all_rids().shape == (0,)
        assert list(view.rows_between(0, 2**63 - 1)) == []


@pytest.mark.parametrize(("first", "last"), [(1, 40), (0, 2**63 - 1), (4, 7), (5, 6), (39, 39), (7, 4)])
@pytest.mark.parametrize("batch", [1, 3, 4096])
def test_a_range_includes_both_ends_and_is_read_in_batches(
    records: Records, monkeypatch: pytest.MonkeyPatch, first: int, last: int, batch: int
) -> None:
    monkeypatch.setattr("embedserve.store.local.records.view._ROWS", batch)
    expected = [rid for rid in LIVE if first <= rid <= last]
    seen: list[int] = []
    with records.reading() as view:
        for rids, ids, vectors in view.rows_between(first, last):
            assert rids.dtype == np.int64
            assert 1 <= len(rids) <= batch
            assert ids == [name(rid).encode() for rid in rids]
            assert np.array_equal(vectors, VECTORS[rids - 1])
            seen += rids.tolist()
    assert seen == expected


def test_a_damaged_row_in_a_range_is_refused_by_name_and_ranges_without_it_are_read(
    records: Records, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(tmp_path / "items.sqlite")) as connection, connection:
        connection.execute("UPDATE item SET vec = zeroblob(16) WHERE rid = 20")
    with records.reading() as view:
        assert sum(len(rids) for rids, _, _ in view.rows_between(1, 19)) == 17
        with pytest.raises(StoreError, match=f"item '{name(20)}'"):
            list(view.rows_between(18, 22))
