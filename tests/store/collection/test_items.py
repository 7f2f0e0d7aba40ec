from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from embedserve.errors import DimensionMismatch, InvalidInput
from embedserve.store.local.collection.page_token import page_token
from embedserve.store.local.store import LocalStore
from embedserve.types import Eq, Include, Item, Media, Metadata, SearchOptions
from tests.store.store_cases import EVERYTHING, all_ids, collection_of, found, new_collection, random_units, unit

METADATA: Metadata = {
    "most": 2**63 - 1,
    "least": -(2**63),
    "beyond doubles": 2**53 + 1,
    "double": 5.0,
    "third": 1 / 3,
    "zero": -0.0,
    "yes": True,
    "no": False,
    "text": 'é 😀 \x00 \x01 \\ " \u2028',
    "list": ["b", "a", "a", ""],
    "nothing": [],
    "a.b[0]": "",
}


def test_an_item_is_read_exactly_as_written_also_after_a_restart(data: Path) -> None:
    item = Item(
        id="ключ/1 \x00",
        vector=unit(1, 2, 3, 4),
        metadata=METADATA,
        content_sha256=bytes(range(32)),
        media=Media(data=b"\xff\xd8\x00", media_type="image/jpeg"),
    )
    with LocalStore.open(data) as store:
        new_collection(store)
        store.upsert("photos", [item])
        _same(store.get_items("photos", [item.id], EVERYTHING), item)
    with LocalStore.open(data) as store:
        _same(store.get_items("photos", [item.id], EVERYTHING), item)


def _same(got: list[Item | None], item: Item) -> None:
    (back,) = got
    assert back is not None
    assert back.vector is not None
    assert item.vector is not None
    assert back.vector.tobytes() == item.vector.tobytes()
    # repr distinguishes 5, 5.0 and True.
    assert repr(dict(back.metadata)) == repr(METADATA)
    assert (back.id, back.content_sha256, back.media) == (item.id, item.content_sha256, item.media)


def test_only_requested_fields_are_returned(store: LocalStore) -> None:
    media = Media(data=b"x", media_type="image/png")
    store.upsert("photos", [Item(id="a", vector=unit(1, 0, 0, 0), metadata={"n": 1}, media=media)])
    assert store.get_items("photos", ["a"], Include()) == [Item(id="a")]


def test_items_are_in_the_order_of_the_requested_ids_with_repetitions_and_gaps(store: LocalStore) -> None:
    store.upsert("photos", [Item(id=id, vector=unit(1, 0, 0, 0)) for id in "abc"])
    got = store.get_items("photos", ["c", "x", "a", "c"], Include())
    assert [item and item.id for item in got] == ["c", None, "a", "c"]


def test_many_ids_are_read_at_once(store: LocalStore) -> None:
    store.upsert("photos", [Item(id=str(n), vector=unit(1, 0, 0, 0)) for n in range(1200)])
    got = store.get_items("photos", [str(n) for n in range(1300)], Include())
    assert [item and item.id for item in got] == [str(n) if n < 1200 else None for n in range(1300)]
    assert store.delete_items("photos", [str(n) for n in range(1300)]) == 1200


def test_an_upsert_replaces_the_whole_item(store: LocalStore) -> None:
    media = Media(data=b"x", media_type="image/png")
    store.upsert("photos", [Item(id="a", vector=unit(1, 0, 0, 0), metadata={"n": 1, "m": 2}, media=media)])
    store.upsert("photos", [Item(id="a", vector=unit(0, 1, 0, 0), metadata={"n": 3})])
    (item,) = store.get_items("photos", ["a"], EVERYTHING)
    assert item is not None
    assert (item.metadata, item.media) == ({"n": 3}, None)
    assert found(store, unit(0, 1, 0, 0), SearchOptions()) == [("a", 1.0)]
    assert store.get_collection("photos").items == 1


def test_if_an_id_occurs_twice_the_later_item_counts(store: LocalStore) -> None:
    store.upsert("photos", [Item(id="a", vector=unit(1, 0, 0, 0)), Item(id="a", vector=unit(0, 1, 0, 0))])
    assert found(store, unit(0, 1, 0, 0), SearchOptions()) == [("a", 1.0)]


def test_deleting_counts_each_item_once(store: LocalStore) -> None:
    store.upsert("photos", [Item(id=id, vector=unit(1, 0, 0, 0)) for id in "abc"])
    assert store.delete_items("photos", ["a", "a", "x", "b"]) == 2
    assert store.delete_items("photos", ["a"]) == 0
    assert all_ids(store) == ["c"]
    assert store.get_collection("photos").items == 1


def test_writing_and_reading_nothing_is_allowed(store: LocalStore) -> None:
    store.upsert("photos", [])
    assert store.delete_items("photos", []) == 0
    assert store.get_items("photos", [], Include()) == []


def test_a_row_number_is_never_used_again(store: LocalStore) -> None:
    for _ in range(3):
        store.upsert("photos", [Item(id="a", vector=unit(1, 0, 0, 0))])
    store.delete_items("photos", ["a"])
    store.upsert("photos", [Item(id="b", vector=unit(1, 0, 0, 0))])
    assert collection_of(store).snapshot.delta.rids.tolist() == [1, 2, 3, 4]


def test_one_bad_item_fails_the_whole_call(store: LocalStore) -> None:
    good = Item(id="a", vector=unit(1, 0, 0, 0))
    with pytest.raises(DimensionMismatch, match="item 'b' has a vector of 2 numbers; the collection holds 4"):
        store.upsert("photos", [good, Item(id="b", vector=unit(1, 0))])
    with pytest.raises(InvalidInput, match="item 'b' has no vector"):
        store.upsert("photos", [good, Item(id="b")])
    with pytest.raises(InvalidInput, match="not valid Unicode"):
        store.upsert("photos", [good, Item(id="b", vector=unit(1, 0, 0, 0), metadata={"a": "\ud800"})])
    assert all_ids(store) == []
    assert found(store, unit(1, 0, 0, 0), SearchOptions()) == []


def test_a_text_that_is_not_unicode_is_invalid_input_everywhere(store: LocalStore) -> None:
    with pytest.raises(InvalidInput, match="not valid Unicode"):
        store.get_items("photos", ["\ud800"], Include())
    with pytest.raises(InvalidInput, match="not valid Unicode"):
        store.list_items("photos", page_size=1, page_token="", filter=Eq("a", "\ud800"), include=Include())


# --- Pages ---------------------------------------------------------------------------------------------------------

IDS = ["!", "A", "a", "a\x00", "aa", "b", "é", "ꙮ", "￿", "😀"]  # by their UTF-8 bytes


@pytest.mark.parametrize("page_size", [1, 3, 9, 10, 11])
def test_pages_contain_every_item_once_in_the_order_of_bytes(store: LocalStore, page_size: int) -> None:
    store.upsert("photos", [Item(id=id, vector=unit(1, 0, 0, 0)) for id in reversed(IDS)])
    assert all_ids(store, page_size=page_size) == IDS


def test_the_last_page_has_no_token_even_when_it_is_full(store: LocalStore) -> None:
    store.upsert("photos", [Item(id=id, vector=unit(1, 0, 0, 0)) for id in "abcd"])
    first = store.list_items("photos", page_size=2, page_token="", filter=None, include=Include())
    last = store.list_items("photos", page_size=2, page_token=first.next_page_token, filter=None, include=Include())
    assert ([item.id for item in last.items], last.next_page_token) == (["c", "d"], "")


def test_pages_with_a_filter_contain_all_matches(store: LocalStore) -> None:
    vectors = random_units(50, 4)
    store.upsert("photos", [Item(id=f"{n:02}", vector=vectors[n], metadata={"odd": n % 2 == 1}) for n in range(50)])
    ids, token = [], ""
    while True:
        page = store.list_items("photos", page_size=7, page_token=token, filter=Eq("odd", True), include=EVERYTHING)
        ids += [item.id for item in page.items]
        assert all(np.array_equal(np.asarray(item.vector), vectors[int(item.id)]) for item in page.items)
        token = page.next_page_token
        if not token:
            break
    assert ids == [f"{n:02}" for n in range(1, 50, 2)]


def test_writes_between_pages_neither_hide_nor_repeat_other_items(store: LocalStore) -> None:
    store.upsert("photos", [Item(id=f"{n:03}", vector=unit(1, 0, 0, 0)) for n in range(0, 100, 2)])
    ids, token, page_number = [], "", 0
    while True:
        page = store.list_items("photos", page_size=10, page_token=token, filter=None, include=Include())
        ids += [item.id for item in page.items]
        token = page.next_page_token
        if not token:
            break
        # Replaces an item of this page, adds one before it, and removes the item in the token.
        last = page.items[-1].id
        store.upsert("photos", [Item(id=page.items[0].id, vector=unit(0, 1, 0, 0))])
        store.upsert("photos", [Item(id=f"{page_number:03}-new", vector=unit(0, 1, 0, 0))])
        store.delete_items("photos", [last])
        page_number += 1
    assert ids == [f"{n:03}" for n in range(0, 100, 2)]


def test_a_token_works_in_any_collection_with_such_items(store: LocalStore) -> None:
    new_collection(store, "other")
    store.upsert("other", [Item(id=id, vector=unit(1, 0, 0, 0)) for id in "abc"])
    page = store.list_items("other", page_size=9, page_token=page_token("b"), filter=None, include=Include())
    assert [item.id for item in page.items] == ["c"]


@pytest.mark.parametrize(
    "token", ["x", "!!!!", "AAAA", "é", page_token("a") + "A", page_token("a")[:-1], page_token("")]
)
def test_an_invented_token_is_refused(store: LocalStore, token: str) -> None:
    with pytest.raises(InvalidInput, match="was not made by an earlier page"):
        store.list_items("photos", page_size=1, page_token=token, filter=None, include=Include())


def test_a_token_with_any_changed_character_is_refused(store: LocalStore) -> None:
    token = page_token("photos/0001.jpg")
    for place, character in enumerate(token):
        broken = token[:place] + ("A" if character != "A" else "B") + token[place + 1 :]
        with pytest.raises(InvalidInput):
            store.list_items("photos", page_size=1, page_token=broken, filter=None, include=Include())
