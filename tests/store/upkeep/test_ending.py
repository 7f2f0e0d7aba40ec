"""Backups, restores and checks end soon after their callers have left: the rows between two looks are counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from embedserve.store.local.records import verify
from embedserve.store.local.records.row import Row
from embedserve.store.local.store import LocalStore
from embedserve.types import Item
from tests.store.store_cases import new_collection, random_units

TAGS = 1000


class GivenUp(Exception):
    pass


@pytest.fixture
def tagged(store: LocalStore) -> LocalStore:
    """A collection whose items have very many facet values."""
    new_collection(store, "tagged", 4, filter_keys=["tags"])
    items = [
        Item(id=f"{n}", vector=vector, metadata={"tags": [f"{n} {tag}" for tag in range(TAGS)]})
        for n, vector in enumerate(random_units(12, 4))
    ]
    store.upsert("tagged", items)
    return store


class Looks:
    """Counts rows and facets between two looks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows = self.most = self.looks = 0
        crc: Any = Row.__dict__["crc"].fget

        def counted(row: Row) -> int:
            self.rows += 1
            return int(crc(row))

        monkeypatch.setattr(Row, "crc", property(counted))

    def __call__(self, *_: object) -> None:
        self.most, self.rows = max(self.most, self.rows), 0
        self.looks += 1


def test_a_backup_looks_at_every_row_and_every_few_facets(tagged: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks(monkeypatch)
    with tagged.backup_collection("tagged", looks) as file:
        backup = file.read()
    assert looks.most == 1
    assert looks.looks >= 12 * (TAGS // verify._FACETS + 2)
    looks = Looks(monkeypatch)
    tagged.restore_collection("restored", [backup], looks)
    assert looks.looks >= 12 * (TAGS // verify._FACETS + 2)


def test_a_check_looks_at_every_row_and_every_few_facets(tagged: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks(monkeypatch)
    assert tagged.check_collection("tagged", looks).problems == ()
    assert looks.looks >= 12 * TAGS  # each facet is compared with its item, too


@pytest.mark.parametrize("looks", [1, 7, 30, 70])
def test_the_work_ends_at_the_look_at_which_its_caller_has_left(tagged: LocalStore, looks: int) -> None:
    def leaving() -> Callable[..., None]:
        left = looks

        def look(*_: object) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise GivenUp
            assert left > 0, "it went on"

        return look

    with pytest.raises(GivenUp), tagged.backup_collection("tagged", leaving()):
        pass
    with pytest.raises(GivenUp):
        tagged.check_collection("tagged", leaving())
    with tagged.backup_collection("tagged") as file:
        backup = file.read()
    with pytest.raises(GivenUp):
        tagged.restore_collection("restored", [backup[:100], backup[100:]], leaving())
    assert [info.name for info in tagged.list_collections()] == ["photos", "tagged"]
