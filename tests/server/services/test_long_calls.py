"""Checks, backups and restores over a real socket: long, streamed in one direction, and ended wherever one side stops.

What the store does is scripted here; what it really does is tested with the store.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from embedserve import AsyncClient, Client
from embedserve.errors import (
    AlreadyExists,
    CollectionNotFound,
    DataError,
    DiskFull,
    InternalError,
    Overloaded,
    Unavailable,
)
from embedserve.server import interceptor
from embedserve.server.calls import minimum_rate
from embedserve.server.calls.streams import until_drained
from embedserve.server.lifecycle.state import ServerState
from embedserve.server.services import collections
from embedserve.store.local.store import LocalStore
from embedserve.types import CheckProgress, CheckReport, CollectionInfo, Keep, Recall
from embedserve.v1 import collection_service_pb2 as pb
from embedserve.v1.collection_service_pb2_grpc import CollectionServiceStub
from tests.fakes import FakeEncoder
from tests.running import serving, wait_until

REPORT = CheckReport(
    items=20,
    segments=2,
    searched=20,
    recall=Recall(value=0.97, queries=100, real=True, measured_unix_s=1_700_000_000.5),
    problems=("items.sqlite: row 7 does not fit its checksum",),
)
BACKUP = bytes(range(256)) * (5 << 12)
"""5 MiB: more than what fits the window of a stream that nobody reads."""


class Script:
    """What the store does in the place of its own work."""

    def __init__(self) -> None:
        self.check: Callable[[Callable[[CheckProgress], None]], CheckReport] = lambda _: REPORT
        self.backup = BACKUP
        self.received = b""
        self.on_chunk: Callable[[], None] = lambda: None
        self.on_copy: Callable[[Callable[[], None]], None] = lambda on_progress: on_progress()
        """Before the backup is there."""
        self.on_received: Callable[[Callable[[], None]], None] = lambda on_progress: on_progress()
        """Before the restored collection is there."""
        self.begun = threading.Event()
        self.ended = threading.Event()
        """A work of the store has been left, however it ended."""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    script = Script()

    def check_collection(_: LocalStore, name: str, on_progress: Callable[[CheckProgress], None]) -> CheckReport:
        script.begun.set()
        try:
            return script.check(on_progress)
        finally:
            script.ended.set()

    @contextmanager
    def backup_collection(_: LocalStore, name: str, on_progress: Callable[[], None]) -> Iterator[io.BytesIO]:
        script.begun.set()
        try:
            script.on_copy(on_progress)
            yield io.BytesIO(script.backup)
        finally:
            script.ended.set()

    def restore_collection(
        store: LocalStore, name: str, chunks: Iterable[bytes], on_progress: Callable[[], None]
    ) -> CollectionInfo:
        script.begun.set()
        try:
            received = []
            for chunk in chunks:
                received.append(chunk)
                script.on_chunk()
            script.received = b"".join(received)
            script.on_received(on_progress)
            return store.create_collection(name, fingerprint="ab" * 32, encoder_name="a", dimension=3, keep=Keep.NONE)
        finally:
            script.ended.set()

    monkeypatch.setattr(LocalStore, "check_collection", check_collection)
    monkeypatch.setattr(LocalStore, "backup_collection", backup_collection)
    monkeypatch.setattr(LocalStore, "restore_collection", restore_collection)
    return script


@pytest.fixture
def target(script: Script, tmp_path: Path) -> Iterator[str]:
    """A server with an empty collection photos."""
    with serving(FakeEncoder(), tmp_path / "data") as address:
        with Client(address) as client:
            client.create_collection("photos")
        yield address


@pytest.fixture
def client(target: str) -> Iterator[Client]:
    with Client(target, timeout_s=20) as client:
        yield client


@pytest.fixture
def stub(target: str) -> Iterator[Any]:
    with grpc.insecure_channel(target) as channel:
        yield CollectionServiceStub(channel)


def code_of(call: Callable[[], object]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    code: grpc.StatusCode = raised.value.code()
    return code


def progress(done: int) -> CheckProgress:
    return CheckProgress("items", done, 20)


def forever(on_progress: Callable[[CheckProgress], None]) -> CheckReport:
    """A check that ends only if nobody waits for it."""
    stage = 0
    while True:
        on_progress(CheckProgress(f"stage {stage}", 0, 0))  # each stage is told at once
        stage += 1


def until_stopped(on_progress: Callable[[], None]) -> None:
    """What takes long, and asks now and then whether anybody waits for it."""
    while True:
        time.sleep(0.001)
        on_progress()


# --- Checks ---


def test_a_check_tells_how_far_it_is_and_then_what_it_found(client: Client, script: Script) -> None:
    def check(on_progress: Callable[[CheckProgress], None]) -> CheckReport:
        on_progress(CheckProgress("items", 0, 20))
        on_progress(CheckProgress("search", 5, 20))
        return REPORT

    script.check = check
    told: list[CheckProgress] = []
    assert client.check_collection("photos", told.append) == REPORT
    assert told == [CheckProgress("items", 0, 20), CheckProgress("search", 5, 20)]


def test_a_check_tells_of_progress_a_few_times_a_second_however_often_the_store_does(
    client: Client, script: Script
) -> None:
    def check(on_progress: Callable[[CheckProgress], None]) -> CheckReport:
        for done in range(20_000):
            on_progress(CheckProgress("items", done, 20_000))
        return REPORT

    script.check = check
    told: list[CheckProgress] = []
    client.check_collection("photos", told.append)
    assert told[0] == CheckProgress("items", 0, 20_000)
    assert len(told) < 100


def test_a_check_with_nothing_to_say_says_that_it_is_under_way(
    client: Client, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collections, "_SAY_EVERY_S", 0.01)
    said = threading.Semaphore(0)

    def check(on_progress: Callable[[CheckProgress], None]) -> CheckReport:
        on_progress(progress(3))
        for _ in range(3):
            assert said.acquire(timeout=20)
        return REPORT

    script.check = check
    told: list[CheckProgress] = []

    def tell(step: CheckProgress) -> None:
        told.append(step)
        said.release()

    assert client.check_collection("photos", tell) == REPORT
    assert {*told} <= {CheckProgress("waiting", 0, 0), progress(3)}
    assert len(told) >= 3


def test_a_check_that_nobody_waits_for_any_more_ends(stub: Any, script: Script) -> None:
    script.check = forever
    call = stub.CheckCollection(pb.CheckCollectionRequest(name="photos"))
    assert next(call).progress.stage == "stage 0"
    call.cancel()
    assert script.ended.wait(20)


def test_a_bug_in_a_check_is_told_as_one(client: Client, script: Script) -> None:
    def check(on_progress: Callable[[CheckProgress], None]) -> CheckReport:
        raise ZeroDivisionError

    script.check = check
    with pytest.raises(InternalError, match="this is a bug in embedserve: ZeroDivisionError"):
        client.check_collection("photos")


@pytest.mark.parametrize("work", ["check", "backup"])
def test_work_on_a_collection_that_is_not_there_is_refused(client: Client, work: str, tmp_path: Path) -> None:
    with pytest.raises(CollectionNotFound):
        client.check_collection("none") if work == "check" else client.backup_collection("none", tmp_path / "b")
    assert list(tmp_path.glob("*b*")) == []


def test_a_request_that_is_no_message_is_refused(target: str) -> None:
    with grpc.insecure_channel(target) as channel:
        check = channel.unary_stream("/embedserve.v1.CollectionService/CheckCollection")
        restore = channel.stream_unary("/embedserve.v1.CollectionService/RestoreCollection")
        assert code_of(lambda: list(check(b"\xff"))) is grpc.StatusCode.INVALID_ARGUMENT
        assert code_of(lambda: restore(iter([b"\xff"]))) is grpc.StatusCode.INVALID_ARGUMENT


def test_no_more_than_two_works_run_at_a_time_and_searches_go_on(
    client: Client, stub: Any, script: Script, tmp_path: Path
) -> None:
    let_go = threading.Event()
    entered = threading.Semaphore(0)

    def check(on_progress: Callable[[CheckProgress], None]) -> CheckReport:
        entered.release()
        assert let_go.wait(20)
        return REPORT

    script.check = check
    request = pb.CheckCollectionRequest(name="photos")
    checks = [stub.CheckCollection(request) for _ in range(3)]
    assert entered.acquire(timeout=20)
    assert entered.acquire(timeout=20)
    assert client.search("photos", vector=[1.0] * 16, encoder_fingerprint=FakeEncoder().fingerprint) == []
    assert not entered.acquire(timeout=0.1)
    let_go.set()
    assert [list(check)[-1].report.item_count for check in checks] == [20, 20, 20]


# --- Backups ---


def test_a_backup_is_the_file_of_the_store_with_its_sha256(client: Client, script: Script, tmp_path: Path) -> None:
    path = tmp_path / "photos.backup"
    assert client.backup_collection("photos", path) == hashlib.sha256(BACKUP).hexdigest()
    assert path.read_bytes() == BACKUP
    assert [found.name for found in tmp_path.iterdir() if found.name != "data"] == ["photos.backup"]


def test_a_backup_comes_in_pieces_of_at_most_a_mebibyte(stub: Any) -> None:
    messages = list(stub.BackupCollection(pb.BackupCollectionRequest(name="photos")))
    assert [len(message.chunk) for message in messages] == [1 << 20] * 5 + [0]
    assert [bool(message.sha256) for message in messages] == [False] * 5 + [True]
    assert messages[-1].size_bytes == len(BACKUP)


def test_a_backup_that_nobody_wants_any_more_is_left(stub: Any, script: Script) -> None:
    script.backup = BACKUP * 20
    call = stub.BackupCollection(pb.BackupCollectionRequest(name="photos"))
    next(call)
    assert not script.ended.is_set()
    call.cancel()
    assert script.ended.wait(20)


def test_who_takes_nothing_of_a_backup_loses_it(stub: Any, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interceptor, "_UNTAKEN_S", 0.2)
    script.backup = BACKUP * 20
    call = stub.BackupCollection(pb.BackupCollectionRequest(name="photos"))
    next(call)
    assert script.ended.wait(20)
    assert code_of(lambda: list(call)) is grpc.StatusCode.DEADLINE_EXCEEDED


def test_who_takes_a_backup_a_little_at_a_time_loses_it(
    stub: Any, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interceptor, "_UNTAKEN_S", 0.5)
    monkeypatch.setattr(minimum_rate, "LEAST_BYTES_PER_S", 1 << 30)
    script.backup = BACKUP * 20
    call = stub.BackupCollection(pb.BackupCollectionRequest(name="photos"))

    def take() -> None:
        for _ in call:
            time.sleep(0.1)

    assert code_of(take) is grpc.StatusCode.DEADLINE_EXCEEDED
    assert script.ended.wait(20)


def test_a_copy_that_nobody_waits_for_any_more_ends_before_its_first_piece(stub: Any, script: Script) -> None:
    script.on_copy = until_stopped
    call = stub.BackupCollection(pb.BackupCollectionRequest(name="photos"))
    assert script.begun.wait(20)
    call.cancel()
    assert script.ended.wait(20)


def test_the_seventeenth_that_would_have_to_wait_is_refused(
    target: str, stub: Any, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collections, "_SAY_EVERY_S", 0.01)
    script.check = forever
    checks = [stub.CheckCollection(pb.CheckCollectionRequest(name="photos")) for _ in range(18)]
    for check in checks:
        assert next(check).progress.stage in {"stage 0", "waiting"}
    path = tmp_path / "backup"
    path.write_bytes(b"abc")
    with Client(target, timeout_s=5) as client:  # too little to ask again
        with pytest.raises(Overloaded, match="18 checks, backups and restores are under way or wait") as refused:
            client.restore_collection("again", path)
        assert refused.value.retry_after_ms == 10_000
        with pytest.raises(Overloaded):
            client.check_collection("photos")
    for check in checks:
        check.cancel()


# --- Restores ---


def pieces(name: str, chunks: Iterable[bytes], sha256: bytes | None) -> Iterator[pb.RestoreCollectionRequest]:
    yield pb.RestoreCollectionRequest(name=name)
    for chunk in chunks:
        yield pb.RestoreCollectionRequest(chunk=chunk)
    if sha256 is not None:
        yield pb.RestoreCollectionRequest(sha256=sha256)


def test_a_restore_gives_the_store_the_bytes_of_the_file(client: Client, script: Script, tmp_path: Path) -> None:
    path = tmp_path / "backup"
    path.write_bytes(BACKUP)
    assert client.restore_collection("again", path).name == "again"
    assert script.received == BACKUP
    assert client.get_collection("again").dimension == 3


def test_an_upload_that_is_cut_or_changed_makes_nothing(stub: Any, client: Client) -> None:
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
        assert code_of(lambda stream=stream: stub.RestoreCollection(stream)) is grpc.StatusCode.INVALID_ARGUMENT
    assert [info.name for info in client.list_collections()] == ["photos", "whole"]


def test_what_the_store_refuses_ends_the_upload(client: Client, script: Script, tmp_path: Path) -> None:
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
        with pytest.raises(grpc.RpcError, match="2097153 bytes; the largest may have 2097152") as raised:
            stub.RestoreCollection(stream)
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_restore_that_is_given_up_when_all_has_been_sent_ends_and_makes_nothing(
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


def test_a_restore_that_waits_for_its_turn_is_not_given_up(
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


def test_a_name_that_is_taken_is_refused_before_the_store_is_asked(
    client: Client, script: Script, tmp_path: Path
) -> None:
    path = tmp_path / "backup"
    path.write_bytes(BACKUP)
    client.set_alias("pictures", "photos")
    for name in ("photos", "pictures"):
        with pytest.raises(AlreadyExists):
            client.restore_collection(name, path)
    assert not script.begun.is_set()


def test_an_upload_that_is_given_up_ends_the_work(stub: Any, script: Script, client: Client) -> None:
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


def test_an_upload_that_has_gone_silent_is_ended(stub: Any, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collections, "_SILENT_S", 0.1)
    let_go = threading.Event()

    def waiting() -> Iterator[pb.RestoreCollectionRequest]:
        yield pb.RestoreCollectionRequest(name="bad", chunk=b"abc")
        let_go.wait(20)

    assert code_of(lambda: stub.RestoreCollection(waiting())) is grpc.StatusCode.DEADLINE_EXCEEDED
    assert script.ended.is_set()
    let_go.set()


def test_an_upload_that_only_trickles_is_ended(stub: Any, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collections, "_SILENT_S", 0.3)
    ended = threading.Event()

    def trickling() -> Iterator[pb.RestoreCollectionRequest]:
        yield pb.RestoreCollectionRequest(name="bad")
        while not ended.wait(0.02):
            yield pb.RestoreCollectionRequest(chunk=b"a")

    assert code_of(lambda: stub.RestoreCollection(trickling())) is grpc.StatusCode.DEADLINE_EXCEEDED
    ended.set()
    assert script.ended.is_set()


# --- Stopping ---


@pytest.mark.parametrize("work", ["check", "backup", "copy", "restore", "restore that is checked"])
def test_a_server_that_stops_does_not_wait_for_long_work(work: str, script: Script, tmp_path: Path) -> None:
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


def test_a_server_that_stops_does_not_wait_for_a_restore_whose_turn_has_not_come(
    script: Script, tmp_path: Path
) -> None:
    entered, let_go = threading.Semaphore(0), threading.Event()

    def check(on_progress: Callable[[CheckProgress], None]) -> CheckReport:
        entered.release()
        return forever(on_progress)

    script.check = check
    sent = threading.Event()

    def waiting() -> Iterator[pb.RestoreCollectionRequest]:
        yield pb.RestoreCollectionRequest(name="again", chunk=b"abc")
        sent.set()
        let_go.wait(20)

    with ExitStack() as running, ExitStack() as connected:
        address = running.enter_context(serving(FakeEncoder(), tmp_path / "data"))
        stub = CollectionServiceStub(connected.enter_context(grpc.insecure_channel(address)))
        connected.enter_context(Client(address)).create_collection("photos")
        checks = [stub.CheckCollection(pb.CheckCollectionRequest(name="photos")) for _ in range(2)]
        assert entered.acquire(timeout=20)
        assert entered.acquire(timeout=20)
        restoring = stub.RestoreCollection.future(waiting())
        assert sent.wait(20)
        begun = time.monotonic()
        stopping = threading.Thread(target=running.pop_all().close)
        stopping.start()
        assert code_of(restoring.result) is grpc.StatusCode.UNAVAILABLE
        assert [code_of(lambda check=check: list(check)) for check in checks] == [grpc.StatusCode.UNAVAILABLE] * 2
        assert time.monotonic() - begun < 8  # of the 10 seconds of grace
        let_go.set()
        stopping.join(20)
        assert not stopping.is_alive()


@pytest.mark.parametrize("last", [3, None], ids=["last piece", "a piece before it"])
def test_a_call_whose_last_piece_was_given_before_the_server_drains_ends_well(last: int | None) -> None:
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


# --- Accounts ---


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


def test_the_client_for_asyncio_does_all_three(target: str, script: Script, tmp_path: Path) -> None:
    script.check = lambda on_progress: (on_progress(progress(1)), REPORT)[1]
    path = tmp_path / "photos.backup"

    async def scenario() -> None:
        async with AsyncClient(target) as client:
            told: list[CheckProgress] = []
            assert await client.check_collection("photos", told.append) == REPORT
            assert told == [progress(1)]
            assert await client.backup_collection("photos", path) == hashlib.sha256(BACKUP).hexdigest()
            with pytest.raises(DataError, match="is there already"):
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
