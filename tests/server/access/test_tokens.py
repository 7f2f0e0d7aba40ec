"""Tokens: the file, the table of roles, and every kind of call over a real socket."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from embedserve import AsyncClient, Client, wire
from embedserve.client import ItemInput
from embedserve.errors import PermissionDenied, SetupError, Unauthenticated
from embedserve.server.access.roles import NEEDED
from embedserve.server.access.tokens import Role, TokenFile
from embedserve.server.app import SERVICES
from embedserve.server.interceptor import CallInterceptor
from embedserve.v1 import collection_service_pb2 as collection_pb
from embedserve.v1 import embedding_service_pb2 as embedding_pb
from tests.fakes import FakeEncoder, picture
from tests.running import serving
from tests.waiting import wait_until

PROTOS = Path(__file__).resolve().parents[3] / "protos"
READ, WRITE, WRONG = "read-" + "r" * 20, "write-" + "w" * 20, "wrong-" + "x" * 20
FILE = f"# who may call\n\nread {READ} website\nwrite\t{WRITE}\n"


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(FILE)
    path.chmod(0o600)
    return path


@pytest.fixture
def guarded(tmp_path: Path, tokens: Path) -> Iterator[str]:
    """The address of a server with tokens, a collection and an item in it."""
    with serving(FakeEncoder(), tmp_path / "data", tokens=tokens) as address:
        with Client(address, token=WRITE) as client:
            client.create_collection("photos")
            client.add("photos", [ItemInput(id="one", image=picture(1))])
        yield address


# --- The table ---


def methods_of_protos() -> dict[str, Any]:
    """Every method of every service in protos/, by the path of its calls."""
    found = {}
    for proto in (PROTOS / "embedserve/v1").glob("*.proto"):
        __import__(f"embedserve.v1.{proto.stem}_pb2")
        file = descriptor_pool.Default().FindFileByName(f"embedserve/v1/{proto.name}")
        for service in file.services_by_name.values():
            for method in service.methods:
                found[f"/{service.full_name}/{method.name}"] = method
    return found


def test_every_call_in_the_protos_has_its_role() -> None:
    methods = methods_of_protos()
    assert {name.split("/")[1] for name in methods} >= set(SERVICES)
    assert methods.keys() - NEEDED.keys() == set()


def test_a_call_with_side_effects_needs_the_role_write() -> None:
    no_side_effects = 1
    for name, method in methods_of_protos().items():
        reads = method.GetOptions().idempotency_level == no_side_effects or method.name == "EmbedStream"
        assert NEEDED[name] is (Role.READ if reads else Role.WRITE), name


def test_only_health_is_open() -> None:
    assert {name for name, role in NEEDED.items() if role is None} == {
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/List",
        "/grpc.health.v1.Health/Watch",
    }


# --- Every kind of call ---


def call(address: str, path: str, metadata: tuple[tuple[str, str], ...], request: bytes = b"") -> grpc.StatusCode:
    """The status of a call of any kind."""
    method = methods_of_protos().get(path)
    with grpc.insecure_channel(address) as channel:
        try:
            if method is not None and method.client_streaming:
                stream: Any = channel.stream_stream(path)
                list(stream(iter([request]), metadata=metadata, timeout=20))
            else:
                unary: Any = channel.unary_unary(path)
                unary(request, metadata=metadata, timeout=20)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
    return grpc.StatusCode.OK


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


SERVED = sorted(path for path in NEEDED if path.split("/")[1] in SERVICES)


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        bearer(WRONG),
        bearer(WRITE[:-1]),
        bearer(""),
        (("authorization", WRITE),),
        (("authorization", f"Basic {WRITE}"),),
        (("token", WRITE),),
        (*bearer(WRITE), *bearer(WRITE)),
    ],
    ids=["none", "wrong", "shortened", "empty", "without-scheme", "other-scheme", "other-header", "two"],
)
def test_without_a_known_token_every_call_is_refused(guarded: str, metadata: tuple[tuple[str, str], ...]) -> None:
    ends = {path: call(guarded, path, metadata) for path in SERVED}
    assert set(ends.values()) == {grpc.StatusCode.UNAUTHENTICATED}, ends


def test_a_read_token_is_refused_every_call_that_writes_and_no_other(guarded: str) -> None:
    for path in SERVED:
        refused = call(guarded, path, bearer(READ)) is grpc.StatusCode.PERMISSION_DENIED
        assert refused is (NEEDED[path] is Role.WRITE), path


def test_a_write_token_is_refused_nothing(guarded: str) -> None:
    not_allowed = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
    for path in SERVED:
        assert call(guarded, path, bearer(WRITE)) not in not_allowed, path


def test_the_scheme_may_be_written_in_any_case(guarded: str) -> None:
    path = "/embedserve.v1.EmbeddingService/GetServerInfo"
    assert call(guarded, path, (("authorization", f"bearer {READ}"),)) is grpc.StatusCode.OK


def test_a_refused_call_names_the_role_that_is_missing(guarded: str) -> None:
    with grpc.insecure_channel(guarded) as channel:
        ask: Any = channel.unary_unary("/embedserve.v1.CollectionService/DeleteCollection")
        with pytest.raises(grpc.RpcError) as caught:
            ask(collection_pb.DeleteCollectionRequest(name="photos").SerializeToString(), metadata=bearer(READ))
    refused: Any = caught.value
    error = wire.error_from_status(rpc_status.from_call(refused))
    assert type(error) is PermissionDenied
    assert error.message == "DeleteCollection needs a token of the role write; the call has one of read"


def test_the_request_of_an_unknown_caller_is_not_read(tmp_path: Path, tokens: Path) -> None:
    # A request above the limit ends with RESOURCE_EXHAUSTED if it is read.
    with serving(FakeEncoder(), tmp_path / "data", tokens=tokens) as address:
        large = bytes(40 << 20)
        assert call(address, "/embedserve.v1.EmbeddingService/Embed", (), large) is grpc.StatusCode.UNAUTHENTICATED
        known = call(address, "/embedserve.v1.EmbeddingService/Embed", bearer(READ), large)
        assert known is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_health_is_open_and_reflection_is_not(guarded: str) -> None:
    with grpc.insecure_channel(guarded) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        health = stub.Check(health_pb2.HealthCheckRequest(), timeout=20)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        question = reflection_pb2.ServerReflectionRequest(list_services="")
        with pytest.raises(grpc.RpcError) as caught:
            list(reflection.ServerReflectionInfo(iter([question]), timeout=20))
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert len(list(reflection.ServerReflectionInfo(iter([question]), timeout=20, metadata=bearer(READ)))) == 1


def test_only_a_known_caller_learns_that_a_method_does_not_exist(guarded: str) -> None:
    assert call(guarded, "/embedserve.v1.EmbeddingService/Later", ()) is grpc.StatusCode.UNAUTHENTICATED
    assert call(guarded, "/embedserve.v1.EmbeddingService/Later", bearer(READ)) is grpc.StatusCode.UNIMPLEMENTED


def test_the_documented_table_has_every_call_with_its_role() -> None:
    page = (PROTOS.parent / "docs" / "security.md").read_text(encoding="utf-8")
    documented: dict[str, Any] = {}
    for role in Role:
        [row] = [line for line in page.splitlines() if line.startswith(f"| `{role}` |")]
        documented |= dict.fromkeys(re.findall(r"`([A-Za-z]+)`", row.split("|")[2]), role)
    assert documented.pop("AdminService") is Role.WRITE
    needed = {
        path.rpartition("/")[2]: role
        for path, role in NEEDED.items()
        if path.startswith("/embedserve.") and ".AdminService/" not in path
    }
    assert documented == needed


def test_a_call_that_is_missing_from_the_table_is_refused(guarded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = "/embedserve.v1.EmbeddingService/GetServerInfo"
    monkeypatch.delitem(NEEDED, path)
    assert call(guarded, path, bearer(WRITE)) is grpc.StatusCode.PERMISSION_DENIED


def test_a_refused_call_does_not_make_later_ones_more_expensive(
    tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapped: list[object] = []
    wrap = CallInterceptor._wrap

    def noted(self: CallInterceptor, handler: Any) -> Any:
        wrapped.append(handler)
        return wrap(self, handler)

    monkeypatch.setattr(CallInterceptor, "_wrap", noted)
    with serving(FakeEncoder(), tmp_path / "data", tokens=tokens) as address:
        path = "/embedserve.v1.EmbeddingService/GetServerInfo"
        ends = [call(address, path, bearer(token)) for token in (WRONG, READ, READ, WRONG, READ)]
    assert [end is grpc.StatusCode.OK for end in ends] == [False, True, True, False, True]
    assert len(wrapped) == 3  # the two refusals, and the handler once


def test_streams_are_checked_by_role(guarded: str) -> None:
    upsert: Message = collection_pb.UpsertStreamRequest()
    embed: Message = embedding_pb.EmbedStreamRequest()
    for path, token, refused in [
        ("/embedserve.v1.CollectionService/UpsertStream", READ, True),
        ("/embedserve.v1.EmbeddingService/EmbedStream", READ, False),
    ]:
        request = upsert if "Upsert" in path else embed
        end = call(guarded, path, bearer(token), request.SerializeToString())
        assert (end is grpc.StatusCode.PERMISSION_DENIED) is refused


def test_backups_need_the_role_read_and_restores_the_role_write(guarded: str, tmp_path: Path) -> None:
    path = tmp_path / "photos.backup"
    with Client(guarded, token=READ) as reader:
        assert reader.check_collection("photos").problems == ()
        reader.backup_collection("photos", path)
        with pytest.raises(PermissionDenied):
            reader.restore_collection("again", path)
    with Client(guarded, token=WRITE) as writer:
        assert writer.restore_collection("again", path).items == 1

    async def scenario() -> None:
        async with AsyncClient(guarded, token=READ) as reader:
            await reader.backup_collection("again", path, overwrite=True)
            with pytest.raises(PermissionDenied):
                await reader.restore_collection("and again", path)
        async with AsyncClient(guarded, token=WRITE) as writer:
            assert (await writer.restore_collection("once-more", path)).items == 1
        async with AsyncClient(guarded) as stranger:
            with pytest.raises(Unauthenticated):
                await stranger.check_collection("photos")

    asyncio.run(scenario())


def test_bulk_methods_over_a_stream_report_the_refusal_and_leave_nothing_behind(
    guarded: str, caplog: pytest.LogCaptureFixture
) -> None:
    def items() -> Iterator[ItemInput]:
        return (ItemInput(id=str(number), image=picture(1)) for number in range(100))

    async def add() -> None:
        async with AsyncClient(guarded, token=READ) as client:
            for _ in range(5):
                with pytest.raises(PermissionDenied, match="UpsertStream needs a token of the role write"):
                    await client.add("photos", items())

    asyncio.run(add())
    with Client(guarded, token=READ) as client:
        with pytest.raises(PermissionDenied, match="UpsertStream needs a token of the role write"):
            client.add("photos", items())
        assert len(client.embed([picture(1)] * 100).vectors) == 100
    gc.collect()
    assert [record.message for record in caplog.records if record.name == "asyncio"] == []


# --- The file ---


def test_added_and_removed_tokens_count_from_the_next_call_on(
    tmp_path: Path, tokens: Path, quick_reload: None, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        serving(FakeEncoder(), tmp_path / "data", tokens=tokens) as address,
        Client(address, token=WRONG) as new,
        Client(address, token=READ) as old,
    ):
        old.server_info()
        with pytest.raises(Unauthenticated):
            new.server_info()
        _put(tokens, f"write {WRONG}\n")
        wait_until(lambda: _is_admitted(new))
        with pytest.raises(Unauthenticated):
            old.server_info()
        with caplog.at_level(logging.ERROR, "embedserve.server"):
            _put(tokens, f"write short\nread {READ}\n")
            wait_until(lambda: _is_admitted(old))
        with pytest.raises(Unauthenticated):  # the line with a mistake hides nothing that was removed
            new.server_info()
        [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    fields = vars(record)["fields"]
    assert (fields["tokens"], fields["revoked"]) == (1, 1)
    assert "line 1" in fields["reason"]
    assert WRONG not in str(vars(record))
    assert READ not in str(vars(record))


def _remove(path: Path) -> None:
    path.unlink()


def _empty(path: Path) -> None:
    path.write_text("")


def _only_comments(path: Path) -> None:
    path.write_text(f"# read {READ} website\n\n")


def _garbage(path: Path) -> None:
    path.write_bytes(bytes(range(256)))


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("change", [_remove, _empty, _only_comments, _garbage, _directory, _pipe])
def test_a_file_that_names_nobody_any_more_revokes_every_token(
    tokens: Path, caplog: pytest.LogCaptureFixture, change: Callable[[Path], None]
) -> None:
    file = TokenFile(tokens)
    change(tokens)
    file.refresh()
    assert file.find(READ) is not None  # it may be half-written
    file.refresh()
    assert (file.find(READ), file.find(WRITE), len(file)) == (None, None, 0)
    file.refresh()
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.message == "all tokens are revoked: every call is refused"
    assert vars(record)["fields"]["revoked"] == 2
    if tokens.is_dir():
        tokens.rmdir()
    _put(tokens, FILE)
    file.refresh()
    assert file.find(READ) is not None


def test_a_running_server_refuses_every_call_once_its_tokens_are_gone(
    tmp_path: Path, tokens: Path, quick_reload: None
) -> None:
    with (
        serving(FakeEncoder(), tmp_path / "data", tokens=tokens) as address,
        Client(address, token=WRITE) as client,
    ):
        client.server_info()
        tokens.unlink()
        wait_until(lambda: not _is_admitted(client))
        _put(tokens, FILE)
        wait_until(lambda: _is_admitted(client))


def test_a_file_seen_in_the_middle_of_being_written_revokes_nobody(tokens: Path) -> None:
    file = TokenFile(tokens)
    for half in ("", FILE[:30], FILE):
        tokens.write_text(half)
        file.refresh()
        assert file.find(READ) is not None
        assert file.find(WRITE) is not None


def test_a_disk_that_does_not_give_the_file_changes_nothing(
    tokens: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    file = TokenFile(tokens)
    tokens.write_text(f"read {READ}\n")
    with monkeypatch.context() as patched:
        patched.setattr("embedserve.server.access.tokens.regular", fail)
        file.refresh()
        file.refresh()
        assert file.find(WRITE) is not None
    assert [record.levelname for record in caplog.records if record.levelno == logging.ERROR] == ["ERROR"]
    file.refresh()
    assert file.find(WRITE) is None


def _put(path: Path, text: str) -> None:
    """Replace the file atomically: the server would read a half-written one."""
    beside = path.with_name("beside")
    beside.write_text(text)
    beside.chmod(0o600)
    beside.replace(path)


def _is_admitted(client: Client) -> bool:
    try:
        client.server_info()
    except Unauthenticated:
        return False
    return True


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no tokens"),
        ("# nothing\n\n", "has no tokens"),
        (f"read {READ}\nwrite short-secret\n", "line 2 has a token of 12 characters; 16 to 1024 are allowed"),
        (f"\nadmin {READ}\n", "line 2 begins with no role"),
        (f"{READ}\n", "line 1 begins with no role"),
        ("read\n", "line 1 has 1 words"),
        (f"read {READ} two names\n", "line 1 has 4 words"),
        (f"read {'ä' * 20}\n", "line 1 has a token with characters"),
        (f"read {READ} website\nwrite {READ}\n", "line 2 repeats the token of website"),
    ],
)
def test_an_invalid_file_is_refused_with_the_line_and_without_the_token(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(SetupError) as caught:
        TokenFile(path)
    assert says in caught.value.message
    assert caught.value.hint
    for secret in (READ, "short-secret", "ä" * 20):
        assert secret not in caught.value.message + caught.value.hint


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="cannot be read: No such file"):
        TokenFile(tmp_path / "tokens")


def test_a_file_that_every_user_can_read_is_warned_of(tokens: Path, caplog: pytest.LogCaptureFixture) -> None:
    TokenFile(tokens)
    assert caplog.text == ""
    tokens.chmod(0o644)
    TokenFile(tokens)
    [record] = caplog.records
    assert vars(record)["fields"]["hint"] == f"chmod o-r {tokens}"


def test_a_caller_is_known_by_name_or_line_and_the_token_is_not_kept(tokens: Path) -> None:
    file = TokenFile(tokens)
    website, other = file.find(READ), file.find(WRITE)
    assert website is not None
    assert other is not None
    assert (website.name, website.role, other.name, other.role) == ("website", Role.READ, "line 4", Role.WRITE)
    assert READ not in repr(vars(file))
