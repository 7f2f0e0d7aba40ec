"""Clients with little overhead for gRPC servers and HTTP servers. Both send a list of encoded images.

The HTTP client is our own, on the streams of asyncio, because libraries take more CPU time per call than some of the
servers under test.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import grpc

from embedserve.loadtest import CallFailed
from embedserve.v1 import common_pb2
from embedserve.v1 import embedding_service_pb2 as pb
from embedserve.v1 import embedding_service_pb2_grpc as pb_grpc

PACKED = common_pb2.VECTOR_ENCODING_PACKED_F32
BOUNDARY = b"embedserve-benchmark"


class _Unanswered(CallFailed):
    """A call without an answer, counted by the name of its class."""

    def __init__(self, message: str | None = "") -> None:
        super().__init__(type(self).__name__, message or "")


class Refused(_Unanswered):
    """The server is full or stopping, and says so."""


class TooLate(_Unanswered):
    """There was no answer in time."""


class Failed(_Unanswered):
    """The server could not embed an image, or the connection broke."""


class Client(Protocol):
    """A client of a server that embeds images."""

    async def call(self, images: list[bytes], timeout_s: float = 60.0) -> None:
        """One call, answered in full.

        Raises:
            Refused, TooLate, Failed: as they say.
        """

    async def close(self) -> None:
        """Close the connections."""


# --- gRPC -----------------------------------------------------------------------------------------------------------

_GRPC_REFUSALS = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
_GRPC_LATE = (grpc.StatusCode.DEADLINE_EXCEEDED,)


class GrpcClient:
    """embedserve.v1 over one channel."""

    def __init__(self, address: str) -> None:
        unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self._channel = grpc.aio.insecure_channel(address, options=unlimited)
        self._stub = pb_grpc.EmbeddingServiceStub(self._channel)

    async def call(self, images: list[bytes], timeout_s: float = 60.0) -> None:
        """One call; see ``Client``."""
        try:
            response = await self._stub.Embed(pb.EmbedRequest(images=images, vector_encoding=PACKED), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise _of_code(error) from None
        if len(response.results) != len(images):
            raise Failed(f"{len(response.results)} results for {len(images)} images")
        for result in response.results:
            _unpack(result)

    async def stream(self, messages: AsyncIterator[list[bytes]], answered: Callable[[int], None]) -> None:
        """One EmbedStream, written as fast as the server reads it; ``answered`` receives the images of each answer."""

        async def requests() -> AsyncIterator[pb.EmbedStreamRequest]:
            number = 0
            async for images in messages:
                one = {"image": images[0]} if len(images) == 1 else {"images": images}
                yield pb.EmbedStreamRequest(key=str(number), vector_encoding=PACKED, **one)
                number += 1

        async for response in self._stub.EmbedStream(requests()):
            results = response.results or [response.result]
            for result in results:
                _unpack(result)
            answered(len(results))

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()


class InferenceClient:
    """The Open Inference Protocol (KServe V2) over one channel, as MLServer and Triton speak it.

    The request is encoded by hand; the response is not parsed.
    """

    def __init__(self, address: str) -> None:
        unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self._channel = grpc.aio.insecure_channel(address, options=unlimited)
        self._infer: Any = self._channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")

    async def call(self, images: list[bytes], timeout_s: float = 60.0) -> None:
        """One call; see ``Client``."""
        try:
            response = await self._infer(inference_request(images), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise _of_code(error) from None
        if len(response) < 4 * len(images):
            raise Failed(f"{len(response)} bytes for {len(images)} images")

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()


def inference_request(images: list[bytes]) -> bytes:
    """A ``ModelInferRequest`` for the model "embed" with one tensor of BYTES [N], as raw contents."""
    shape = _varint(len(images))
    tensor = _field(1, b"images") + _field(2, b"BYTES") + _field(3, shape)
    raw = b"".join(part for image in images for part in (struct.pack("<I", len(image)), image))
    return _field(1, b"embed") + _field(5, tensor) + _field(7, raw)


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field of a protobuf message."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _of_code(error: grpc.aio.AioRpcError) -> Exception:
    if error.code() in _GRPC_LATE:
        return TooLate(error.details())
    if error.code() in _GRPC_REFUSALS and "Socket closed" not in (error.details() or ""):
        return Refused(error.details())
    return Failed(f"{error.code().name}: {error.details()}")


def _unpack(result: pb.EmbedResult) -> None:
    if result.HasField("error"):
        raise Failed(result.error.message)
    if not result.vector.packed_f32:
        raise Failed("an empty vector")


# --- HTTP -----------------------------------------------------------------------------------------------------------

_HTTP_REFUSALS = (429, 503)
_HTTP_LATE = (408, 504)
_IDLE_S = 1.0
"""A connection that was idle for longer is not reused: servers close them, uvicorn after 5 s."""


class HttpClient:
    """POST over kept-alive connections, one for each concurrent call."""

    def __init__(self, address: str, path: str, encode: Callable[[list[bytes]], tuple[bytes, list[bytes]]]) -> None:
        self._host, port = address.rsplit(":", 1)
        self._port = int(port)
        self._path, self._encode = path, encode
        self._idle: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def call(self, images: list[bytes], timeout_s: float = 60.0) -> None:
        """One call; see ``Client``."""
        try:
            async with asyncio.timeout(timeout_s):
                status, body = await self._post(*self._encode(images))
        except TimeoutError:
            raise TooLate(f"no answer within {timeout_s} s") from None
        except (OSError, asyncio.IncompleteReadError) as error:
            raise Failed(f"the connection broke: {error!r}") from None
        if status in _HTTP_REFUSALS:
            raise Refused(str(status))
        if status in _HTTP_LATE:
            raise TooLate(str(status))
        if status != 200:
            raise Failed(f"{status}: {body[:200].decode(errors='replace')}")
        # Vectors are consecutive float32, or, from BentoML with batches, a JSON list of lists.
        if len(body) < 4 * len(images):
            raise Failed(f"{len(body)} bytes for {len(images)} images")

    async def _post(self, media_type: bytes, parts: list[bytes]) -> tuple[int, bytes]:
        reader, writer = await self._connection()
        try:
            head = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n" % (
                self._path.encode(),
                media_type,
                sum(map(len, parts)),
            )
            writer.write(b"".join([head, *parts]))
            await writer.drain()
            status, keep, body = await read_response(reader)
        except BaseException:  # also of a cancelled call: the server sees that its client has gone
            writer.transport.abort()
            raise
        if keep:
            self._idle.append((time.perf_counter(), reader, writer))
        else:
            writer.close()
        return status, body

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            since, reader, writer = self._idle.pop()
            if time.perf_counter() - since < _IDLE_S:
                return reader, writer
            writer.close()
        return await asyncio.open_connection(self._host, self._port)

    async def close(self) -> None:
        """Close the idle connections."""
        for _, _, writer in self._idle:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        self._idle.clear()


async def read_response(reader: asyncio.StreamReader) -> tuple[int, bool, bytes]:
    """Status, whether the connection stays open, and body of an HTTP/1.1 response.

    Raises:
        asyncio.IncompleteReadError: the connection was closed early.
    """
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = int(head[9:12])
    keep = b"\r\nconnection: close" not in head
    if b"\r\ntransfer-encoding: chunked" in head:
        chunks = []
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            chunks.append(await reader.readexactly(size))
            await reader.readexactly(2)
        await reader.readuntil(b"\r\n")
        return status, keep, b"".join(chunks)
    begin = head.find(b"\r\ncontent-length:")
    if begin < 0:
        return status, False, await reader.read()
    length = int(head[begin + 17 : head.index(b"\r\n", begin + 2)])
    return status, keep, await reader.readexactly(length)


def msgpack_body(images: list[bytes]) -> tuple[bytes, list[bytes]]:
    """Media type and body of a list of images in msgpack: an array of binaries."""
    parts = [struct.pack(">BH", 0xDC, len(images))]
    for image in images:
        parts += [struct.pack(">BI", 0xC6, len(image)), image]
    return b"application/msgpack", parts


def multipart_body(images: list[bytes]) -> tuple[bytes, list[bytes]]:
    """Media type and body of a form whose field ``images`` holds a file for each image."""
    parts = []
    for image in images:
        parts += [
            b'--%s\r\nContent-Disposition: form-data; name="images"; filename="i.jpg"\r\n'
            b"Content-Type: image/jpeg\r\n\r\n" % BOUNDARY,
            image,
            b"\r\n",
        ]
    parts.append(b"--%s--\r\n" % BOUNDARY)
    return b"multipart/form-data; boundary=" + BOUNDARY, parts
