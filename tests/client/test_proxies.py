"""A proxy between client and server: what it answers and cuts is told from what the server does."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from embedserve import ItemInput
from embedserve.client import hints
from embedserve.errors import (
    EmbedserveError,
    FailedPrecondition,
    InternalError,
    LimitExceeded,
    Overloaded,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from tests.client.fake_proxy import Respond, answering, cut, page, speaking
from tests.client.fake_server import Connect, FakeServer, PlainAbort, serving
from tests.fakes import FakeEncoder, picture
from tests.running import serving as serving_really
from tests.sizes import fast_retries
from tests.waiting import wait_until

MANY = [bytes([number]) for number in range(1, 200)]
CUT = PlainAbort(grpc.StatusCode.INTERNAL, "Stream removed (RST_STREAM (Received RST_STREAM with error code 2))")
GUIDE = Path(__file__).resolve().parents[2] / "docs" / "operations.md"


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    fast_retries(monkeypatch)


# --- What it answers ---


@pytest.mark.parametrize(
    ("respond", "kind", "says", "hint"),
    [
        (page(413), LimitExceeded, "a proxy at .* limits the size of requests", "client_max_body_size 0"),
        (page(401), Unauthenticated, "asks who is calling", "token"),
        (page(407), Unauthenticated, "asks who is calling", "token"),
        (page(403), PermissionDenied, "does not allow the call", ""),
        (page(404), FailedPrecondition, "knows no embedserve", "grpc_pass"),
        (page(405), FailedPrecondition, "knows no embedserve", "grpc_pass"),
        (page(500), Unavailable, "does not reach the server", "grpc_pass"),
        (page(502), Unavailable, "does not reach the server", "grpc_pass"),
        (page(503), Unavailable, "does not reach the server", "grpc_pass"),
        (page(504), Unavailable, "no answer from the server in time", "grpc_read_timeout"),
        (page(520), Unavailable, "does not reach the server", "grpc_pass"),
        (page(301), Unavailable, "redirects to another address", "gRPC address"),
        (page(400), Unavailable, "refuses the call", "gRPC address"),
        (page(431), Unavailable, "refuses the call", "gRPC address"),
        (page(200), Unavailable, "without a gRPC status", "gRPC address"),
        *(
            (cut(number), Unavailable, "was cut in the middle of a call", "client_max_body_size")
            for number in range(14)
        ),
    ],
)
def test_a_proxys_answer_is_never_an_error_of_the_server(
    connect: Connect, respond: Respond, kind: type[EmbedserveError], says: str, hint: str
) -> None:
    with answering(respond) as address:
        client = connect(address, timeout_s=5)
        with pytest.raises(kind, match=says) as caught:
            client.list_collections()
        assert type(caught.value) is kind
        assert hint in caught.value.hint
        with pytest.raises(kind):
            client.create_collection("photos")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\nServer: nginx\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html>",
        b"SSH-2.0-OpenSSH_9.2\r\n",
    ],
)
def test_what_speaks_no_http2_is_named_at_once(connect: Connect, answer: bytes) -> None:
    with speaking(answer) as address:
        with pytest.raises(Unavailable, match=r"speaks HTTP/1\.1, not gRPC|does not speak gRPC") as caught:
            connect(address).server_info()
        assert caught.value.hint == hints.NOT_GRPC


@pytest.mark.parametrize(
    ("respond", "times"), [(page(502), 5), (page(504), 5), (cut(2), 5), (page(413), 1), (page(404), 1)]
)
def test_a_call_that_may_be_made_twice_is_tried_again_where_that_may_help(
    connect: Connect, respond: Respond, times: int
) -> None:
    asked: list[int] = []

    def counting(connection: socket.socket, stream: int) -> None:
        asked.append(stream)
        respond(connection, stream)

    with answering(counting) as address:
        client = connect(address, timeout_s=5)
        with pytest.raises(EmbedserveError):
            client.list_collections()
        assert len(asked) == times
        asked.clear()
        with pytest.raises(EmbedserveError):
            client.create_collection("photos")
        assert len(asked) == 1


def test_a_call_beyond_the_rate_of_a_proxy_is_made_again_a_little_later(connect: Connect) -> None:
    answers = iter([page(429), page(429), page(404)])
    with answering(lambda connection, stream: next(answers)(connection, stream)) as address:
        with pytest.raises(FailedPrecondition):
            connect(address).list_collections()
        assert next(answers, None) is None
    with answering(page(429)) as address, pytest.raises(Overloaded, match="limits the rate of calls"):
        connect(address).create_collection("photos")


def test_why_a_proxy_is_not_ready_is_said_in_words(connect: Connect) -> None:
    with answering(page(502)) as address, pytest.raises(Unavailable, match=r"does not reach the server \(HTTP 502\)"):
        connect(address).wait_ready(0.2)


# --- What it cuts ---


def cut_after(server: FakeServer, method: str, answers: int) -> threading.Event:
    """Each stream is cut as soon as it has given so many answers, as after a time without data; set at the first."""
    happened = threading.Event()
    answer = server.scripts[method]

    def converse(method: str, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        context.send_initial_metadata(())
        server.streams.append((method, None))
        inputs = 0
        for _, request in zip(range(answers), requests, strict=False):
            server.requests.append((method, request))
            yield answer(request, inputs)
            inputs += len(request.images if method == "EmbedStream" else request.items)
        happened.set()
        context.abort(CUT.code, CUT.text)

    server.converse = converse  # type: ignore[method-assign]
    return happened


@pytest.mark.parametrize("method", ["EmbedStream", "UpsertStream"])
def test_a_stream_that_is_cut_while_it_is_idle_is_opened_again(
    connect: Connect, server: FakeServer, method: str
) -> None:
    happened = cut_after(server, method, 3)
    client = connect(server.target, timeout_s=20)

    def slowly(inputs: list[Any]) -> Iterator[Any]:
        for number, each in enumerate(inputs):
            if number == 49:  # three messages of 16 have been sent
                assert happened.wait(20)
            yield each

    if method == "EmbedStream":
        assert client.embed(slowly(MANY)).vectors[:, 1].tolist() == list(range(1, 200))
    else:
        items = [ItemInput(id=str(number), image=image) for number, image in enumerate(MANY)]
        results = client.add("photos", slowly(items))
        assert [(result.id, result.error) for result in results] == [(item.id, None) for item in items]
        written = {item.id: item.image for request in server.asked("UpsertStream") for item in request.items}
        assert [written[item.id] for item in items] == MANY
    assert len(server.streams) >= 5


def test_streams_that_are_cut_at_a_size_get_through_and_are_warned_of(
    connect: Connect, server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    cut_after(server, "EmbedStream", 1)
    assert connect(server.target, timeout_s=20).embed(MANY).vectors[:, 1].tolist() == list(range(1, 200))
    [warning] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "client_max_body_size" in warning.getMessage()


def test_a_message_that_never_gets_through_ends_with_the_proxys_settings(connect: Connect, server: FakeServer) -> None:
    cut_after(server, "EmbedStream", 2)
    answered = server.converse

    def none_from_the_second_on(method: str, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        if server.streams:
            next(requests)
            server.streams.append((method, None))
            context.abort(CUT.code, CUT.text)
        yield from answered(method, requests, context)

    server.converse = none_from_the_second_on  # type: ignore[method-assign]
    got: list[Any] = []
    with pytest.raises(Unavailable, match="was cut in the middle") as caught:
        got.extend(connect(server.target).embed_each(MANY))
    assert "client_max_body_size" in caught.value.hint
    assert len(got) <= 32
    assert len(server.streams) == 5


# --- The real thing ---


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def nginx(folder: Path, server: str) -> Iterator[None]:
    """nginx with this configuration of a server."""
    folder.mkdir()
    temporary = "\n".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; events {{}}\n"
        f"http {{ access_log off; client_body_temp_path {folder}/body; {temporary}\n{server}\n}}"
    )
    command = [NGINX or "nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


def answers_at(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
with_nginx = pytest.mark.skipif(NGINX is None, reason="needs nginx")


@with_nginx
def test_nginx_as_it_comes_names_its_limit_and_its_time(connect: Connect, tmp_path: Path) -> None:
    port = free_port()
    with (
        serving_really(FakeEncoder(), tmp_path / "data") as address,
        nginx(
            tmp_path / "nginx",
            f"server {{ listen 127.0.0.1:{port} http2; grpc_read_timeout 1s; grpc_send_timeout 1s;"
            f" location / {{ grpc_pass grpc://{address}; }} }}",
        ),
    ):
        wait_until(lambda: answers_at(port))
        client = connect(f"127.0.0.1:{port}", timeout_s=20)
        with pytest.raises(LimitExceeded, match=r"a proxy at .* limits the size of requests"):
            client.embed([bytes(2 << 20)])
        large = [picture(number) + bytes(300_000) for number in range(8)]  # 2.4 MB in one stream
        assert len(client.embed(large).vectors) == 8
        client.create_collection("photos")
        pause = threading.Event()

        def slowly() -> Iterator[ItemInput]:
            for number in range(64):
                if number == 40:
                    pause.wait(1.5)  # longer than nginx waits
                yield ItemInput(id=f"{number:02}", image=picture(number))

        assert [result.error for result in client.add("photos", slowly())] == [None] * 64
        assert [item.id for item in client.list_items("photos")] == [f"{number:02}" for number in range(64)]


@with_nginx
def test_nginx_as_the_guide_configures_it_lets_everything_through(connect: Connect, tmp_path: Path) -> None:
    [found] = [block for block in GUIDE.read_text(encoding="utf-8").split("```") if block.startswith("nginx\n")]
    port = free_port()
    with serving_really(FakeEncoder(), tmp_path / "data") as address:
        server = found.removeprefix("nginx\n").replace("127.0.0.1:50051", address)
        lines = [line for line in server.splitlines() if "ssl_certificate" not in line]
        server = "\n".join(lines).replace("listen 443 ssl http2", f"listen 127.0.0.1:{port} http2")
        with nginx(tmp_path / "nginx", server):
            wait_until(lambda: answers_at(port))
            client = connect(f"127.0.0.1:{port}", timeout_s=20)
            assert len(client.embed([picture(1) + bytes(3 << 20)]).vectors) == 1
            assert len(client.embed([picture(number) + bytes(300_000) for number in range(8)]).vectors) == 8


def test_an_internal_error_is_only_what_our_server_says_itself(connect: Connect) -> None:
    with serving() as server:

        def fail(_: Any) -> Any:
            raise InternalError("this is a bug in embedserve: ValueError")

        server.on("ListCollections", fail)
        with pytest.raises(InternalError, match="this is a bug in embedserve"):
            connect(server.target).list_collections()
