"""Restores over a real socket, into a scripted store."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from embedserve import Client
from embedserve.errors import (
    AlreadyExists,
    DiskFull,
)
from embedserve.server.services import collections
from embedserve.types import CheckProgress, CheckReport
from embedserve.v1 import collection_service_pb2 as pb
from tests.server.services.scripted_store import (
    BACKUP,
    REPORT,
    Script,
    code_of,
    pieces,
    until_stopped,
)


def test_a_restore_passes_the_bytes_of_the_file_to_the_store(client: Client, script: Script, tmp_path: Path) -> None:
    path = tmp_path / "backup"
    path.write_bytes(BACKUP)
    assert client.restore_collection("again", path).name == "again"
    assert script.received == BACKUP
    assert client.get_collection("again").dimension == 3


def test_a_truncated_or_changed_upload_creates_nothing(stub: Any, client: Client) -> None:
    chunks = [b"abc", b"def"]
    right = hashlib.sha256(b"abcdef").digest()
    assert stub.RestoreCollection(pieces("whole", chunks, right)).collection.name == "whole"
    for stream in (
        pieces("bad", chunks, None),
        pieces("bad", chunks[:1], right),
        pieces("bad", [b"abc", b"deg"], right),
        pieces("bad", [b"def", b"abc"], right),
        iter([]),
    ):
        assert code_of(partial(stub.RestoreCollection, stream)) is grpc.StatusCode.INVALID_ARGUMENT
    assert [info.name for info in client.list_collections()] == ["photos", "whole"]


def test_an_error_of_the_store_ends_the_upload(client: Client, script: Script, tmp_path: Path) -> None:
    path = tmp_path / "backup"
    path.write_bytes(BACKUP)

    def refuse() -> None:
        raise DiskFull("there is no room")

    script.on_chunk = refuse
    with pytest.raises(DiskFull, match="there is no room"):
        client.restore_collection("again", path)


def test_a_chunk_may_have_two_mebibytes_and_no_more(stub: Any, script: Script) -> None:
    most = bytes(2 << 20)
    assert stub.RestoreCollection(pieces("again", [most], hashlib.sha256(most).digest())).collection.name == "again"
    for first in (most + b"x", b""):
        stream = iter([pb.RestoreCollectionRequest(name="bad", chunk=first), *pieces("bad", [most + b"x"], None)])
        with pytest.raises(grpc.RpcError, match="2097153 bytes; at most 2097152 are allowed") as raised:
            stub.RestoreCollection(stream)
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_restore_that_is_cancelled_after_its_upload_ends_and_creates_nothing(
    stub: Any, script: Script, client: Client
) -> None:
    received = threading.Event()

    def check(on_progress: Callable[[], None]) -> None:
        received.set()
        until_stopped(on_progress)

    script.on_received = check
    call = stub.RestoreCollection.future(pieces("bad", [b"abc"], hashlib.sha256(b"abc").digest()))
    assert received.wait(20)
    call.cancel()
    assert script.ended.wait(20)
    assert [info.name for info in client.list_collections()] == ["photos"]


def test_a_restore_that_waits_in_the_queue_does_not_time_out(
    target: str, stub: Any, script: Script, tmp_path: Path
) -> None:
    path = tmp_path / "backup"
    path.write_bytes(BACKUP)
    entered, let_go = threading.Semaphore(0), threading.Event()

    def check(on_progress: Callable[[CheckProgress], None]) -> CheckReport:
        entered.release()
        assert let_go.wait(20)
        return REPORT

    script.check = check
    checks = [stub.CheckCollection(pb.CheckCollectionRequest(name="photos")) for _ in range(2)]
    for _ in checks:
        assert entered.acquire(timeout=20)
    told: list[int | None] = []

    def tell(sent_bytes: int | None) -> None:
        told.append(sent_bytes)
        if len(told) == 3:  # a second and a half
            let_go.set()

    with Client(target, timeout_s=0.4) as impatient:
        assert impatient.restore_collection("again", path, on_progress=tell).name == "again"
    assert told[:3] == [None] * 3
    assert script.received == BACKUP
    assert [list(check)[-1].report.item_count for check in checks] == [20, 20]


def test_a_name_that_is_taken_is_refused_before_the_store_is_called(
    client: Client, script: Script, tmp_path: Path
) -> None:
    path = tmp_path / "backup"
    path.write_bytes(BACKUP)
    client.set_alias("pictures", "photos")
    for name in ("photos", "pictures"):
        with pytest.raises(AlreadyExists):
            client.restore_collection(name, path)
    assert not script.begun.is_set()


def test_a_cancelled_upload_ends_the_job(stub: Any, script: Script, client: Client) -> None:
    received, let_go = threading.Event(), threading.Event()
    script.on_chunk = received.set

    def waiting() -> Iterator[pb.RestoreCollectionRequest]:
        yield pb.RestoreCollectionRequest(name="bad", chunk=b"abc")
        let_go.wait(20)

    call = stub.RestoreCollection.future(waiting())
    assert received.wait(20)
    call.cancel()
    assert script.ended.wait(20)
    let_go.set()
    assert [info.name for info in client.list_collections()] == ["photos"]


def test_a_silent_upload_is_ended(stub: Any, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collections, "_UPLOAD_TIMEOUT_S", 0.1)
    let_go = threading.Event()

    def waiting() -> Iterator[pb.RestoreCollectionRequest]:
        yield pb.RestoreCollectionRequest(name="bad", chunk=b"abc")
        let_go.wait(20)

    assert code_of(lambda: stub.RestoreCollection(waiting())) is grpc.StatusCode.DEADLINE_EXCEEDED
    assert script.ended.is_set()
    let_go.set()


def test_an_upload_that_is_too_slow_is_ended(stub: Any, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collections, "_UPLOAD_TIMEOUT_S", 0.3)
    ended = threading.Event()

    def trickling() -> Iterator[pb.RestoreCollectionRequest]:
        yield pb.RestoreCollectionRequest(name="bad")
        while not ended.wait(0.02):
            yield pb.RestoreCollectionRequest(chunk=b"a")

    assert code_of(lambda: stub.RestoreCollection(trickling())) is grpc.StatusCode.DEADLINE_EXCEEDED
    ended.set()
    assert script.ended.is_set()
