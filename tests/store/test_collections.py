from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from embedserve.errors import AlreadyExists, CollectionNotFound, DiskFull, InvalidInput, StoreError
from embedserve.store.local.collection import describe
from embedserve.store.local.directories import Directories
from embedserve.store.local.records.catalog import Catalog, Entry
from embedserve.store.local.store import LocalStore
from embedserve.store.protocol import VectorStore
from embedserve.types import EXTERNAL, Include, Item, Keep, SearchOptions
from tests.store.store_cases import all_ids, items_file, new_collection, unit


def test_a_local_store_is_a_vector_store(store: LocalStore) -> None:
    as_protocol: VectorStore = store
    assert as_protocol.list_collections() == store.list_collections()


def test_a_collection_reports_its_settings(store: LocalStore) -> None:
    made = store.create_collection("x", fingerprint="f" * 64, encoder_name="r18", dimension=8, keep=Keep.THUMBNAILS)
    assert (made.fingerprint, made.encoder_name, made.dimension, made.keep) == ("f" * 64, "r18", 8, Keep.THUMBNAILS)
    assert (made.items, made.aliases, made.index) == (0, (), "exact (flat inner product)")
    assert store.get_collection("x") == made


def test_a_collection_counts_its_items_and_bytes(store: LocalStore, data: Path) -> None:
    before = store.get_collection("photos").disk_bytes
    store.upsert("photos", [Item(id=str(n), vector=unit(1, n, 0, 0)) for n in range(1000)])
    after = store.get_collection("photos")
    assert after.items == 1000
    assert after.disk_bytes > before
    assert after.disk_bytes == sum(file.stat().st_size for file in items_file(data).parent.iterdir())


def test_collections_are_listed_by_name(store: LocalStore) -> None:
    for name in ("b", "a", "Z"):
        new_collection(store, name)
    assert [info.name for info in store.list_collections()] == ["Z", "a", "b", "photos"]


@pytest.mark.parametrize("name", ["a", "9", "A.b_c-d", "x" * 64])
def test_names_of_letters_digits_and_three_signs_are_allowed(store: LocalStore, name: str) -> None:
    new_collection(store, name)
    assert store.get_collection(name).name == name


@pytest.mark.parametrize("name", ["", ".a", "-a", "_a", "a b", "a/b", "..", "ä", "a\n", "x" * 65])
def test_other_names_are_refused_for_collections_and_aliases(store: LocalStore, name: str) -> None:
    with pytest.raises(InvalidInput, match="is not allowed"):
        new_collection(store, name)
    with pytest.raises(InvalidInput, match="is not allowed"):
        store.set_alias(name, "photos")


def test_a_taken_name_is_refused(store: LocalStore) -> None:
    store.set_alias("live", "photos")
    with pytest.raises(AlreadyExists, match="collection 'photos'"):
        new_collection(store, "photos")
    with pytest.raises(AlreadyExists, match="alias of collection 'photos'"):
        new_collection(store, "live")
    with pytest.raises(AlreadyExists, match="is a collection"):
        store.set_alias("photos", "photos")


def test_an_alias_stands_for_its_collection_in_every_call(store: LocalStore) -> None:
    store.set_alias("live", "photos")
    store.upsert("live", [Item(id="a", vector=unit(1, 0, 0, 0))])
    assert store.get_collection("live").name == "photos"
    assert all_ids(store, "live") == ["a"]
    assert store.get_items("live", ["a"], Include()) == [Item(id="a")]
    assert store.search("live", unit(1, 0, 0, 0)[None], SearchOptions(), [None])[0][0].id == "a"
    assert store.delete_items("live", ["a"]) == 1


def test_a_moved_alias_leads_to_its_new_collection_at_once(store: LocalStore) -> None:
    new_collection(store, "new")
    store.set_alias("live", "photos")
    store.set_alias("also", "live")
    assert store.get_collection("photos").aliases == ("also", "live")
    store.set_alias("live", "new")
    assert store.get_collection("live").name == "new"
    assert store.get_collection("photos").aliases == ("also",)


def test_an_empty_collection_removes_the_alias(store: LocalStore) -> None:
    store.set_alias("live", "photos")
    store.set_alias("live", "")
    with pytest.raises(CollectionNotFound):
        store.get_collection("live")
    with pytest.raises(CollectionNotFound, match="no alias 'live'"):
        store.set_alias("live", "")


def test_an_alias_needs_a_collection(store: LocalStore) -> None:
    with pytest.raises(CollectionNotFound, match="'nowhere'"):
        store.set_alias("live", "nowhere")


def test_an_alias_cannot_be_deleted_as_a_collection(store: LocalStore) -> None:
    store.set_alias("live", "photos")
    with pytest.raises(CollectionNotFound) as caught:
        store.delete_collection("live")
    assert caught.value.hint == "'live' is an alias of 'photos'"
    assert store.get_collection("photos").aliases == ("live",)


def test_a_deleted_collection_is_gone_with_aliases_and_files(store: LocalStore, data: Path) -> None:
    store.set_alias("live", "photos")
    store.upsert("photos", [Item(id="a", vector=unit(1, 0, 0, 0))])
    store.delete_collection("photos")
    for name in ("photos", "live"):
        with pytest.raises(CollectionNotFound):
            store.get_collection(name)
    assert list((data / "collections").iterdir()) == []


def test_a_new_collection_with_an_old_name_is_empty(store: LocalStore) -> None:
    store.upsert("photos", [Item(id="a", vector=unit(1, 0, 0, 0))])
    store.delete_collection("photos")
    new_collection(store)
    assert all_ids(store) == []


def test_every_call_says_which_collection_is_missing(store: LocalStore) -> None:
    calls: list[Callable[[], object]] = [
        lambda: store.get_collection("x"),
        lambda: store.delete_collection("x"),
        lambda: store.upsert("x", []),
        lambda: store.get_items("x", [], Include()),
        lambda: store.delete_items("x", []),
        lambda: store.list_items("x", page_size=1, page_token="", filter=None, include=Include()),
        lambda: store.search("x", unit(1, 0)[None], SearchOptions(), [None]),
    ]
    for call in calls:
        with pytest.raises(CollectionNotFound, match="there is no collection 'x'"):
            call()


def test_a_restart_finds_collections_and_aliases_again(data: Path) -> None:
    with LocalStore.open(data) as store:
        store.create_collection("a", fingerprint="f" * 64, encoder_name="r18", dimension=3, keep=Keep.NONE)
        new_collection(store, "b")
        new_collection(store, "gone")
        store.set_alias("live", "a")
        store.set_alias("old", "b")
        store.set_alias("old", "")
        store.delete_collection("gone")
        before = store.list_collections()
    with LocalStore.open(data) as store:
        after = store.list_collections()
    assert [(i.name, i.fingerprint, i.keep, i.aliases, i.created_unix_s) for i in after] == [
        (i.name, i.fingerprint, i.keep, i.aliases, i.created_unix_s) for i in before
    ]
    assert [info.aliases for info in after] == [("live",), ()]


def test_a_start_removes_what_a_crash_left_of_a_creation_or_removal(data: Path) -> None:
    with LocalStore.open(data) as store:
        new_collection(store)
    begun, unfinished = (data / "collections" / (digit * 32) for digit in "01")
    begun.mkdir()
    shutil.copytree(items_file(data).parent, unfinished)
    (unfinished / "UNFINISHED").touch()
    (data / "collections" / "notes").mkdir()
    LocalStore.open(data).close()
    assert not begun.exists()
    assert not unfinished.exists()
    assert (data / "collections" / "notes").exists(), "what the store has not made is not its to remove"


def test_items_that_an_older_catalog_does_not_know_are_kept_and_logged(
    data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with LocalStore.open(data) as store:
        new_collection(store)
    older = (data / "catalog.sqlite").read_bytes()
    with LocalStore.open(data) as store:
        new_collection(store, "newer")
        store.upsert("newer", [Item(id="a", vector=unit(1, 0, 0, 0))])
    newest = (data / "catalog.sqlite").read_bytes()
    (data / "catalog.sqlite").write_bytes(older)
    with LocalStore.open(data) as store:
        assert [info.name for info in store.list_collections()] == ["photos"]
    assert "contains items, but the catalog, perhaps an older one, names no collection for it" in caplog.text
    (data / "catalog.sqlite").write_bytes(newest)
    with LocalStore.open(data) as store:
        assert all_ids(store, "newer") == ["a"]


@pytest.mark.parametrize("step", ["remove", "mark_for_removal"])
def test_an_interrupted_removal_is_finished_at_the_next_start(
    data: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def died(*_: object) -> None:
        raise KeyboardInterrupt

    store = LocalStore.open(data, background=False)
    new_collection(store)
    new_collection(store, "gone")
    with monkeypatch.context() as patched:
        patched.setattr(Directories, step, died)
        with pytest.raises(KeyboardInterrupt):
            store.delete_collection("gone")
    store.close()
    with LocalStore.open(data) as store:
        left = ["gone", "photos"] if step == "mark_for_removal" else ["photos"]
        assert [info.name for info in store.list_collections()] == left
    assert len(list((data / "collections").iterdir())) == len(left)


def test_a_creation_that_the_catalog_refuses_leaves_no_collection(
    store: LocalStore, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(catalog: Catalog, entry: Entry) -> None:
        raise DiskFull("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(Catalog, "add", full)
        with pytest.raises(DiskFull):
            new_collection(store, "x")
    with pytest.raises(CollectionNotFound):
        store.get_collection("x")
    new_collection(store, "x")
    assert store.get_collection("x").items == 0


def test_a_deletion_that_the_catalog_refuses_keeps_the_collection(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(catalog: Catalog, name: str) -> None:
        raise DiskFull("no space left")

    store.upsert("photos", [Item(id="a", vector=unit(1, 0, 0, 0))])
    with monkeypatch.context() as patched:
        patched.setattr(Catalog, "remove", full)
        with pytest.raises(DiskFull):
            store.delete_collection("photos")
    assert all_ids(store) == ["a"]


def test_a_lost_catalog_is_not_taken_for_an_empty_one(data: Path) -> None:
    with LocalStore.open(data) as store:
        new_collection(store)
    kept = items_file(data)
    (data / "catalog.sqlite").unlink()
    with pytest.raises(StoreError, match=r"catalog\.sqlite is damaged: it is missing"):
        LocalStore.open(data)
    assert kept.exists()


def test_a_lost_items_file_is_named(data: Path) -> None:
    with LocalStore.open(data) as store:
        new_collection(store)
    items_file(data).unlink()
    with pytest.raises(StoreError, match=r"items\.sqlite is damaged: it is missing"):
        LocalStore.open(data)
    shutil.rmtree(next((data / "collections").iterdir()))
    with pytest.raises(StoreError, match="the files of collection 'photos' are missing"):
        LocalStore.open(data)


def test_an_emptied_items_file_is_named(data: Path) -> None:
    with LocalStore.open(data) as store:
        new_collection(store)
    items_file(data).write_bytes(b"")
    with pytest.raises(StoreError, match=r"items\.sqlite is damaged: it is empty"):
        LocalStore.open(data)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["ok", 'a"b'], "is not allowed"),
        ([""], "is not allowed"),
        (["x" * 129], "is not allowed"),
        ([f"key-{n}" for n in range(65)], "65 filter keys are declared; a collection has at most 64"),
    ],
)
def test_filter_keys_that_are_not_allowed_are_refused_and_nothing_is_created(
    data: Path, keys: list[str], message: str
) -> None:
    with LocalStore.open(data) as store:
        with pytest.raises(InvalidInput, match=message):
            store.create_collection(
                "photos", fingerprint=EXTERNAL, encoder_name="", dimension=4, keep=Keep.NONE, filter_keys=keys
            )
        assert store.list_collections() == []
    assert list((data / "collections").iterdir()) == []


def test_filter_keys_given_twice_count_once(data: Path) -> None:
    keys = [f"key-{n}" for n in range(64)]
    with LocalStore.open(data) as store:
        info = store.create_collection(
            "photos", fingerprint=EXTERNAL, encoder_name="", dimension=4, keep=Keep.NONE, filter_keys=keys * 2
        )
    assert info.filter_keys == tuple(keys)


def test_a_collection_whose_size_is_not_known_does_not_hide_the_others(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    new_collection(store, "other")
    uid, real = store.get_collection("photos").uid, describe._bytes_below

    def fails_for_one(directory: Path) -> int:
        if directory.name == uid:
            raise StoreError(f"{directory} cannot be used: Input/output error")
        return real(directory)

    monkeypatch.setattr(describe, "_bytes_below", fails_for_one)
    assert [(info.name, info.disk_bytes > 0) for info in store.list_collections()] == [
        ("other", True),
        ("photos", False),
    ]
    assert "the size of a collection is not known" in caplog.text
    with pytest.raises(StoreError, match="Input/output error"):
        store.get_collection("photos")
