"""Checks, backups and restores over a real socket: long calls that end when either side stops.

The store is scripted here; its real work is tested with the store.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from embedserve import AsyncClient, Client
from embedserve.errors import (
    AlreadyExists,
    DataError,
    Unavailable,
)
from embedserve.server.app import Server
from embedserve.server.calls.streams import until_drained
from embedserve.server.lifecycle.state import ServerState
from embedserve.types import CheckProgress, CheckReport
from embedserve.v1 import collection_service_pb2 as pb
from embedserve.v1.collection_service_pb2_grpc import CollectionServiceStub
from tests.fakes import FakeEncoder
from tests.running import serving, wait_until
from tests.server.services.scripted_store import (
    BACKUP,
    REPORT,
    Script,
    code_of,
    forever,
    pieces,
    progress,
    until_stopped,
)

# --- Stopping ---


@pytest.mark.parametrize("work", ["check", "backup", "copy", "restore", "restore that is checked"])
def test_a_server_that_stops_does_not_wait_for_long_jobs(work: str, script: Script, tmp_path: Path) -> None:
    script.check = forever
    script.backup = BACKUP * 100
    if work == "copy":
        script.on_copy = until_stopped
    script.on_received = until_stopped
    let_go = threading.Event()

    def waiting() -> Iterator[pb.RestoreCollectionRequest]:
        yield pb.RestoreCollectionRequest(name="again", chunk=b"abc")
        let_go.wait(20)

    def slowly(call: Any) -> None:
        for _ in call:
            let_go.wait(0.001)

    with ExitStack() as running, ExitStack() as connected:
        address = running.enter_context(serving(FakeEncoder(), tmp_path / "data"))
        stub = CollectionServiceStub(connected.enter_context(grpc.insecure_channel(address)))
        connected.enter_context(Client(address)).create_collection("photos")
        begin: dict[str, Callable[[], object]] = {
            "check": lambda: slowly(stub.CheckCollection(pb.CheckCollectionRequest(name="photos"))),
            "backup": lambda: slowly(stub.BackupCollection(pb.BackupCollectionRequest(name="photos"))),
            "copy": lambda: slowly(stub.BackupCollection(pb.BackupCollectionRequest(name="photos"))),
            "restore": lambda: stub.RestoreCollection(waiting()),
            "restore that is checked": lambda: stub.RestoreCollection(
                pieces("again", [b"abc"], hashlib.sha256(b"abc").digest())
            ),
        }
        codes: list[grpc.StatusCode] = []
        calling = threading.Thread(target=lambda: codes.append(code_of(begin[work])))
        calling.start()
        assert script.begun.wait(20)
        stopping = threading.Thread(target=running.pop_all().close)
        stopping.start()
        calling.join(20)
        assert codes == [grpc.StatusCode.UNAVAILABLE]
        let_go.set()
        stopping.join(20)
        assert not stopping.is_alive()
    assert script.ended.is_set()


def test_a_server_that_stops_does_not_wait_for_a_restore_in_the_queue(script: Script, tmp_path: Path) -> None:
    entered, let_go = threading.Semaphore(0), threading.Event()

    def check(on_progress: Callable[[CheckProgress], None]) -> CheckReport:
        entered.release()
        return forever(on_progress)

    script.check = check
    servers: list[Server] = []

    def waiting() -> Iterator[pb.RestoreCollectionRequest]:
        yield pb.RestoreCollectionRequest(name="again", chunk=b"abc")
        let_go.wait(20)

    with ExitStack() as running, ExitStack() as connected:
        address = running.enter_context(serving(FakeEncoder(), tmp_path / "data", on_listening=servers.append))
        stub = CollectionServiceStub(connected.enter_context(grpc.insecure_channel(address)))
        connected.enter_context(Client(address)).create_collection("photos")
        checks = [stub.CheckCollection(pb.CheckCollectionRequest(name="photos")) for _ in range(2)]
        assert entered.acquire(timeout=20)
        assert entered.acquire(timeout=20)
        restoring = stub.RestoreCollection.future(waiting())
        wait_until(lambda: servers[0].metrics.calls_in_flight == 3)
        begun = time.monotonic()
        stopping = threading.Thread(target=running.pop_all().close)
        stopping.start()
        assert code_of(restoring.result) is grpc.StatusCode.UNAVAILABLE
        assert [code_of(partial(list, check)) for check in checks] == [grpc.StatusCode.UNAVAILABLE] * 2
        assert time.monotonic() - begun < 8  # of the 10 seconds of grace
        let_go.set()
        stopping.join(20)
        assert not stopping.is_alive()


@pytest.mark.parametrize("last", [3, None], ids=["last piece", "a piece before it"])
def test_a_call_whose_last_piece_was_sent_before_the_server_drains_succeeds(last: int | None) -> None:
    async def pieces() -> AsyncGenerator[int]:
        for number in range(1, 4):
            yield number

    async def scenario() -> None:
        state, given = ServerState(), []
        told = until_drained(pieces(), state, idle_s=10, is_last=lambda piece: piece == last)

        async def take() -> None:
            async for piece in told:
                given.append(piece)
                if piece == 3:
                    await state.drain(1)

        if last is None:
            with pytest.raises(Unavailable):
                await take()
        else:
            await take()
        assert given == [1, 2, 3]

    asyncio.run(scenario())


# --- Metrics ---


def test_long_calls_are_counted_as_others_are(script: Script, tmp_path: Path) -> None:
    script.backup = BACKUP * 20  # so much that it has not been sent by the time that it is given up
    servers: list[Any] = []
    with serving(FakeEncoder(), tmp_path / "data", on_listening=servers.append) as address:
        registry = servers[0].metrics.registry

        def count(method: str, code: str) -> float:
            labels = {"method": method, "code": code}
            return registry.get_sample_value("embedserve_requests_total", labels) or 0.0

        with Client(address) as client, grpc.insecure_channel(address) as channel:
            client.create_collection("photos")
            client.check_collection("photos")
            stub = CollectionServiceStub(channel)
            assert code_of(lambda: stub.RestoreCollection(iter([]))) is grpc.StatusCode.INVALID_ARGUMENT
            given_up = stub.BackupCollection(pb.BackupCollectionRequest(name="photos"))
            next(given_up)
            given_up.cancel()
            wait_until(lambda: count("CheckCollection", "OK") == 1)
            wait_until(lambda: count("RestoreCollection", "INVALID_ARGUMENT") == 1)
            wait_until(lambda: count("BackupCollection", "CANCELLED") == 1)
            wait_until(lambda: registry.get_sample_value("embedserve_requests_in_flight") == 0)


# --- asyncio ---


def test_the_asynchronous_client_checks_backs_up_and_restores(target: str, script: Script, tmp_path: Path) -> None:

    def check(on_progress: Callable[[CheckProgress], None]) -> CheckReport:
        on_progress(progress(1))
        return REPORT

    script.check = check
    path = tmp_path / "photos.backup"

    async def scenario() -> None:
        async with AsyncClient(target) as client:
            told: list[CheckProgress] = []
            assert await client.check_collection("photos", told.append) == REPORT
            assert told == [progress(1)]
            assert await client.backup_collection("photos", path) == hashlib.sha256(BACKUP).hexdigest()
            with pytest.raises(DataError, match="already exists"):
                await client.backup_collection("photos", path)
            assert (await client.restore_collection("again", path)).name == "again"
            with pytest.raises(AlreadyExists):
                await client.restore_collection("again", path)

    asyncio.run(scenario())
    assert script.received == BACKUP


def test_a_cancelled_backup_leaves_no_file(target: str, script: Script, tmp_path: Path) -> None:
    script.backup = BACKUP * 100

    async def scenario() -> None:
        async with AsyncClient(target) as client:
            backup = asyncio.create_task(client.backup_collection("photos", tmp_path / "photos.backup"))
            assert await asyncio.to_thread(script.begun.wait, 20)
            backup.cancel()
            with pytest.raises(asyncio.CancelledError):
                await backup

    asyncio.run(scenario())
    assert script.ended.wait(20)
    assert [found.name for found in tmp_path.iterdir()] == ["data"]
