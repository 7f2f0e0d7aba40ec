"""`embedserve collection` `backup` and `restore`: what a user sees and a program gets."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from embedserve import Client
from embedserve.cli.collection.backup import _TransferProgress
from embedserve.errors import InvalidInput
from embedserve.store.local.store import LocalStore
from embedserve.types import CheckProgress, CheckReport, CollectionInfo
from tests.cli.outcome import Cli


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store whose backups are the words of the test."""

    @contextmanager
    def back_up(_: LocalStore, name: str, on_progress: Callable[[], None]) -> Iterator[io.BytesIO]:
        yield io.BytesIO(f"all of {name}".encode())

    def restore(
        store: LocalStore, name: str, chunks: Iterable[bytes], on_progress: Callable[[], None]
    ) -> CollectionInfo:
        source = b"".join(chunks).decode().removeprefix("all of ")
        if not source:
            raise InvalidInput("the bytes are no backup")
        identity = store.identity(source)
        return store.create_collection(
            name,
            fingerprint=identity.fingerprint,
            encoder_name=identity.encoder_name,
            dimension=identity.dimension,
            keep=identity.keep,
        )

    monkeypatch.setattr(LocalStore, "backup_collection", back_up)
    monkeypatch.setattr(LocalStore, "restore_collection", restore)


@pytest.mark.usefixtures("scripted")
def test_a_backup_is_one_file_and_is_restored_under_another_name(
    cli: Cli, client: Client, collection: str, tmp_path: Path
) -> None:
    client.create_collection(collection, keep="originals")
    path = tmp_path / "photos.backup"
    made = cli("collection", "backup", collection, path)
    content = f"all of {collection}".encode()
    sha256 = hashlib.sha256(content).hexdigest()
    assert (made.exit_code, made.out) == (0, "")
    assert made.err == f"wrote {path}: {len(content)} bytes, sha256 {sha256}\n"
    assert path.read_bytes() == content
    other = f"{collection}-2"
    restored = cli("collection", "restore", other, path)
    assert restored.err == f"created {other}: 0 items, 16 numbers per vector, keeps originals\n"
    again = cli("collection", "restore", other, path)
    assert again.exit_code == 1
    assert f"there is already a collection or an alias '{other}'" in again.err
    client.delete_collection(other)


@pytest.mark.usefixtures("scripted")
def test_a_backup_does_not_replace_a_file_without_overwrite(
    cli: Cli, client: Client, collection: str, tmp_path: Path
) -> None:
    client.create_collection(collection)
    path = tmp_path / "photos.backup"
    path.write_bytes(b"of last week")
    refused = cli("collection", "backup", collection, path)
    assert refused.exit_code == 1
    assert "already exists" in refused.err
    assert path.read_bytes() == b"of last week"
    outcome = cli("collection", "backup", collection, path, "--overwrite", "--json")
    assert outcome.json["size_bytes"] == len(path.read_bytes()) == len(f"all of {collection}")


@pytest.mark.usefixtures("scripted")
def test_a_file_that_is_not_a_backup_creates_nothing(cli: Cli, client: Client, collection: str, tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    refused = cli("collection", "restore", collection, path)
    assert refused.exit_code == 2
    assert "the bytes are no backup" in refused.err
    assert collection not in [info.name for info in client.list_collections()]


@pytest.mark.usefixtures("scripted")
def test_a_restore_that_waits_for_its_turn_says_so_once(
    cli: Cli, client: Client, collection: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.create_collection(collection)
    path, other = tmp_path / "photos.backup", f"{collection}-2"
    path.write_text(f"all of {collection}")
    begun, let_go = threading.Semaphore(0), threading.Event()

    def check(_: LocalStore, name: str, on_progress: Callable[[CheckProgress], None]) -> CheckReport:
        begun.release()
        assert let_go.wait(20)
        return CheckReport(items=0, segments=0, searched=0, recall=None, problems=())

    monkeypatch.setattr(LocalStore, "check_collection", check)
    checks = [threading.Thread(target=client.check_collection, args=(collection,)) for _ in range(2)]
    for thread in checks:
        thread.start()
        assert begun.acquire(timeout=20)
    threading.Timer(1.7, let_go.set).start()
    restored = cli("collection", "restore", other, path)
    for thread in checks:
        thread.join(20)
    client.delete_collection(other)
    assert restored.exit_code == 0
    assert restored.err.splitlines() == [
        "waiting: the limit on checks, backups and restores running at a time is reached",
        f"created {other}: 0 items, 16 numbers per vector, keeps thumbnails",
    ]


def test_a_transfer_shows_its_bytes_on_a_terminal_once_it_has_begun(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    with _TransferProgress("sending photos.backup", 3 << 20, "waiting: for others") as transfer:
        for done in (None, None, 0, 1 << 20, 3 << 20):
            transfer.show(done)
    err = capfd.readouterr().err
    assert err.startswith("waiting: for others\n")
    assert err.count("waiting") == 1
    assert "sending photos.backup" in err
    assert "3.0/3.0 MiB" in err
    assert "the server checks it" in err


# --- With the real store ---


def test_a_real_backup_answers_as_the_collection_did(
    cli: Cli, client: Client, collection: str, photos: Path, tmp_path: Path
) -> None:
    cli("add", photos, "--collection", collection, "--keep", "originals")
    path, other = tmp_path / "photos.backup", f"{collection}-2"
    assert cli("collection", "backup", collection, path).exit_code == 0
    client.delete_items(collection, ["top.png"])
    try:
        assert cli("collection", "restore", other, path).exit_code == 0
        items = {item.id: item for item in client.list_items(other, include_vectors=True)}
        assert len(items) == 5
        for item in client.list_items(collection, include_vectors=True):
            same = items[item.id]
            assert (same.metadata, same.content_sha256) == (item.metadata, item.content_sha256)
            assert same.vector is not None
            assert item.vector is not None
            assert same.vector.tobytes() == item.vector.tobytes()
        assert [hit.id for hit in client.search(other, image=photos / "top.png", k=1)] == ["top.png"]
        [top] = client.get_items(other, ["top.png"], include_media=True)
        assert top is not None
        assert top.media is not None
        assert top.media.data == (photos / "top.png").read_bytes()
    finally:
        client.delete_collection(other)


def test_a_backup_that_was_damaged_on_disk_is_no_collection(
    cli: Cli, client: Client, collection: str, photos: Path, tmp_path: Path
) -> None:
    cli("add", photos, "--collection", collection)
    path, other = tmp_path / "photos.backup", f"{collection}-2"
    cli("collection", "backup", collection, path)
    whole = path.read_bytes()
    for content in (
        whole[: len(whole) // 2],
        whole[:-1],
        whole[:50_000] + b"\xff" * 64 + whole[50_064:],
        b"",
        b"hello",
    ):
        path.write_bytes(content)
        refused = cli("collection", "restore", other, path)
        assert refused.exit_code != 0
        assert other not in [info.name for info in client.list_collections()]
