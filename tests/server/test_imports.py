"""Nothing is imported while a server answers, least of all while it answers with an error."""

from __future__ import annotations

import signal
import socket
import ssl
import urllib.request
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from embedserve import Client, Eq, ItemInput, Not
from embedserve.errors import EmbedserveError
from embedserve.types import Filter
from embedserve.v1 import embedding_service_pb2 as pb
from embedserve.v1.embedding_service_pb2_grpc import EmbeddingServiceStub
from tests.certificates import Authority
from tests.fakes import picture
from tests.running import ServerProcess
from tests.server.test_abuse import BOMBS

WRITE, READ = "w" * 32, "r" * 32


def attempts(calls: Iterable[Callable[[], object]]) -> int:
    """How many of the calls failed; each may."""
    failed = 0
    for call in calls:
        try:
            call()
        except (EmbedserveError, grpc.RpcError, OSError):
            failed += 1
    return failed


def images() -> list[bytes]:
    formats = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")
    whole = [picture(1, format=name) for name in formats]
    damaged = [data[:size] for data in whole for size in (40, len(data) - 40)]
    small_bombs = [BOMBS[name]() for name in BOMBS if name.endswith("header")]
    return [*whole, *damaged, *small_bombs, b"", b"\0" * 100, b"no image at all"]


def through_the_client(client: Client, folder: Path) -> list[Callable[[], object]]:
    deep: Filter = Eq("a", 1)
    for _ in range(20):
        deep = Not(deep)
    bad = folder / "bad"
    bad.write_bytes(b"no backup" * 1000)
    return [
        lambda: client.create_collection("a"),
        lambda: client.create_collection("a"),
        lambda: client.create_collection("b", keep="originals"),
        *[lambda data=data: client.embed([data]) for data in images()],
        lambda: client.embed([b"\0" * (17 << 20)]),
        lambda: client.add("a", [ItemInput(id=str(seed), image=picture(seed)) for seed in range(5)]),
        lambda: client.add("a", [ItemInput(id="", image=b"no image")]),
        lambda: client.search("a", image=picture(1)),
        lambda: client.search("none", image=picture(1)),
        lambda: client.search("a", vector=[1.0] * 3),
        lambda: client.search("a", image=picture(1), filter=deep),
        lambda: client.search("a", image=picture(1), k=100_000),
        lambda: list(client.list_items("a")),
        lambda: client.get_items("a", ["1", "none"]),
        lambda: client.delete_items("a", ["1", "none"]),
        lambda: client.check_collection("a"),
        lambda: client.backup_collection("a", folder / "backup"),
        lambda: client.restore_collection("c", folder / "backup"),
        lambda: client.restore_collection("d", bad),
        lambda: client.replace_encoder(),
        lambda: client.replace_encoder(fingerprint="0" * 64),
        lambda: client.set_alias("alias", "a"),
        lambda: client.set_alias("alias", "none"),
        lambda: client.delete_collection("none"),
        lambda: client.delete_collection("a"),
        lambda: client.list_collections(),
        lambda: client.server_info(),
    ]


def by_hand(channel: grpc.Channel, token: str) -> list[Callable[[], object]]:
    allowed = (("authorization", f"Bearer {token}"),)
    stub, reflect = EmbeddingServiceStub(channel), reflection_pb2_grpc.ServerReflectionStub(channel)
    asked: tuple[dict[str, str], ...] = (
        {"list_services": ""},
        {"file_by_filename": "none"},
        {"file_containing_symbol": "none"},
        {},
    )

    def call(path: str, data: bytes = b"") -> Callable[[], object]:
        method: Any = channel.unary_unary(path)
        return lambda: method(data, timeout=20, metadata=allowed)

    def reflected(question: dict[str, str]) -> Callable[[], object]:
        request = reflection_pb2.ServerReflectionRequest(**question)  # type: ignore[arg-type]
        info: Any = reflect
        return lambda: list(info.ServerReflectionInfo(iter([request]), timeout=20, metadata=allowed))

    return [
        call("/embedserve.v1.EmbeddingService/Embed", b"\xff\xff"),
        call("/embedserve.v1.EmbeddingService/None"),
        call("/none.None/None"),
        call("/grpc.health.v1.Health/Check"),
        call("/grpc.health.v1.Health/Check", b"\x0a\x04none"),
        lambda: stub.Embed(pb.EmbedRequest(images=[picture(1)] * 64), timeout=0.001, metadata=allowed),
        lambda: stub.Embed(pb.EmbedRequest(images=[picture(1)] * 65), timeout=20, metadata=allowed),
        lambda: stub.Embed(pb.EmbedRequest(images=[picture(1)]), timeout=20),
        lambda: list(
            stub.EmbedStream(iter([pb.EmbedStreamRequest(key="a", image=b"x")]), timeout=20, metadata=allowed)
        ),
        *map(reflected, asked),
    ]


def through_http(url: str, context: ssl.SSLContext) -> list[Callable[[], object]]:
    def get(page: str, **headers: str) -> Callable[[], object]:
        request = urllib.request.Request(f"{url}/{page}", headers=headers)

        def ask() -> None:
            with urllib.request.urlopen(request, timeout=20, context=context) as answer:
                answer.read()

        return ask

    def send(data: bytes, *, encrypted: bool = True) -> Callable[[], object]:
        def tell() -> None:
            host, _, port = url.rpartition("/")[2].partition(":")
            with socket.create_connection((host, int(port)), timeout=20) as plain, suppress(OSError):
                if not encrypted:
                    plain.sendall(data)
                    plain.recv(1000)
                    return
                with context.wrap_socket(plain, server_hostname=host) as wrapped:
                    wrapped.sendall(data)
                    wrapped.recv(1000)

        return tell

    return [
        *[get(page) for page in ("", "healthz", "readyz", "metrics", "none")],
        get("metrics", Authorization=f"Bearer {READ}"),
        get("metrics", Authorization=f"Bearer {READ}", Accept="application/openmetrics-text; version=1.0.0"),
        get("metrics", Authorization="Bearer none"),
        send(b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nabcd"),
        send(b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"),
        send(b"GET /%zz%ff HTTP/1.0\r\n\r\n"),
        send(b"\x00\x01\x02\r\n\r\n"),
        send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", encrypted=False),
    ]


def test_answers_errors_and_probes_import_nothing(encoder_file: Path, tmp_path: Path, authority: Authority) -> None:
    tokens, served = tmp_path / "tokens", tmp_path / "served.onnx"
    tokens.write_text(f"write {WRITE} writer\nread {READ} reader\n")
    tokens.chmod(0o600)
    served.write_bytes(encoder_file.read_bytes())
    files = authority.issue().server
    arguments = [str(served), "--data", str(tmp_path / "data"), "--tokens", str(tokens), "--log-level", "debug"]
    arguments += ["--tls-cert", str(files["tls_cert"]), "--tls-key", str(files["tls_key"]), "--log-format", "json"]
    trust = grpc.ssl_channel_credentials(Path(authority.file).read_bytes())
    context = ssl.create_default_context(cafile=authority.file)
    with ServerProcess(*arguments, program=("-X", "importtime", "-m", "embedserve")) as server:
        ready = len(server.said)
        for token in (WRITE, READ, "x" * 32):
            with Client(server.address, timeout_s=20, token=token, ca=Path(authority.file)) as client:
                failed = attempts(through_the_client(client, tmp_path))
            with grpc.secure_channel(server.address, trust) as channel:
                failed += attempts(by_hand(channel, token))
            assert failed >= 20
        attempts(through_http(server.http_url.rstrip('"}'), context))
        served.write_bytes(b"no encoder")
        server.signal(signal.SIGHUP)
        server.wait_for_line("encoder not replaced")
        assert server.terminate() == 0
    late = [line.rpartition("|")[2].strip() for line in server.said[ready:] if line.startswith("import time:")]
    assert late == []
