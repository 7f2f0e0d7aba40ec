"""A backup contains one committed state; an interrupted backup or restore leaves nothing behind."""

from __future__ import annotations

import itertools
import signal
import sqlite3
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from embedserve.errors import CollectionNotFound
from embedserve.store.local.records import records
from embedserve.store.local.records.database import schema_of
from embedserve.store.local.store import LocalStore
from embedserve.types import And, Eq, Filter, Item, Range, SearchOptions
from tests.store.store_cases import (
    EVERYTHING,
    all_ids,
    found,
    new_collection,
    random_units,
    unit,
)
from tests.store.upkeep.backup_cases import (
    DIMENSION,
    backup_of,
    chunks,
    everything,
    filled,
    first_version,
    item,
)

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


# --- Interruptions -------------------------------------------------------------------------------------------------


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
    calls: list[None] = []
    work(lambda: calls.append(None))
    return len(calls)


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
    monkeypatch.setattr("embedserve.store.local.records.database._STEPS", 100)
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
