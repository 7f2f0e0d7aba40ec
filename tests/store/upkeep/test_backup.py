"""A backup contains one committed state; an incomplete or damaged backup is refused and leaves nothing behind."""

from __future__ import annotations

import hashlib
import itertools
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from embedserve.errors import AlreadyExists, CollectionNotFound, InvalidInput, StoreError
from embedserve.store.local.records import records
from embedserve.store.local.records.database import schema_of
from embedserve.store.local.store import LocalStore
from embedserve.store.local.upkeep.backup import last_line
from embedserve.types import And, Eq, Filter, Item, Keep, Media, Range, SearchOptions
from tests.store.store_cases import (
    EVERYTHING,
    all_ids,
    collection_of,
    found,
    items_file,
    new_collection,
    random_units,
    unit,
)

DIMENSION = 16


def item(number: int, version: int = 0) -> Item:
    metadata = {"number": number, "half": number / 2, "text": f"Übung \x00 {number % 3}", "tags": ["a", str(number)]}
    return Item(
        id=f"item-{number:03}",
        vector=random_units(1, DIMENSION, seed=number + 1000 * version)[0],
        metadata={**metadata, "even": number % 2 == 0, "version": version},
        content_sha256=bytes([number % 256] * 32),
        media=Media(data=f"picture {number}".encode() * 20, media_type="image/png") if number % 4 == 0 else None,
    )


def filled(store: LocalStore, name: str = "filled", count: int = 40) -> None:
    store.create_collection(
        name,
        fingerprint="sha256:" + "ab" * 32,
        encoder_name="small/encoder",
        dimension=DIMENSION,
        keep=Keep.ORIGINALS,
        target_recall=0.9,
        filter_keys=["text", "number"],
    )
    store.upsert(name, [item(number) for number in range(count)])
    # Some rows are removed, and some have new numbers.
    store.delete_items(name, [f"item-{number:03}" for number in range(0, count, 7)])
    store.upsert(name, [item(number, version=1) for number in range(1, count, 5)])


def backup_of(store: LocalStore, name: str = "filled") -> bytes:
    with store.backup_collection(name) as file:
        return file.read()


def chunks(content: bytes, size: int = 4096) -> Iterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


def vector_bytes(item: Item) -> bytes:
    assert item.vector is not None
    return item.vector.tobytes()


def everything(store: LocalStore, name: str) -> list[tuple[object, ...]]:
    page = store.list_items(name, page_size=1000, page_token="", filter=None, include=EVERYTHING)
    assert not page.next_page_token
    return [
        (
            each.id,
            each.metadata,
            None if each.vector is None else each.vector.tobytes(),
            each.content_sha256,
            each.media,
        )
        for each in page.items
    ]


def sealed(database: bytes) -> bytes:
    """A backup of these bytes with a valid last line, as an attacker may write it."""
    return database + last_line(hashlib.sha256(database).hexdigest())


def database_of(backup: bytes) -> bytes:
    return backup[: backup.rindex(b"embedserve backup, sha256 ")]


def changed(backup: bytes, path: Path, *statements: str) -> bytes:
    path.write_bytes(database_of(backup))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        for statement in statements:
            connection.execute(statement)
    return sealed(path.read_bytes())


def first_version(backup: bytes, path: Path) -> bytes:
    """The same in the first version of the database, which had no filter keys."""
    return changed(
        backup,
        path,
        "DROP TABLE facet",
        "DROP TABLE facet_key",
        "UPDATE backup SET document = json_set(document, '$.filter_keys', json('[]'))",
        "PRAGMA user_version = 1",
    )


@pytest.fixture
def backup(store: LocalStore) -> bytes:
    """Backup of the collection "filled"."""
    filled(store)
    return backup_of(store)


def refused(store: LocalStore, data: Path, content: bytes, size: int = 4096) -> str:
    """The error of a restore of these bytes, which must leave everything unchanged."""
    before = sorted(data.rglob("*")), store.list_collections()
    with pytest.raises(InvalidInput) as caught:
        store.restore_collection("restored", chunks(content, size))
    assert (sorted(data.rglob("*")), store.list_collections()) == before
    return caught.value.message


# --- Round trips ---------------------------------------------------------------------------------------------------


def test_a_restored_collection_has_the_same_items_bit_for_bit(store: LocalStore, backup: bytes) -> None:
    info = store.restore_collection("restored", chunks(backup))
    assert everything(store, "restored") == everything(store, "filled")
    original = store.get_collection("filled")
    assert info.items == original.items == 35
    assert info.uid != original.uid
    for name in ("fingerprint", "encoder_name", "dimension", "keep", "created_unix_s", "index_spec", "target_recall"):
        assert getattr(info, name) == getattr(original, name)
    assert info.filter_keys == ("text", "number")


@pytest.mark.parametrize(
    "condition", [None, Eq("text", "Übung \x00 1"), And((Range("number", gte=5), Eq("tags", "a")))]
)
def test_a_restored_collection_returns_the_same_answers(
    store: LocalStore, backup: bytes, condition: Filter | None
) -> None:
    store.restore_collection("restored", chunks(backup))
    for query in random_units(5, DIMENSION, seed=99):
        options = SearchOptions(k=12, filter=condition)
        answer = found(store, query, options, name="restored")
        assert answer == found(store, query, options, name="filled")
        assert answer


@pytest.mark.parametrize("size", [1, 89, 90, 91, 1 << 20])
def test_chunks_of_any_size_are_accepted(store: LocalStore, size: int) -> None:
    new_collection(store, "one")
    store.upsert("one", [Item(id="a", vector=unit(1, 2, 3, 4))])
    store.restore_collection("restored", chunks(backup_of(store, "one"), size))
    assert everything(store, "restored") == everything(store, "one")


def test_an_empty_collection_is_restored_empty_and_takes_items(store: LocalStore) -> None:
    store.restore_collection("restored", [backup_of(store, "photos")])
    assert all_ids(store, "restored") == []
    store.upsert("restored", [Item(id="a", vector=unit(1, 0, 0, 0))])
    assert found(store, unit(1, 0, 0, 0), SearchOptions(), name="restored") == [("a", 1.0)]


def test_a_restored_collection_survives_a_restart_and_takes_writes(data: Path) -> None:
    with LocalStore.open(data) as store:
        filled(store)
        before = everything(store, "filled")
        store.restore_collection("restored", chunks(backup_of(store)))
        store.delete_collection("filled")
    with LocalStore.open(data) as store:
        assert everything(store, "restored") == before
        store.upsert("restored", [item(number, version=2) for number in range(50)])
        assert store.delete_items("restored", ["item-001"]) == 1
        assert all_ids(store, "restored") == [f"item-{number:03}" for number in range(50) if number != 1]


def test_a_backup_of_another_data_directory_is_restored(store: LocalStore, backup: bytes, tmp_path: Path) -> None:
    with LocalStore.open(tmp_path / "other") as other:
        other.restore_collection("filled", chunks(backup))
        assert everything(other, "filled") == everything(store, "filled")


def test_a_collection_is_backed_up_by_its_alias(store: LocalStore, backup: bytes) -> None:
    store.set_alias("current", "filled")
    store.restore_collection("restored", chunks(backup_of(store, "current")))
    assert everything(store, "restored") == everything(store, "filled")
    with pytest.raises(CollectionNotFound), store.backup_collection("nothing"):
        pass


def test_a_backup_is_a_database_that_other_tools_can_read(backup: bytes, tmp_path: Path) -> None:
    (tmp_path / "backup").write_bytes(backup)
    with closing(sqlite3.connect(f"file:{tmp_path / 'backup'}?mode=ro", uri=True)) as connection:
        assert connection.execute("SELECT COUNT(*) FROM item").fetchone() == (35,)
        assert connection.execute("SELECT document ->> 'name' FROM backup").fetchone() == ("filled",)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert (tmp_path / "backup").read_bytes() == backup


def test_the_file_of_a_backup_is_unlinked_and_outlives_its_collection(store: LocalStore, data: Path) -> None:
    filled(store)
    before = sorted((data / "collections").iterdir())
    with store.backup_collection("filled") as file:
        assert sorted((data / "collections").iterdir()) == before
        store.delete_collection("filled")
        content = file.read()
    store.restore_collection("filled", chunks(content))
    assert len(all_ids(store, "filled")) == 35


def test_a_backup_of_the_first_version_is_upgraded(store: LocalStore, backup: bytes, tmp_path: Path) -> None:
    info = store.restore_collection("restored", chunks(first_version(backup, tmp_path / "old")))
    assert info.filter_keys == ()
    assert everything(store, "restored") == everything(store, "filled")
    with closing(sqlite3.connect(store._directories[info.uid] / "items.sqlite")) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (records.VERSION,)
        assert schema_of(connection) == records.schema(records.VERSION)
    store.upsert("restored", [item(7)])
    assert "item-007" in all_ids(store, "restored")


# --- During writes -------------------------------------------------------------------------------------------------


def test_a_backup_made_during_writes_contains_one_committed_state(store: LocalStore) -> None:
    filled(store, count=300)
    stop = threading.Event()
    failed: list[BaseException] = []
    written = [0, 0]

    def write(writer: int) -> None:
        try:
            number = 0
            while not stop.is_set():
                number += 1
                # Twins are written and removed together; the counter increases by one with each write.
                twins = [f"{writer}-left-{number % 5}", f"{writer}-right-{number % 5}"]
                vector = random_units(1, DIMENSION, seed=number)[0]
                both = [Item(id=id, vector=vector, metadata={"number": number}) for id in (*twins, f"{writer}-counter")]
                store.upsert("filled", both)
                if number % 3 == 0:
                    store.delete_items("filled", twins)
                written[writer] = number
        except BaseException as error:
            failed.append(error)

    writers = [threading.Thread(target=write, args=(writer,)) for writer in range(2)]
    for thread in writers:
        thread.start()
    try:
        backups = [backup_of(store)]
        while min(written) < 40 and not failed:
            backups = [*backups[-7:], backup_of(store)]
    finally:
        stop.set()
        for thread in writers:
            thread.join()
    assert not failed
    highest = 0
    for content in backups:
        store.restore_collection("restored", chunks(content))
        page = store.list_items("restored", page_size=1000, page_token="", filter=None, include=EVERYTHING)
        items = {each.id: each for each in page.items}
        for writer in range(2):
            counter = items.get(f"{writer}-counter")
            last = counter.metadata["number"] if counter else 0
            assert isinstance(last, int)
            for place in range(5):
                left, right = items.get(f"{writer}-left-{place}"), items.get(f"{writer}-right-{place}")
                # The last write to this place in the state with this counter.
                expected = next((number for number in range(last, max(last - 5, 0), -1) if number % 5 == place), 0)
                assert (left is None) == (right is None)
                if left is not None and right is not None:
                    assert left.metadata == right.metadata == {"number": expected}
                elif expected and expected != last:
                    assert expected % 3 == 0
            highest = max(highest, last)
        store.delete_collection("restored")
    assert highest > 20


def test_writes_go_on_while_a_backup_is_read(store: LocalStore) -> None:
    filled(store)
    with store.backup_collection("filled") as file:
        store.upsert("filled", [item(500)])
        assert found(store, item(500).vector, SearchOptions(k=1), name="filled") == [("item-500", 1.0)]  # type: ignore[arg-type]
        content = file.read()
    store.restore_collection("restored", chunks(content))
    assert "item-500" not in all_ids(store, "restored")


# --- What is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"x", b"text " * 5000, b"SQLite format 3", bytes(100_000)])
def test_bytes_that_are_not_a_database_are_refused(store: LocalStore, data: Path, content: bytes) -> None:
    assert refused(store, data, content) == "this is not a backup of a collection"


def test_the_rest_of_a_file_that_is_not_a_database_is_not_read(store: LocalStore) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"no database "

    with pytest.raises(InvalidInput, match="this is not a backup of a collection"):
        store.restore_collection("restored", endless())


def test_another_database_is_refused(store: LocalStore, data: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "other.sqlite")) as connection:
        connection.execute("CREATE TABLE item (id TEXT)")
    content = (tmp_path / "other.sqlite").read_bytes()
    assert refused(store, data, content) == "this is not a backup of a collection, or its end is missing"
    assert refused(store, data, sealed(content)) == "the database is not a backup of a collection"
    filled(store)
    collection_of(store, "filled")._records._writer.connection.execute("PRAGMA wal_checkpoint (TRUNCATE)")
    (path,) = (path for path in data.rglob("items.sqlite") if path.parent.name == store.get_collection("filled").uid)
    assert "its end is missing" in refused(store, data, path.read_bytes())


def test_a_truncated_backup_is_refused(store: LocalStore, data: Path, backup: bytes) -> None:
    places = random.Random(0)
    lengths = [
        *range(0, 200, 13),
        *(places.randrange(len(backup)) for _ in range(60)),
        *range(len(backup) - 90, len(backup)),
    ]
    for length in lengths:
        assert refused(store, data, backup[:length]).startswith("this is not a backup of a collection")
    assert "its end is missing" in refused(store, data, backup + b"\n")


def test_a_backup_with_any_bit_flipped_is_refused(store: LocalStore, data: Path, backup: bytes) -> None:
    places = random.Random(1)
    for place in [*(places.randrange(len(backup)) for _ in range(300)), *range(len(backup) - 90, len(backup), 3)]:
        content = bytearray(backup)
        content[place] ^= 1 << places.randrange(8)
        refused(store, data, bytes(content))


def test_a_backup_with_a_zeroed_page_or_two_swapped_pages_is_refused(
    store: LocalStore, data: Path, backup: bytes
) -> None:
    size = 8192
    pages = [backup[start : start + size] for start in range(0, len(backup), size)]
    for place in range(1, len(pages) - 1):
        zeroed = [*pages[:place], bytes(size), *pages[place + 1 :]]
        exchanged = [*pages[:place], pages[place + 1], pages[place], *pages[place + 2 :]]
        for wrong in (zeroed, exchanged[:-1] + pages[-1:]):
            if wrong != pages:
                assert "do not match its sha256" in refused(store, data, b"".join(wrong))
                # With a new hash, only the rows and the structure of the file can reveal the damage.
                message = refused(store, data, sealed(database_of(b"".join(wrong))))
                assert message.startswith("the backup is damaged: ")


def test_a_flipped_bit_under_a_new_hash_is_refused_or_does_no_harm(store: LocalStore, data: Path) -> None:
    filled(store, count=200)
    database, places = database_of(backup_of(store)), random.Random(2)
    expected = everything(store, "filled")
    refusals = 0
    for _ in range(150):
        content = bytearray(database)
        content[places.randrange(len(content))] ^= 1 << places.randrange(8)
        try:
            store.restore_collection("restored", [sealed(bytes(content))])
        except InvalidInput:
            refusals += 1
        else:
            assert everything(store, "restored") == expected
            store.delete_collection("restored")
        assert len(list((data / "collections").iterdir())) == 2
    # The rest hit unused bytes.
    assert refusals > 50


CHANGES = {
    "deleted": ("DELETE FROM item WHERE id = 'item-002'", "DELETE FROM media WHERE rid NOT IN (SELECT rid FROM item)"),
    "doubled": ("INSERT INTO item SELECT 10000, 'copy', seq, crc, sha, meta, vec FROM item WHERE id = 'item-002'",),
    "exchanged": (
        "UPDATE item SET vec = (SELECT vec FROM item AS other WHERE other.id = 'item-004') WHERE id = 'item-002'",
    ),
    "metadata": ("UPDATE item SET meta = '{}' WHERE id = 'item-002'",),
    "image": ("UPDATE media SET data = x'00' WHERE rid = (SELECT rid FROM item WHERE id = 'item-004')",),
    "orphan": ("INSERT INTO media SELECT 5000, type, crc, data FROM media LIMIT 1",),
    "seq": ("UPDATE state SET seq = seq + 1",),
    "no state": ("DELETE FROM state",),
    "two states": ("INSERT INTO state SELECT seq FROM state",),
    "numbers": ("UPDATE sqlite_sequence SET seq = 1",),
    "numbers as text": ("UPDATE sqlite_sequence SET seq = 'many'",),
    "numbers of nothing": ("DELETE FROM sqlite_sequence",),
    "dimension": ("UPDATE backup SET document = json_set(document, '$.dimension', 8)",),
    "huge dimension": ("UPDATE backup SET document = json_set(document, '$.dimension', 1000000000)",),
    "items": ("UPDATE backup SET document = json_set(document, '$.items', 34)",),
    "facet missing": ("DELETE FROM facet WHERE key = 1 AND rid = 5",),
    "facet too many": ("INSERT INTO facet VALUES (1, 999, 5)",),
    "facet exchanged": ("UPDATE facet SET value = 'other' WHERE key = 0 AND rid = 5",),
    "other filter key": ("UPDATE facet_key SET key = 'half' WHERE number = 1",),
    "keep": ("UPDATE backup SET document = json_set(document, '$.keep', 'much')",),
    "key": ("UPDATE backup SET document = json_set(document, '$.filter_keys[0]', '\"')",),
    "missing part": ("UPDATE backup SET document = json_remove(document, '$.fingerprint')",),
    "no format": ("UPDATE backup SET document = json_set(document, '$.format', 'x')",),
    "list": ("UPDATE backup SET document = '[]'",),
    "no JSON": ("UPDATE backup SET document = '{'",),
    "no document": ("DELETE FROM backup",),
    "trigger": ("CREATE TRIGGER t AFTER INSERT ON item BEGIN DELETE FROM item; END",),
    "view": ("CREATE VIEW v AS SELECT * FROM item",),
    "index": ("CREATE INDEX i ON item (seq)",),
    "table": ("CREATE TABLE t (x)",),
    "column": ("ALTER TABLE item ADD COLUMN more TEXT",),
    "missing table": ("DROP TABLE media",),
    "version": ("PRAGMA user_version = 0",),
    "filter keys of the first version": (
        "DROP TABLE facet",
        "DROP TABLE facet_key",
        "PRAGMA user_version = 1",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_backup_that_was_changed_by_hand_is_refused_even_under_a_new_hash(
    store: LocalStore, data: Path, backup: bytes, tmp_path: Path, change: str
) -> None:
    content = changed(backup, tmp_path / "forged", *CHANGES[change])
    message = refused(store, data, content)
    assert message.startswith("the backup is damaged: ")
    if change in ("exchanged", "metadata"):
        assert message == "the backup is damaged: item 'item-002': its row does not match its checksum"


@pytest.mark.parametrize(
    "statement",
    ["PRAGMA user_version = 99", "UPDATE backup SET document = json_set(document, '$.format', 2)"],
    ids=["database", "document"],
)
def test_a_backup_of_a_newer_release_is_refused(
    store: LocalStore, data: Path, backup: bytes, tmp_path: Path, statement: str
) -> None:
    message = refused(store, data, changed(backup, tmp_path / "newer", statement))
    assert message == "the backup was made by a newer release of embedserve, which this one cannot read"


def test_a_name_that_is_taken_or_not_allowed_is_refused(store: LocalStore, data: Path, backup: bytes) -> None:
    store.set_alias("current", "filled")
    before = sorted(data.rglob("*"))
    for name in ("photos", "current"):
        with pytest.raises(AlreadyExists, match=name):
            store.restore_collection(name, chunks(backup))
    with pytest.raises(InvalidInput, match="is not allowed"):
        store.restore_collection("../x", chunks(backup))
    assert sorted(data.rglob("*")) == before


def test_a_name_that_is_taken_while_a_backup_is_received_stays_with_the_other(
    store: LocalStore, data: Path, backup: bytes
) -> None:
    def slow() -> Iterator[bytes]:
        yield backup[:5000]
        new_collection(store, "restored")
        yield backup[5000:]

    with pytest.raises(AlreadyExists):
        store.restore_collection("restored", slow())
    assert all_ids(store, "restored") == []
    assert len(list((data / "collections").iterdir())) == 3


def test_a_sender_that_fails_leaves_nothing(store: LocalStore, data: Path, backup: bytes) -> None:
    def broken() -> Iterator[bytes]:
        yield backup[:50_000]
        raise ConnectionResetError("the sender is gone")

    before = sorted(data.rglob("*"))
    with pytest.raises(StoreError):
        store.restore_collection("restored", broken())
    assert sorted(data.rglob("*")) == before


@pytest.mark.parametrize("change", ["UPDATE item SET meta = '{}' WHERE id = 'a'", "UPDATE media SET data = x'00'"])
def test_damage_is_found_while_the_backup_is_made(store: LocalStore, data: Path, change: str) -> None:
    media = Media(data=b"picture", media_type="image/png")
    store.upsert("photos", [Item(id="a", vector=unit(1, 0, 0, 0), metadata={"x": 1}, media=media)])
    path = items_file(data)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(change)
    before = sorted((data / "collections").iterdir())
    with pytest.raises(StoreError) as caught, store.backup_collection("photos"):
        pass
    assert caught.value.message.startswith(f"{path} is damaged: item 'a': its ")
    assert sorted((data / "collections").iterdir()) == before


class GivenUp(Exception):
    """Raised by a caller that does not wait any longer."""


def gives_up_after(calls: int) -> Callable[[], None]:
    """A callback that raises after a number of calls."""
    left = iter(range(calls))

    def on_progress() -> None:
        if next(left, None) is None:
            raise GivenUp

    return on_progress


def calls_of(work: Callable[[Callable[[], None]], None]) -> int:
    """How often an operation calls its callback."""
    calls = itertools.count()
    work(lambda: next(calls) and None)
    return next(calls)


def test_a_backup_ends_wherever_its_callback_raises_and_leaves_nothing(store: LocalStore, data: Path) -> None:
    filled(store)
    store.delete_collection("photos")

    def back_up(on_progress: Callable[[], None]) -> None:
        with store.backup_collection("filled", on_progress):
            pass

    before = sorted(path for path in data.rglob("*") if not path.name.endswith(("-wal", "-shm")))
    total = calls_of(back_up)
    assert total >= 3  # while it is copied, while it is read, and while its sha256 is made
    for calls in range(total):
        with pytest.raises(GivenUp):
            back_up(gives_up_after(calls))
        assert sorted(path for path in data.rglob("*") if not path.name.endswith(("-wal", "-shm"))) == before


def test_a_restore_ends_wherever_its_callback_raises_and_creates_nothing(
    store: LocalStore, data: Path, backup: bytes
) -> None:
    before, numbers = sorted(data.rglob("*")), itertools.count()

    def restore(on_progress: Callable[[], None]) -> None:
        store.restore_collection(f"restored-{next(numbers)}", chunks(backup, 1 << 16), on_progress)

    for calls in range(100):
        try:
            restore(gives_up_after(calls))
        except GivenUp:
            assert sorted(data.rglob("*")) == before
        else:
            break
    # For each chunk, and then while the rows are verified.
    assert len(backup) // (1 << 16) + 2 < calls < 99
    assert [info.items for info in store.list_collections() if info.name.startswith("restored-")] == [35]


def test_the_integrity_check_of_sqlite_ends_when_the_callback_raises(
    store: LocalStore, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedserve.store.local.upkeep.backup._STEPS", 100)
    filled(store)
    backup = backup_of(store)
    before = sorted(data.rglob("*"))
    statements: list[str] = []

    def on_progress() -> None:
        for frame in traceback.extract_stack():
            if frame.name == "first_problem" and "PRAGMA" in (frame.line or ""):
                statements.append(frame.line or "")
                raise GivenUp

    with pytest.raises(GivenUp):
        store.restore_collection("restored", chunks(backup), on_progress)
    with pytest.raises(GivenUp), store.backup_collection("filled", on_progress):
        pass
    assert ["integrity_check" in statement for statement in statements] == [True, True]
    assert sorted(data.rglob("*")) == before


# --- Full disks and killed processes -------------------------------------------------------------------------------

LIMITED = """
import resource, sys
from pathlib import Path
from embedserve.errors import DiskFull, StoreError
from embedserve.store.local.records.database import schema_of
from embedserve.store.local.store import LocalStore

def limit(value):
    resource.setrlimit(resource.RLIMIT_FSIZE, (value, resource.RLIM_INFINITY))

data, content = Path(sys.argv[1]), Path(sys.argv[2]).read_bytes()
with LocalStore.open(data) as store:
    before = sorted(path.name for path in (data / "collections").iterdir())
    for bytes_written in (0, 9000, 40_000, len(content) - 200):
        limit(bytes_written)
        for what in ("backup", "restore"):
            try:
                if what == "backup":
                    with store.backup_collection("filled"):
                        pass
                else:
                    store.restore_collection("restored", [content])
            except (DiskFull, StoreError) as error:
                limit(resource.RLIM_INFINITY)
                after = sorted(path.name for path in (data / "collections").iterdir())
                print(what, after == before, flush=True)
                limit(bytes_written)
    limit(resource.RLIM_INFINITY)
    with store.backup_collection("filled") as file:
        store.restore_collection("restored", [file.read()])
"""


def test_a_full_disk_fails_backup_and_restore_and_leaves_nothing(data: Path, tmp_path: Path) -> None:
    with LocalStore.open(data) as store:
        filled(store)
        expected = everything(store, "filled")
        (tmp_path / "backup").write_bytes(backup_of(store))
    command = [sys.executable, "-W", "error", "-c", LIMITED, str(data), str(tmp_path / "backup")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines().count("backup True") >= 3
    assert done.stdout.splitlines().count("restore True") >= 3
    assert "False" not in done.stdout
    with LocalStore.open(data) as store:
        assert everything(store, "restored") == expected


KILLED = """
import os, signal, sys
from pathlib import Path
from embedserve.store.local import store as local
from embedserve.store.local.records.catalog import Catalog
from embedserve.store.local.records.database import schema_of
from embedserve.store.local.store import LocalStore
from embedserve.store.local.upkeep import restore

data, content, step = Path(sys.argv[1]), Path(sys.argv[2]).read_bytes(), sys.argv[3]

def killed(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def half():
    yield content[: len(content) // 2]
    killed()

with LocalStore.open(data) as store:
    if step == "backup":
        from embedserve.store.local.upkeep import backup
        backup.first_problem = killed
        with store.backup_collection("filled"):
            pass
    if step == "add":
        Catalog.add = killed
    elif step != "chunks":
        setattr(restore if hasattr(restore, step) else local, step, killed)
    store.restore_collection("restored", half() if step == "chunks" else [content])
"""


@pytest.mark.parametrize("step", ["backup", "chunks", "verify", "strip", "Collection", "sync", "add"])
def test_the_next_start_removes_what_a_killed_backup_or_restore_left(data: Path, tmp_path: Path, step: str) -> None:
    with LocalStore.open(data) as store:
        filled(store)
        expected = everything(store, "filled")
        (tmp_path / "backup").write_bytes(backup_of(store))
    if step == "Collection":
        # The existing collection is opened with the same class, so it must be removed.
        with LocalStore.open(data) as store:
            store.delete_collection("filled")
    command = [sys.executable, "-c", KILLED, str(data), str(tmp_path / "backup"), step]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    kept = 0 if step == "Collection" else 1
    assert len(list((data / "collections").iterdir())) == kept + 1
    with LocalStore.open(data) as store:
        assert len(list((data / "collections").iterdir())) == kept
        assert len(store.list_collections()) == kept
        store.restore_collection("restored", [(tmp_path / "backup").read_bytes()])
        assert everything(store, "restored") == expected
