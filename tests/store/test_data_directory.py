from __future__ import annotations

import errno
import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from embedserve.errors import DiskFull, SetupError, StoreError
from embedserve.store.local.records import database
from embedserve.store.local.records.database import translate_errors
from embedserve.store.local.store import LocalStore
from embedserve.types import Include
from tests.store.store_cases import collection_of, items_file, new_collection

HOLDER = """
import sys
from pathlib import Path
from embedserve.store.local.store import LocalStore
with LocalStore.open(Path(sys.argv[1])):
    print("open", flush=True)
    sys.stdin.read()
"""


@contextmanager
def other_process(data: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has the directory open until it is killed or its input ends."""
    command = [sys.executable, "-c", HOLDER, str(data)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_second_process_is_told_which_process_has_the_directory(data: Path) -> None:
    with other_process(data) as process:
        with pytest.raises(StoreError) as caught:
            LocalStore.open(data)
        assert caught.value.message == f"{data} is in use by process {process.pid} on {socket.gethostname()}"
        assert caught.value.hint == "stop that process, or use another data directory"


def test_a_killed_process_does_not_keep_the_directory(data: Path) -> None:
    with other_process(data) as process:
        process.kill()
        process.wait()
        LocalStore.open(data).close()


def test_a_closed_store_releases_the_directory(data: Path) -> None:
    for _ in range(3):
        LocalStore.open(data).close()
    assert (data / "LOCK").read_text() == ""


def test_a_store_that_could_not_be_opened_releases_the_directory(data: Path) -> None:
    with LocalStore.open(data) as store:
        new_collection(store)
    path = items_file(data)
    content = path.read_bytes()
    path.write_bytes(b"no database at all" * 1000)
    with pytest.raises(StoreError, match=r"items\.sqlite is damaged: file is not a database"):
        LocalStore.open(data)
    path.write_bytes(content)
    LocalStore.open(data).close()


def test_the_directory_is_created_with_its_parents(tmp_path: Path) -> None:
    LocalStore.open(tmp_path / "a/b/c").close()
    assert (tmp_path / "a/b/c/catalog.sqlite").exists()


def test_a_directory_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file/collections cannot be used: Not a directory") as caught:
        LocalStore.open(tmp_path / "file")
    assert "writable" in caught.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_directory_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="cannot be used: Permission denied"):
        LocalStore.open(tmp_path / "data")


def test_calls_after_closing_say_so(data: Path) -> None:
    store = LocalStore.open(data)
    new_collection(store)
    store.close()
    store.close()
    for call in (
        store.list_collections,
        lambda: store.get_items("photos", ["a"], Include()),
        lambda: new_collection(store, "x"),
        lambda: store.delete_collection("photos"),
        lambda: store.set_alias("x", "photos"),
    ):
        with pytest.raises(StoreError, match="the store is closed"):
            call()


@pytest.mark.parametrize(("name", "newest"), [("catalog.sqlite", 2), ("items.sqlite", 2)])
def test_a_file_of_a_newer_release_is_refused(data: Path, name: str, newest: int) -> None:
    with LocalStore.open(data) as store:
        new_collection(store)
    (path,) = data.rglob(name)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {newest + 1}")
    with pytest.raises(StoreError, match=rf"{name} has format {newest + 1}; this release reads up to {newest}"):
        LocalStore.open(data)


def test_databases_use_a_write_ahead_log_large_pages_and_full_syncs(data: Path) -> None:
    with LocalStore.open(data) as store:
        new_collection(store, "short", dimension=512)
        new_collection(store, "long", dimension=513)
        for name, page_size in (("short", 8192), ("long", 16384)):
            writer = collection_of(store, name)._records._writer.connection
            assert writer.execute("PRAGMA page_size").fetchone() == (page_size,)
            assert writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
            assert writer.execute("PRAGMA synchronous").fetchone() == (2,)


def test_an_old_sqlite_is_refused(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_OLDEST", (99, 0))
    with pytest.raises(SetupError, match="is needed"):
        LocalStore.open(data)


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull), (errno.EIO, StoreError)]
)
def test_errors_of_the_file_system_become_errors_of_embedserve(number: int, kind: type[Exception]) -> None:
    with pytest.raises(kind), translate_errors(Path("items.sqlite")):
        raise OSError(number, os.strerror(number))
