"""Mixed traffic for a server, well-behaved and hostile, that knows the right answer to each of its calls."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import numpy as np
from numpy.typing import NDArray

from embedserve import wire
from embedserve.client import failures
from embedserve.client.access import Access
from embedserve.errors import Overloaded, Unavailable
from embedserve.v1 import collection_service_pb2 as collection_pb
from embedserve.v1 import embedding_service_pb2 as embedding_pb
from embedserve.v1 import search_service_pb2 as search_pb
from measuring.ledger import Ledger

EMBEDDING, SEARCH = "/embedserve.v1.EmbeddingService/", "/embedserve.v1.SearchService/"
COLLECTIONS = "/embedserve.v1.CollectionService/"
TIMEOUT_S = 30.0
SAME_COSINE = 0.9999
IDS = 300
"""Items in a collection at most."""

_RESPONSES: dict[str, Any] = {
    EMBEDDING + "Embed": embedding_pb.EmbedResponse,
    EMBEDDING + "EmbedStream": embedding_pb.EmbedStreamResponse,
    SEARCH + "Search": search_pb.SearchResponse,
    COLLECTIONS + "Upsert": collection_pb.UpsertResponse,
    COLLECTIONS + "UpsertStream": collection_pb.UpsertStreamResponse,
    COLLECTIONS + "DeleteItems": collection_pb.DeleteItemsResponse,
    COLLECTIONS + "ListItems": collection_pb.ListItemsResponse,
}


@dataclass
class Material:
    """The images that are sent, and the right answers."""

    pictures: list[bytes]
    vectors: dict[str, NDArray[np.float32]]
    """Fingerprint of each encoder → the vectors of all pictures, float32 [N, D]."""
    collections: dict[str, str] = field(default_factory=dict)
    """Fingerprint → the collection that is bound to it."""
    serving: str = ""
    """Fingerprint of the encoder that the server runs."""
    replaced: int = 0
    """Incremented before and after each replacement: a call during which it changed may meet either encoder."""
    bad: bytes = b""


@dataclass
class Findings:
    """The results of the calls."""

    ledger: Ledger = field(default_factory=Ledger)
    good: Counter[str] = field(default_factory=Counter)
    """Calls by kind that were answered correctly."""
    shed: Counter[str] = field(default_factory=Counter)
    """Calls that the server refused with a retry time."""
    images: int = 0
    """Images whose vectors were right."""
    wrong: list[str] = field(default_factory=list)
    """The first hundred violations."""

    def fail(self, what: str) -> None:
        """Record a violation."""
        if len(self.wrong) < 100:
            self.wrong.append(what)


class Traffic:
    """Clients of one server, each with its own kind of call, until they are stopped."""

    def __init__(self, server: Access, material: Material, seed: int) -> None:
        self.findings = Findings()
        self._server, self._material = server, material
        self._random = random.Random(seed)
        self._channels: list[grpc.aio.Channel] = []
        self._next = itertools.count()

    async def run(self, stopping: asyncio.Event) -> None:
        """All kinds of clients at once; returns when they have their last answers."""
        kinds: list[tuple[Callable[[grpc.aio.Channel], Awaitable[None]], int]] = [
            (self._embed_one, 3),
            (self._embed_many, 2),
            (self._embed_stream, 2),
            (self._upsert, 1),
            (self._upsert_stream, 1),
            (self._search, 2),
            (self._delete_and_list, 1),
            (self._bad_image, 1),
            (self._cancelled, 2),
            (self._hurried, 1),
            (self._dropped, 1),
            (self._raw, 1),
        ]
        self._channels = [self._server.open(grpc.aio, own_connection=True) for _ in range(3)]

        async def caller(kind: Callable[[grpc.aio.Channel], Awaitable[None]]) -> None:
            while not stopping.is_set():
                try:
                    await kind(self._channels[next(self._next) % len(self._channels)])
                except Exception as error:  # a bug of this program is a finding too, and does not end it
                    self.findings.fail(f"{kind.__name__}: {type(error).__name__}: {error}")
                await asyncio.sleep(self._random.uniform(0, 0.05))

        async with asyncio.TaskGroup() as group:
            for kind, count in kinds:
                for _ in range(count):
                    group.create_task(caller(kind))
        await asyncio.gather(*(channel.close() for channel in self._channels))

    # --- Calls --------------------------------------------------------------------------------------------------------

    async def call(
        self, channel: grpc.aio.Channel, method: str, request: Any, *, allowed: tuple[str, ...] = ()
    ) -> Any | None:
        """One call that should be answered; None if it was not. ``allowed`` are codes of permitted errors."""
        unary: Any = channel.unary_unary(method, response_deserializer=_RESPONSES[method].FromString)
        try:
            response = await unary(request.SerializeToString(), timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            self._note_failure(method, error, allowed)
            return None
        self.findings.ledger.known[_name(method), "OK"] += 1
        return response

    def _note_failure(self, method: str, error: grpc.aio.AioRpcError, allowed: tuple[str, ...]) -> None:
        failure = failures.failure_of(error, self._server.target, TIMEOUT_S)
        if error.code() is grpc.StatusCode.INTERNAL and isinstance(failure.error, Unavailable):
            self.findings.ledger.lost[_name(method)] += 1
            return
        self.findings.ledger.known[_name(method), error.code().name] += 1
        if failure.retry_after_s is not None and isinstance(failure.error, (Overloaded, Unavailable)):
            self.findings.shed[_name(method)] += 1
        elif failure.error.code not in allowed:
            self.findings.fail(f"{_name(method)}: {failure.error.code}: {failure.error.message}")

    async def _stream(
        self, channel: grpc.aio.Channel, method: str, requests: list[Any], *, allowed: tuple[str, ...] = ()
    ) -> list[Any] | None:
        """All answers of a stream that should be answered in full; None if it was not."""

        async def sent() -> AsyncIterator[bytes]:
            for request in requests:
                yield request.SerializeToString()

        stream: Any = channel.stream_stream(method, response_deserializer=_RESPONSES[method].FromString)
        try:
            responses = [response async for response in stream(sent(), timeout=TIMEOUT_S)]
        except grpc.aio.AioRpcError as error:
            self._note_failure(method, error, allowed)
            return None
        self.findings.ledger.known[_name(method), "OK"] += 1
        return responses

    def _pick(self, count: int) -> list[int]:
        return [self._random.randrange(len(self._material.pictures)) for _ in range(count)]

    def _embed_request(self, picked: list[int]) -> embedding_pb.EmbedRequest:
        """−1 stands for the bad image."""
        images = [self._material.bad if number < 0 else self._material.pictures[number] for number in picked]
        return embedding_pb.EmbedRequest(images=images, vector_encoding=wire.PACKED_F32)

    def _check(self, kind: str, picked: list[int], results: Any, fingerprint: str) -> None:
        """Check that each result is the vector of its image by the encoder of the response, or the expected error."""
        expected = self._material.vectors.get(fingerprint)
        if expected is None or len(results) != len(picked):
            self.findings.fail(f"{kind}: {len(results)} results of {fingerprint[:12]!r} for {len(picked)} images")
            return
        for number, result in zip(picked, results, strict=True):
            if number < 0:
                code = wire.error_from_status(result.error).code if result.HasField("error") else "none"
                if code not in ("IMAGE_UNDECODABLE", "IMAGE_FORMAT"):
                    self.findings.fail(f"{kind}: the bad image has error {code}")
            elif not result.HasField("vector"):
                self.findings.fail(f"{kind}: a good image failed: {result.error.message}")
            else:
                cosine = float(np.frombuffer(result.vector.packed_f32, "<f4") @ expected[number])
                if cosine < SAME_COSINE:
                    self.findings.fail(f"{kind}: not the vector of {fingerprint[:12]}: cosine {cosine:.5f}")
                self.findings.images += 1

    # --- Well-behaved clients -----------------------------------------------------------------------------------------

    async def _embed_one(self, channel: grpc.aio.Channel) -> None:
        await self._embed(channel, "embed one", self._pick(1))

    async def _embed_many(self, channel: grpc.aio.Channel) -> None:
        picked = self._pick(16)
        if self._random.random() < 0.2:
            picked[self._random.randrange(16)] = -1
        await self._embed(channel, "embed 16", picked)

    async def _bad_image(self, channel: grpc.aio.Channel) -> None:
        await self._embed(channel, "bad image", [-1])

    async def _embed(self, channel: grpc.aio.Channel, kind: str, picked: list[int]) -> None:
        response = await self.call(channel, EMBEDDING + "Embed", self._embed_request(picked))
        if response is not None:
            self._check(kind, picked, response.results, response.encoder.fingerprint)
            self.findings.good[kind] += 1

    async def _embed_stream(self, channel: grpc.aio.Channel) -> None:
        groups = [self._pick(self._random.choice([1, 4])) for _ in range(self._random.randint(5, 20))]
        if self._random.random() < 0.3:
            self._random.choice(groups)[0] = -1
        requests = [
            embedding_pb.EmbedStreamRequest(
                key=str(number), images=self._embed_request(picked).images, vector_encoding=wire.PACKED_F32
            )
            for number, picked in enumerate(groups)
        ]
        responses = await self._stream(channel, EMBEDDING + "EmbedStream", requests)
        if responses is None:
            return
        if [response.key for response in responses] != [request.key for request in requests]:
            self.findings.fail("embed stream: answers are missing or out of order")
            return
        for picked, response in zip(groups, responses, strict=True):
            self._check("embed stream", picked, response.results, response.encoder.fingerprint)
        self.findings.good["embed stream"] += 1

    def _serving(self) -> tuple[str, str, tuple[str, ...], int]:
        """Fingerprint and collection of the current encoder, the permitted errors, and the count of replacements."""
        material = self._material
        return material.serving, material.collections[material.serving], ("ENCODER_MISMATCH",), material.replaced

    def _expect_same(self, before: int, kind: str, answered: bool, shed: int) -> None:
        """An encoder mismatch is right only if the encoder was replaced meanwhile."""
        if answered:
            self.findings.good[kind] += 1
        elif before % 2 == 0 and before == self._material.replaced and shed == self._shed():
            self.findings.fail(f"{kind}: refused although the encoder is the collection's")

    def _shed(self) -> int:
        return self.findings.shed.total()

    def _items(self, count: int) -> list[collection_pb.UpsertItem]:
        return [
            collection_pb.UpsertItem(id=f"i{self._random.randrange(IDS)}", image=self._material.pictures[number])
            for number in self._pick(count)
        ]

    async def _upsert(self, channel: grpc.aio.Channel) -> None:
        _, collection, allowed, before = self._serving()
        shed = self._shed()
        request = collection_pb.UpsertRequest(collection=collection, items=self._items(4))
        response = await self.call(channel, COLLECTIONS + "Upsert", request, allowed=allowed)
        if response is not None and any(result.HasField("error") for result in response.results):
            self.findings.fail(f"upsert: {response.results}")
        self._expect_same(before, "upsert", response is not None, shed)

    async def _upsert_stream(self, channel: grpc.aio.Channel) -> None:
        _, collection, allowed, before = self._serving()
        shed = self._shed()
        requests = [
            collection_pb.UpsertStreamRequest(collection=collection, items=self._items(4))
            for _ in range(self._random.randint(2, 10))
        ]
        responses = await self._stream(channel, COLLECTIONS + "UpsertStream", requests, allowed=allowed)
        if responses is not None and (
            len(responses) != len(requests) or any(r.HasField("error") for a in responses for r in a.results)
        ):
            self.findings.fail(f"upsert stream: {responses}")
        self._expect_same(before, "upsert stream", responses is not None, shed)

    async def _search(self, channel: grpc.aio.Channel) -> None:
        fingerprint, collection, allowed, before = self._serving()
        shed = self._shed()
        [number] = self._pick(1)
        kind = self._random.choice(["image", "vector", "id"])
        query = search_pb.SearchQuery()
        if kind == "image":
            query.image = self._material.pictures[number]
        elif kind == "vector":
            query.vector.packed_f32 = self._material.vectors[fingerprint][number].astype("<f4").tobytes()
        else:
            query.item_id = f"i{self._random.randrange(IDS)}"
        request = search_pb.SearchRequest(
            collection=collection, queries=[query], k=5, encoder_fingerprint=fingerprint if kind == "vector" else ""
        )
        response = await self.call(channel, SEARCH + "Search", request, allowed=allowed if kind == "image" else ())
        if response is not None and response.results[0].HasField("error"):
            code = wire.error_from_status(response.results[0].error).code
            if (kind, code) != ("id", "ITEM_NOT_FOUND"):  # it may be deleted
                self.findings.fail(f"search by {kind}: {code}")
        self._expect_same(before, f"search by {kind}", response is not None, shed)

    async def _delete_and_list(self, channel: grpc.aio.Channel) -> None:
        _, collection, _, _ = self._serving()
        ids = [f"i{self._random.randrange(IDS)}" for _ in range(5)]
        request = collection_pb.DeleteItemsRequest(collection=collection, ids=ids)
        if await self.call(channel, COLLECTIONS + "DeleteItems", request) is not None:
            self.findings.good["delete"] += 1
        page = collection_pb.ListItemsRequest(collection=collection, page_size=50)
        if await self.call(channel, COLLECTIONS + "ListItems", page) is not None:
            self.findings.good["list"] += 1
        await asyncio.sleep(0.2)

    # --- Hostile clients: any outcome of their calls is right, as long as the others are served -----------------------

    async def _cancelled(self, channel: grpc.aio.Channel) -> None:
        """Cancels after up to 50 ms."""
        method = EMBEDDING + "Embed"
        unary: Any = channel.unary_unary(method, response_deserializer=embedding_pb.EmbedResponse.FromString)
        call = unary(self._embed_request(self._pick(16)).SerializeToString(), timeout=TIMEOUT_S)
        await asyncio.sleep(self._random.uniform(0, 0.05))
        call.cancel()
        await self._note_end(method, call)

    async def _hurried(self, channel: grpc.aio.Channel) -> None:
        """Has a deadline of up to 50 ms."""
        method = EMBEDDING + "Embed"
        unary: Any = channel.unary_unary(method, response_deserializer=embedding_pb.EmbedResponse.FromString)
        call = unary(self._embed_request(self._pick(8)).SerializeToString(), timeout=self._random.uniform(0.001, 0.05))
        await self._note_end(method, call)

    async def _dropped(self, _: grpc.aio.Channel) -> None:
        """Closes its connection during a call of 64 images and an endless stream."""
        channel = self._server.open(grpc.aio, own_connection=True)

        async def endless() -> AsyncIterator[bytes]:
            for number in itertools.count():
                image = self._material.pictures[number % len(self._material.pictures)]
                yield embedding_pb.EmbedStreamRequest(key=str(number), image=image).SerializeToString()

        await channel.channel_ready()
        method, streamed = EMBEDDING + "Embed", EMBEDDING + "EmbedStream"
        call = channel.unary_unary(method)(self._embed_request(self._pick(64)).SerializeToString(), timeout=TIMEOUT_S)
        stream = channel.stream_stream(streamed)(endless(), timeout=TIMEOUT_S)
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            await stream.read()
        await asyncio.sleep(self._random.uniform(0, 0.1))
        await channel.close()
        for name, ended in ((method, call), (streamed, stream)):
            await self._note_end(name, ended)
        await asyncio.sleep(0.3)

    async def _raw(self, _: grpc.aio.Channel) -> None:
        """Connects, sends nothing, garbage or the beginning of HTTP/2, and disconnects."""
        host, port = self._server.target.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        said = self._random.choice([b"", b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", bytes(1000)])
        with contextlib.suppress(ConnectionError):
            writer.write(said)
            await writer.drain()
            await asyncio.sleep(self._random.uniform(0, 0.2))
            if self._random.random() < 0.5:
                writer.transport.abort()
            writer.close()
            await writer.wait_closed()
        del reader
        await asyncio.sleep(0.3)

    async def _note_end(self, method: str, call: Any) -> None:
        """Record an abandoned call: with its status if the server sent one."""
        try:
            code = await call.code()
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
        sure = code is grpc.StatusCode.OK
        if code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.FAILED_PRECONDITION):
            sure = _is_ours(await call.trailing_metadata())
        if sure:
            self.findings.ledger.known[_name(method), code.name] += 1
        else:
            self.findings.ledger.left[_name(method)] += 1
        if code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INVALID_ARGUMENT):
            self.findings.fail(f"{_name(method)}, abandoned by its client: {code.name}: {await call.details()}")


def _name(method: str) -> str:
    return method.rpartition("/")[2]


def _is_ours(metadata: Any) -> bool:
    """Whether a status came from the server's own code: it has details."""
    return any(key == "grpc-status-details-bin" for key, _ in metadata or ())
