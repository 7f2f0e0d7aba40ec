"""Checks, backups and restores of both clients, with a server that stops, lies or sends nothing."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from embedserve.client import long_calls
from embedserve.errors import CollectionNotFound, DataError, DeadlineExceeded, ProtocolError, Unavailable
from embedserve.v1 import collection_service_pb2 as pb
from tests.client.fake_server import Connect, FakeServer, encoder_ref

BYTES = b"abc" * 1000
DIGEST = hashlib.sha256(BYTES).digest()


def chunk(data: bytes) -> pb.BackupCollectionResponse:
    return pb.BackupCollectionResponse(chunk=data)


def end(sha256: bytes = DIGEST, size_bytes: int = len(BYTES)) -> pb.BackupCollectionResponse:
    return pb.BackupCollectionResponse(sha256=sha256, size_bytes=size_bytes)


WHOLE = [chunk(BYTES[:10]), pb.BackupCollectionResponse(), chunk(BYTES[10:]), end()]


def test_a_backup_leaves_only_its_own_file(connect: Connect, server: FakeServer, tmp_path: Path) -> None:
    server.on("BackupCollection", lambda _: WHOLE)
    path = tmp_path / "photos.backup"
    assert connect(server.target).backup_collection("photos", path) == DIGEST.hex()
    assert path.read_bytes() == BYTES
    assert list(tmp_path.iterdir()) == [path]
    assert server.asked("BackupCollection") == [pb.BackupCollectionRequest(name="photos")]


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([], "the backup is incomplete"),
        (WHOLE[:-1], "the backup is incomplete"),
        ([chunk(BYTES[:-1]), end()], "the backup was damaged in transit"),
        ([chunk(BYTES), end(sha256=b"\0" * 32)], "the backup was damaged in transit"),
        ([chunk(BYTES), end(size_bytes=1)], "the backup was damaged in transit"),
    ],
    ids=["nothing", "without-end", "short", "other-sha256", "other-size"],
)
def test_an_incomplete_backup_leaves_no_file(
    connect: Connect, server: FakeServer, tmp_path: Path, messages: list[Any], why: str
) -> None:
    server.on("BackupCollection", lambda _: messages)
    with pytest.raises(DataError, match=why):
        connect(server.target).backup_collection("photos", tmp_path / "photos.backup")
    assert list(tmp_path.iterdir()) == []


def test_another_file_is_overwritten_only_if_requested(connect: Connect, server: FakeServer, tmp_path: Path) -> None:
    server.on("BackupCollection", lambda _: WHOLE)
    path = tmp_path / "photos.backup"
    path.write_bytes(b"of last week")
    client = connect(server.target)
    with pytest.raises(DataError, match=r"photos\.backup already exists"):
        client.backup_collection("photos", path)
    assert path.read_bytes() == b"of last week"
    assert server.asked("BackupCollection") == []
    client.backup_collection("photos", path, overwrite=True)
    assert path.read_bytes() == BYTES


def test_a_failed_backup_keeps_the_file_that_it_would_have_replaced(
    connect: Connect, server: FakeServer, tmp_path: Path
) -> None:
    def fail(_: Any) -> Any:
        raise CollectionNotFound("there is no collection 'photos'")

    server.on("BackupCollection", fail)
    path = tmp_path / "photos.backup"
    path.write_bytes(b"of last week")
    with pytest.raises(CollectionNotFound):
        connect(server.target).backup_collection("photos", path, overwrite=True)
    assert path.read_bytes() == b"of last week"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_named_before_anything_is_sent(
    connect: Connect, server: FakeServer, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"none/photos\.backup cannot be written: No such file or directory"):
        connect(server.target).backup_collection("photos", tmp_path / "none" / "photos.backup")
    assert server.asked("BackupCollection") == []


def test_a_backup_is_retried_before_the_first_response(connect: Connect, server: FakeServer, tmp_path: Path) -> None:
    def stopping(_: Any) -> list[Any]:
        if len(server.asked("BackupCollection")) == 1:
            raise Unavailable("the server is starting")
        return WHOLE

    server.on("BackupCollection", stopping)
    assert connect(server.target).backup_collection("photos", tmp_path / "b") == DIGEST.hex()


def test_a_backup_that_breaks_in_the_middle_is_not_retried(
    connect: Connect, server: FakeServer, tmp_path: Path
) -> None:
    def breaking(_: Any) -> Iterator[Any]:
        yield WHOLE[0]
        raise Unavailable("the server is shutting down")

    server.on("BackupCollection", breaking)
    with pytest.raises(Unavailable, match="the server is shutting down"):
        connect(server.target).backup_collection("photos", tmp_path / "b")
    assert len(server.asked("BackupCollection")) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_backup_reports_how_many_bytes_were_received(connect: Connect, server: FakeServer, tmp_path: Path) -> None:
    server.on("BackupCollection", lambda _: [pb.BackupCollectionResponse(), *WHOLE])
    reported: list[int] = []
    connect(server.target).backup_collection("photos", tmp_path / "b", on_progress=reported.append)
    assert reported == [0, 10, 10, 3000, 3000]


def test_the_client_gives_up_on_a_silent_server(
    connect: Connect, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_calls, "_MIN_SILENCE_S", 0.1)
    released = threading.Event()

    def silent(_: Any) -> Iterator[Any]:
        yield pb.CheckCollectionResponse(progress=pb.CheckProgress(stage="items"))
        released.wait(20)

    server.on("CheckCollection", silent)
    reported: list[Any] = []
    with pytest.raises(DeadlineExceeded, match=r"has sent nothing for 0\.3 s"):
        connect(server.target, timeout_s=0.3).check_collection("photos", reported.append)
    released.set()
    assert [step.stage for step in reported] == ["items"]


def test_a_server_may_be_silent_for_30_s_however_small_the_timeout(connect: Connect, server: FakeServer) -> None:
    def slow(_: Any) -> Iterator[Any]:
        for stage in ("items", "search"):
            yield pb.CheckCollectionResponse(progress=pb.CheckProgress(stage=stage))
            threading.Event().wait(0.8)
        yield pb.CheckCollectionResponse(report=pb.CheckReport(item_count=3))

    server.on("CheckCollection", slow)
    assert connect(server.target, timeout_s=0.4).check_collection("photos").items == 3
    assert [long_calls.silence_s(timeout_s) for timeout_s in (0.4, 29, 60)] == [30, 30, 60]


def test_a_check_without_a_report_is_a_bug_of_the_server(connect: Connect, server: FakeServer) -> None:
    server.on("CheckCollection", lambda _: [])
    with pytest.raises(ProtocolError, match="ended the check without a report"):
        connect(server.target).check_collection("photos")


def test_an_error_in_the_progress_callback_ends_the_check(connect: Connect, server: FakeServer) -> None:
    def forever(_: Any) -> Iterator[Any]:
        while True:
            yield pb.CheckCollectionResponse(progress=pb.CheckProgress(stage="items"))

    def refuse(_: Any) -> None:
        raise KeyError("enough")

    server.on("CheckCollection", forever)
    with pytest.raises(KeyError, match="enough"):
        connect(server.target).check_collection("photos", refuse)
    assert server.ended.acquire(timeout=20)


def test_a_backup_that_cannot_be_read_is_not_sent(connect: Connect, server: FakeServer, tmp_path: Path) -> None:
    client = connect(server.target)
    with pytest.raises(DataError, match="none cannot be read: No such file or directory"):
        client.restore_collection("again", tmp_path / "none")
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        client.restore_collection("again", tmp_path)
    assert server.asked("RestoreCollection") == []


def test_the_client_gives_up_on_a_server_that_takes_nothing_of_a_backup(
    connect: Connect, server: FakeServer, tmp_path: Path
) -> None:
    released = threading.Event()
    path = tmp_path / "photos.backup"
    path.write_bytes(bytes(20 << 20))

    def deaf(_: Any) -> Any:
        released.wait(20)
        raise Unavailable("too late")

    server.on("RestoreCollection", deaf)
    with pytest.raises(DeadlineExceeded, match=r"has taken nothing of the backup for 0\.3 s"):
        connect(server.target, timeout_s=0.3).restore_collection("again", path)
    released.set()


def test_a_restore_that_waits_for_its_turn_reports_none(connect: Connect, server: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "photos.backup"
    path.write_bytes(bytes(20 << 20))
    waited = threading.Event()
    reported: list[int | None] = []

    def tell(sent_bytes: int | None) -> None:
        reported.append(sent_bytes)
        if len(reported) == 2:
            waited.set()

    def busy(requests: Iterator[Any]) -> Any:
        assert waited.wait(20)
        return pb.RestoreCollectionResponse(
            collection=pb.Collection(name="again" if next(requests).name else "", encoder=encoder_ref())
        )

    server.begins_restores = False
    server.on("RestoreCollection", busy)
    client = connect(server.target, timeout_s=0.3)
    assert client.restore_collection("again", path, on_progress=tell).name == "again"
    assert reported == [None, None]


def test_after_the_whole_backup_is_sent_the_timeout_does_not_apply(
    connect: Connect, server: FakeServer, tmp_path: Path
) -> None:
    path = tmp_path / "photos.backup"
    path.write_bytes(BYTES)
    waited = threading.Event()

    def slow(requests: Iterator[Any]) -> Any:
        received = list(requests)
        assert b"".join(request.chunk for request in received) == BYTES
        assert received[0].name == "again"
        assert received[-1].sha256 == DIGEST
        waited.wait(1.2)
        return pb.RestoreCollectionResponse(collection=pb.Collection(name="again", encoder=encoder_ref()))

    server.on("RestoreCollection", slow)
    assert connect(server.target, timeout_s=0.5).restore_collection("again", path).name == "again"
