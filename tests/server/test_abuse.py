"""Hostile clients: whatever they do, others are answered, and no resources leak."""

from __future__ import annotations

import gc
import io
import socket
import struct
import threading
import weakref
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import pytest
from PIL import Image

from embedserve import Client
from embedserve.engine.engine import Engine
from embedserve.errors import Overloaded
from embedserve.server.app import Server
from embedserve.types import Limits
from embedserve.v1 import embedding_service_pb2 as pb
from embedserve.v1.embedding_service_pb2_grpc import EmbeddingServiceStub
from tests.fakes import FakeEncoder, picture
from tests.running import ServerProcess, serving, wait_until

MIB = 1 << 20
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


class InspectedServer:
    """A server in this process whose internal state is inspected."""

    def __init__(self, address: str, server: Server) -> None:
        self.address = address
        self.host, _, port = address.rpartition(":")
        self.port = int(port)
        self._server = server

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=20)

    def assert_well(self) -> None:
        """It answers, and holds nothing of other calls."""
        with Client(self.address, timeout_s=20) as client:
            assert len(client.embed([picture(1), picture(2)]).vectors) == 2
        wait_until(self._is_idle)

    def _is_idle(self) -> bool:
        engine = self._server._state.engine
        batcher, admission = engine.embedder.batcher, engine.admission
        held = (batcher.queue.waiting, batcher.queue.in_flight, admission.images, admission.bytes)
        return not any(held) and self._server._call_limits.calls == self._server.metrics.calls_in_flight == 0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[InspectedServer]:
    found: list[Server] = []
    with serving(FakeEncoder(), tmp_path / "data", on_listening=found.append) as address:
        inspected = InspectedServer(address, found[0])
        yield inspected
        inspected.assert_well()


# --- Bytes that are not calls ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        b"",
        PREFACE[:10],
        PREFACE,
        PREFACE + SETTINGS,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00" + bytes(200),
        PREFACE + SETTINGS + bytes([0xFF, 0xFF, 0xFF, 0, 0, 0, 0, 0, 1]) + bytes(5000),
        bytes(range(256)) * 100,
    ],
    ids=["nothing", "half-preface", "preface", "settings", "http1", "tls", "frame-too-large", "garbage"],
)
def test_connections_that_do_not_speak_grpc_delay_no_calls(server: InspectedServer, said: bytes) -> None:
    with ExitStack() as open_ones:
        for _ in range(20):
            stranger = open_ones.enter_context(closing(server.connect()))
            stranger.sendall(said)
        server.assert_well()


def test_a_thousand_idle_connections_delay_no_calls(server: InspectedServer) -> None:
    with ExitStack() as open_ones:
        for _ in range(1000):
            open_ones.enter_context(closing(server.connect()))
        server.assert_well()


def test_a_call_that_arrives_byte_by_byte_delays_no_others(server: InspectedServer) -> None:
    class Drip:
        """A request whose last byte never arrives."""

        def __init__(self) -> None:
            self.stopped = threading.Event()

        def relay(self) -> int:
            """A port that relays to the server, byte by byte."""
            listener = socket.create_server(("127.0.0.1", 0))

            def run() -> None:
                with closing(listener), closing(listener.accept()[0]) as near, closing(server.connect()) as far:
                    near.settimeout(20)
                    while not self.stopped.wait(0.002):
                        far.sendall(near.recv(1))

            threading.Thread(target=run, daemon=True).start()
            return int(listener.getsockname()[1])

    drip = Drip()
    with grpc.insecure_channel(f"127.0.0.1:{drip.relay()}") as channel:
        call = EmbeddingServiceStub(channel).Embed.future(pb.EmbedRequest(images=[picture(1)]), timeout=20)
        server.assert_well()
        drip.stopped.set()
        call.cancel()


# --- Calls that are too large, too many, or never read ----------------------------------------------------------------


def test_a_message_of_100_mb_is_refused_and_holds_no_memory(encoder_file: Path) -> None:
    request = pb.EmbedRequest(images=[bytes(100 * MIB)]).SerializeToString()
    with ServerProcess(str(encoder_file)) as process, Client(process.address) as client:
        client.embed([picture(1)])
        before = resident_mib(process.pid)
        with grpc.insecure_channel(process.address, [("grpc.max_send_message_length", -1)]) as channel:
            embed: Any = channel.unary_unary("/embedserve.v1.EmbeddingService/Embed")
            stream: Any = channel.stream_stream("/embedserve.v1.EmbeddingService/EmbedStream")
            for _ in range(3):
                with pytest.raises(grpc.RpcError) as refused:
                    embed(request, timeout=60)
                assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                with pytest.raises(grpc.RpcError) as refused:
                    list(stream(iter([request]), timeout=60))
                assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert highest_mib(process.pid) < before + 64
        assert len(client.embed([picture(1)]).vectors) == 1


def test_metadata_that_is_too_large_is_refused(server: InspectedServer) -> None:
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as refused:
        EmbeddingServiceStub(channel).GetServerInfo(
            pb.GetServerInfoRequest(), timeout=20, metadata=(("x", "y" * 100_000),)
        )
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_client_that_pings_without_end_is_disconnected_and_no_other(server: InspectedServer) -> None:
    ping = bytes([0, 0, 8, 6, 0, 0, 0, 0, 0]) + b"12345678"
    with closing(server.connect()) as pinging, Client(server.address, timeout_s=20) as client:
        client.embed([picture(1)])
        pinging.sendall(PREFACE + SETTINGS)
        try:
            while True:  # until the server disconnects
                pinging.sendall(ping)
                if not pinging.recv(65536):
                    break
        except ConnectionError:
            pass
        assert len(client.embed([picture(1)]).vectors) == 1


def test_streams_whose_clients_never_read_take_no_room_from_others(server: InspectedServer) -> None:
    limits = Limits()
    with ExitStack() as running:
        streams = []
        # Enough to take all the room of streams, if their responses kept it.
        for _ in range(limits.max_queue_images // 2 // 32 + 1):
            streams.append(running.enter_context(closing(NeverReads(server))))
        for stream in streams:
            stream.fill()
        with Client(server.address, timeout_s=30) as client:
            pictures = [picture(seed) for seed in range(10)]
            assert sum(1 for _ in client.embed_each(pictures * 20)) == 200  # a stream
            assert len(client.embed(pictures).vectors) == 10


class NeverReads:
    """HTTP/2 by hand: a stream of images whose responses have a flow-control window of zero."""

    def __init__(self, server: InspectedServer) -> None:
        self._server = server
        self._socket = server.connect()
        no_window = struct.pack(">HI", 4, 0)
        self._socket.sendall(PREFACE + frame(4, 0, 0, no_window))
        fields = [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", b"/embedserve.v1.EmbeddingService/EmbedStream"),
            (b":authority", b"test"),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
        ]
        block = b"".join(b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in fields)
        self._socket.sendall(frame(1, 4, 1, block))

    def fill(self) -> None:
        """Send 60 images, which is more than the window of a stream."""
        for seed in range(60):
            message = pb.EmbedStreamRequest(key=str(seed), image=picture(seed % 5)).SerializeToString()
            self._socket.sendall(frame(0, 0, 1, b"\0" + struct.pack(">I", len(message)) + message))

    def close(self) -> None:
        self._socket.close()


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def test_memory_of_a_refused_call_is_freed_at_once(server: InspectedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the garbage collector, which counts objects and not bytes."""

    class Held:
        pass

    held: list[weakref.ref[Held]] = []

    async def embed(*_: object, **__: object) -> None:
        large = Held()
        held.append(weakref.ref(large))
        raise Overloaded("busy", retry_after_ms=50)

    gc.collect()
    gc.disable()
    try:
        with grpc.insecure_channel(server.address) as channel, monkeypatch.context() as patched:
            patched.setattr(Engine, "embed", embed)
            with pytest.raises(grpc.RpcError):
                EmbeddingServiceStub(channel).Embed(pb.EmbedRequest(images=[picture(1)]), timeout=20)
        server.assert_well()
        assert [reference() for reference in held] == [None]
    finally:
        gc.enable()


# --- Images that are larger than they look ---------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


@cache
def zeros(size: int) -> bytes:
    """Compressed by a factor of a thousand."""
    packer = zlib.compressobj(9)
    parts = [packer.compress(bytes(MIB)) for _ in range(size // MIB)]
    return b"".join(parts) + packer.flush()


def jpeg_of_size(width: int, height: int) -> bytes:
    data = bytearray(picture(1, format="JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def gif_of_size(width: int, height: int) -> bytes:
    data = bytearray(picture(1, format="GIF"))
    data[6:10] = struct.pack("<HH", width, height)
    at = data.index(b"\x2c", 13 + 3 * 2 ** ((data[10] & 7) + 1))
    data[at + 5 : at + 9] = struct.pack("<HH", width, height)
    return bytes(data)


def tiff_of_size(width: int, height: int) -> bytes:
    data = bytearray(picture(1, format="TIFF"))
    at = struct.unpack_from("<I", data, 4)[0]
    for number in range(struct.unpack_from("<H", data, at)[0]):
        entry = at + 2 + 12 * number
        if (tag := struct.unpack_from("<H", data, entry)[0]) in (256, 257):
            struct.pack_into("<HII", data, entry + 2, 4, 1, width if tag == 256 else height)
    return bytes(data)


def webp_of_size(width: int, height: int) -> bytes:
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"VP8X" + struct.pack("<I", 10) + bytes([2, 0, 0, 0]) + canvas + picture(1, format="WEBP")[12:]
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def progressive_with_scans() -> bytes:
    """Ten thousand scans of a few bytes, each hundred of which take seconds."""
    out = io.BytesIO()
    Image.new("L", (7000, 7000), 128).save(out, "JPEG", progressive=True)
    data = out.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * 10_000 + data[-2:]


BOMBS = {
    "png header": lambda: png(60_000, 60_000, chunk(b"IDAT", zlib.compress(b"\0"))),
    "jpeg header": lambda: jpeg_of_size(60_000, 60_000),
    "gif header": lambda: gif_of_size(60_000, 60_000),
    "tiff header": lambda: tiff_of_size(60_000, 60_000),
    "webp header": lambda: webp_of_size(16_000, 16_000),
    "bmp header": lambda: (
        picture(1, format="BMP")[:18] + struct.pack("<ii", 60_000, 60_000) + picture(1, format="BMP")[26:]
    ),
    "png pixels beyond its size": lambda: png(100, 100, chunk(b"IDAT", zeros(512 * MIB))),
    "png text": lambda: png(10, 10, chunk(b"zTXt", b"a\0\0" + zeros(512 * MIB))),
    "png many texts": lambda: png(10, 10, *[chunk(b"zTXt", b"a\0\0" + zeros(4 * MIB))] * 200),
    "png profile": lambda: png(10, 10, chunk(b"iCCP", b"a\0\0" + zeros(512 * MIB))),
    "png many chunks": lambda: png(100, 100, *[chunk(b"IDAT", b"")] * 300_000),
    "jpeg scans": lambda: progressive_with_scans(),
    "png near the limit, of zeros": lambda: png(7000, 7000, chunk(b"IDAT", zeros(150 * MIB))),
}


@pytest.fixture(scope="module")
def bombed() -> Iterator[tuple[ServerProcess, Client]]:
    """A separate server process, whose memory can be measured."""
    pytest.importorskip("onnx")
    import tempfile

    from tests.encoders import write_encoder_file

    with (
        tempfile.TemporaryDirectory() as folder,
        ServerProcess(str(write_encoder_file(Path(folder) / "encoder.onnx"))) as process,
        Client(process.address, timeout_s=60) as client,
    ):
        client.embed([picture(seed) for seed in range(64)])
        yield process, client


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_one_error_and_takes_bounded_memory(bombed: tuple[ServerProcess, Client], name: str) -> None:
    process, client = bombed
    bomb = BOMBS[name]()
    before = highest_mib(process.pid)
    good = [picture(seed) for seed in range(3)]
    outcome = client.embed([*good, bomb], errors="keep")
    assert set(outcome.errors) <= {3}
    for error in outcome.errors.values():
        assert error.code.startswith("IMAGE_")
    # Pixels of an image at the limit (150 MB), once more in Pillow, and overhead.
    assert highest_mib(process.pid) < max(before, 150) + 450
    assert len(client.embed(good).vectors) == 3
    wait_until(lambda: client.server_info().images_in_flight == 0)


def resident_mib(pid: int) -> float:
    return _status_mib(pid, "VmRSS")


def highest_mib(pid: int) -> float:
    return _status_mib(pid, "VmHWM")


def _status_mib(pid: int, name: str) -> float:
    path = Path(f"/proc/{pid}/status")
    if not path.exists():
        pytest.skip("the memory of a process is not known on this system")
    [line] = [line for line in path.read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) / 1024
