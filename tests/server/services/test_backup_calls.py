"""Backups over a real socket, of a scripted store."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from embedserve import Client
from embedserve.errors import (
    Overloaded,
)
from embedserve.server import interceptor
from embedserve.server.calls import minimum_rate
from embedserve.server.services import collections
from embedserve.v1 import collection_service_pb2 as pb
from tests.server.services.scripted_store import (
    BACKUP,
    Script,
    code_of,
    forever,
    until_stopped,
)


def test_a_backup_is_the_file_of_the_store_with_its_sha256(client: Client, script: Script, tmp_path: Path) -> None:
    path = tmp_path / "photos.backup"
    assert client.backup_collection("photos", path) == hashlib.sha256(BACKUP).hexdigest()
    assert path.read_bytes() == BACKUP
    assert [found.name for found in tmp_path.iterdir() if found.name != "data"] == ["photos.backup"]


def test_a_backup_comes_in_chunks_of_at_most_a_mebibyte(stub: Any) -> None:
    messages = list(stub.BackupCollection(pb.BackupCollectionRequest(name="photos")))
    assert [len(message.chunk) for message in messages] == [1 << 20] * 5 + [0]
    assert [bool(message.sha256) for message in messages] == [False] * 5 + [True]
    assert messages[-1].size_bytes == len(BACKUP)


def test_a_cancelled_backup_ends(stub: Any, script: Script) -> None:
    script.backup = BACKUP * 20
    call = stub.BackupCollection(pb.BackupCollectionRequest(name="photos"))
    next(call)
    assert not script.ended.is_set()
    call.cancel()
    assert script.ended.wait(20)


def test_a_backup_that_the_client_does_not_read_is_ended(
    stub: Any, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interceptor, "_WRITE_TIMEOUT_S", 0.2)
    script.backup = BACKUP * 20
    call = stub.BackupCollection(pb.BackupCollectionRequest(name="photos"))
    next(call)
    assert script.ended.wait(20)
    assert code_of(lambda: list(call)) is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_backup_that_the_client_reads_too_slowly_is_ended(
    stub: Any, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interceptor, "_WRITE_TIMEOUT_S", 0.5)
    monkeypatch.setattr(minimum_rate, "MIN_BYTES_PER_S", 1 << 30)
    script.backup = BACKUP * 20
    call = stub.BackupCollection(pb.BackupCollectionRequest(name="photos"))

    def take() -> None:
        for _ in call:
            time.sleep(0.1)

    assert code_of(take) is grpc.StatusCode.DEADLINE_EXCEEDED
    assert script.ended.wait(20)


def test_a_cancelled_copy_ends_before_its_first_chunk(stub: Any, script: Script) -> None:
    script.on_copy = until_stopped
    call = stub.BackupCollection(pb.BackupCollectionRequest(name="photos"))
    assert script.begun.wait(20)
    call.cancel()
    assert script.ended.wait(20)


def test_the_seventeenth_waiting_job_is_refused(
    target: str, stub: Any, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collections, "_KEEP_ALIVE_S", 0.01)
    script.check = forever
    checks = [stub.CheckCollection(pb.CheckCollectionRequest(name="photos")) for _ in range(18)]
    for check in checks:
        assert next(check).progress.stage in {"stage 0", "waiting"}
    path = tmp_path / "backup"
    path.write_bytes(b"abc")
    with Client(target, timeout_s=5) as client:  # too short for a retry
        with pytest.raises(Overloaded, match="18 checks, backups and restores are running or queued") as refused:
            client.restore_collection("again", path)
        assert refused.value.retry_after_ms == 10_000
        with pytest.raises(Overloaded):
            client.check_collection("photos")
    for check in checks:
        check.cancel()
