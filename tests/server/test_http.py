"""The HTTP port through the life of a server, and against misuse."""

from __future__ import annotations

import asyncio
import errno
import http.client
import json
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from embedserve import Client
from embedserve.server import http_door
from embedserve.server.app import Server
from embedserve.v1 import embedding_service_pb2 as pb
from embedserve.v1.embedding_service_pb2_grpc import EmbeddingServiceStub
from tests.certificates import Authority
from tests.fakes import FakeEncoder, picture
from tests.running import ServerProcess, serving, wait_until
from tests.server.lifecycle.test_life import serve_fails


def get(url: str, **headers: str) -> tuple[int, str, str]:
    """Status, content type and text of a page."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as answer:
            return answer.status, answer.headers["content-type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["content-type"], error.read().decode()


def test_a_server_is_ready_between_its_warm_up_and_its_draining() -> None:
    asked: dict[str, tuple[int, str]] = {}
    urls: list[str] = []
    entered, released = threading.Event(), threading.Event()
    armed = threading.Event()

    def hold(images: np.ndarray) -> None:
        if not asked:  # during the warm-up, when the event loop is free to answer
            ask("starting")
        if armed.is_set():
            entered.set()
            assert released.wait(20)

    def ask(name: str) -> None:
        status, _, text = get(f"{urls[0]}/readyz")
        asked[name] = (status, json.loads(text)["status"])
        assert get(f"{urls[0]}/healthz")[0] == 200

    def listening(server: Server) -> None:
        assert server.http_url is not None
        urls.append(server.http_url)

    with ExitStack() as running:
        address = running.enter_context(serving(FakeEncoder(on_batch=hold), http=True, on_listening=listening))
        ask("ready")
        with grpc.insecure_channel(address) as channel:
            armed.set()
            accepted = EmbeddingServiceStub(channel).Embed.future(pb.EmbedRequest(images=[picture(1)]), timeout=20)
            assert entered.wait(20)
            stopping = threading.Thread(target=running.close)
            stopping.start()
            for _ in range(2000):
                ask("draining")
                if asked["draining"][0] != 200:
                    break
            released.set()
            assert accepted.result().results[0].HasField("vector")
        stopping.join(20)
    assert asked == {"starting": (503, "starting"), "ready": (200, "ready"), "draining": (503, "draining")}
    with pytest.raises(OSError, match="refused"):
        get(f"{urls[0]}/healthz")


@pytest.fixture
def url() -> Iterator[str]:
    servers: list[Server] = []
    with serving(FakeEncoder(), http=True, on_listening=servers.append):
        assert servers[0].http_url is not None
        yield servers[0].http_url


def test_the_first_page_names_the_others(url: str) -> None:
    status, kind, text = get(f"{url}/")
    assert (status, kind) == (200, "text/plain; charset=utf-8")
    assert all(page in text for page in ("/metrics", "/healthz", "/readyz"))


def test_metrics_are_what_prometheus_reads_in_either_format(url: str) -> None:
    status, kind, text = get(f"{url}/metrics")
    assert status == 200
    assert kind.startswith("text/plain; version=")
    names = {family.name for family in text_string_to_metric_families(text)}
    assert {"embedserve_requests", "embedserve_queue_images", "process_resident_memory_bytes"} <= names
    assert get(f"{url}/metrics", Accept="application/openmetrics-text; version=1.0.0")[2].endswith("# EOF\n")


def test_other_pages_and_methods_do_not_exist(url: str) -> None:
    assert get(f"{url}/metrics/secret")[0] == 404
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{url}/healthz", data=b"x", timeout=20)
    with refused.value as answer:
        assert answer.code == 405


def test_bytes_that_are_not_http_are_refused_and_the_server_lives_on(url: str) -> None:
    host, port = url.removeprefix("http://").rsplit(":", 1)
    for nonsense in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n"):
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(nonsense + b"\r\n\r\n")
            assert b" 400 " in connection.recv(1000) or connection.recv(1000) == b""
    assert get(f"{url}/healthz")[0] == 200


def is_closed(connection: socket.socket, sent: bytes = b"") -> bool:
    """Whether the other side has closed the connection, found out by sending and receiving."""
    try:
        connection.sendall(sent)
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_a_client_that_sends_slowly_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_door, "REQUEST_TIMEOUT_S", 0.3)
    servers: list[Server] = []
    with serving(FakeEncoder(), http=True, on_listening=servers.append):
        address = ("127.0.0.1", int((servers[0].http_url or "").rsplit(":", 1)[1]))
        slow = socket.create_connection(address, timeout=20)
        slow.sendall(b"GET /healthz HTTP/1.1\r\n")
        kept = http.client.HTTPConnection(*address, timeout=20)
        kept.request("GET", "/healthz")
        assert kept.getresponse().read()
        slow.settimeout(0.05)
        wait_until(lambda: is_closed(slow, b"X: y\r\n"))
        slow.close()
        kept.close()


def address_of(url: str) -> tuple[str, int]:
    return ("127.0.0.1", int(url.rsplit(":", 1)[1]))


def asked(connection: socket.socket) -> bytes:
    """A whole answer, with its body."""
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = b""
    while not answer.endswith(b"}"):
        answer += connection.recv(1000)
    return answer


def test_when_all_connections_are_taken_the_one_that_was_idle_longest_gives_way(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_door, "MAX_CONNECTIONS", 3)
    with ExitStack() as open_ones:
        kept = [open_ones.enter_context(socket.create_connection(address_of(url), timeout=20)) for _ in range(3)]
        for connection in (kept[1], kept[2], kept[0]):
            assert b" 200 " in asked(connection)
        assert get(f"{url}/healthz")[0] == 200
        assert is_closed(kept[1])
        for connection in (kept[0], kept[2]):
            assert b" 200 " in asked(connection)


def test_every_probe_is_answered_beside_hundreds_of_idle_and_half_sent_requests(url: str) -> None:
    with ExitStack() as open_ones:
        for number in range(200):
            idle = open_ones.enter_context(socket.create_connection(address_of(url), timeout=20))
            idle.sendall((b"", b"GET /healthz HTTP/1.1\r\nX: ", b"GET /healthz HTTP/1.1\r\n\r\n")[number % 3])
            if number % 20 == 0:
                assert [get(f"{url}/{page}")[0] for page in ("healthz", "readyz", "metrics")] == [200] * 3


def test_a_handshake_that_never_ends_gives_way_to_a_probe(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_door, "MAX_CONNECTIONS", 4)
    servers: list[Server] = []
    with serving(FakeEncoder(), http=True, on_listening=servers.append, **authority.issue().server):
        url = servers[0].http_url or ""
        context = ssl.create_default_context(cafile=authority.file)
        with ExitStack() as open_ones:
            silent = [open_ones.enter_context(socket.create_connection(address_of(url), timeout=20)) for _ in range(9)]
            with urllib.request.urlopen(f"{url}/readyz", timeout=20, context=context) as answer:
                assert answer.status == 200
            wait_until(lambda: sum(map(is_closed_within_a_moment, silent)) >= 6)


def is_closed_within_a_moment(connection: socket.socket) -> bool:
    connection.settimeout(0.01)
    return is_closed(connection)


def test_a_client_that_reads_no_response_is_disconnected(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_door, "REQUEST_TIMEOUT_S", 0.3)
    with socket.create_connection(address_of(url), timeout=20) as unread:
        unread.settimeout(0.05)
        request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"

        def has_lost_it() -> bool:
            try:
                unread.sendall(request * 100)
            except TimeoutError:
                return False
            except OSError:
                return True
            return False

        wait_until(has_lost_it)


def test_without_descriptors_the_http_port_logs_one_line_a_second_and_answers_again_later(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failing = [OSError(errno.EMFILE, "Too many open files")] * 10
    tried: list[int] = []
    accept = asyncio.selector_events.BaseSelectorEventLoop.sock_accept

    async def without_descriptors(loop: Any, listening: socket.socket) -> Any:
        tried.append(1)
        if failing:
            raise failing.pop()
        return await accept(loop, listening)

    monkeypatch.setattr(asyncio.selector_events.BaseSelectorEventLoop, "sock_accept", without_descriptors)
    assert get(f"{url}/healthz")[0] == 200  # ends the wait of the call that began before
    assert get(f"{url}/healthz")[0] == 200
    assert len(tried) >= 10
    lines = [record for record in caplog.records if "cannot take connections" in record.message]
    assert len(lines) == 1


def test_with_tokens_the_metrics_need_one_and_the_probes_do_not(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"read {'r' * 32} prometheus\n")
    tokens.chmod(0o600)
    servers: list[Server] = []
    with serving(FakeEncoder(), http=True, tokens=tokens, on_listening=servers.append):
        url = servers[0].http_url
        assert get(f"{url}/metrics")[0] == 401
        assert get(f"{url}/metrics", Authorization=f"Bearer {'x' * 32}")[0] == 401
        assert get(f"{url}/metrics", Authorization=f"Bearer {'r' * 32}")[0] == 200
        assert get(f"{url}/healthz")[0] == get(f"{url}/readyz")[0] == 200


def test_with_tls_the_http_port_has_it_too(authority: Authority) -> None:
    servers: list[Server] = []
    with serving(FakeEncoder(), http=True, on_listening=servers.append, **authority.issue().server):
        url = servers[0].http_url or ""
        assert url.startswith("https://")
        context = ssl.create_default_context(cafile=authority.file)
        with urllib.request.urlopen(f"{url}/readyz", timeout=20, context=context) as answer:
            assert answer.status == 200
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            urllib.request.urlopen(f"{url}/readyz", timeout=20)


def test_a_taken_http_port_is_one_sentence_and_a_hint(encoder_file: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = serve_fails(str(encoder_file), "--port", "0", "--http-port", str(port))
    assert f"cannot listen on 127.0.0.1:{port} for HTTP" in said
    assert f"--http-port {port + 1}" in said
    assert "--no-http" in said


def test_the_command_prints_its_addresses_and_stops_at_once(encoder_file: Path) -> None:
    with ServerProcess(str(encoder_file)) as server, Client(server.address) as client:
        assert client.embed([picture(1)]).vectors.shape == (1, 24)
        wait_until(lambda: '{code="OK",method="Embed"} 1.0' in get(f"{server.http_url}/metrics")[2])
        assert server.terminate() == 0
    with ServerProcess(str(encoder_file), "--no-http") as server:
        assert server.http_url == ""
        assert server.terminate() == 0
