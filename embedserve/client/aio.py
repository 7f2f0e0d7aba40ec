"""The client for asyncio: each method of ``sync.Client`` as a coroutine, and each iterator as an async one.

What a method takes, gives and raises is written down there.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from embedserve import wire
from embedserve.atomic_write import atomic_write
from embedserve.client import aio_streams, backups, bulk, calls, messages, streams
from embedserve.client.access import Access, access
from embedserve.client.parts import Part
from embedserve.client.sync import Client
from embedserve.client.values import (
    AddResult,
    Embeddings,
    EncoderInfo,
    EncoderRef,
    ImageInput,
    ItemInput,
    Query,
    ServerInfo,
)
from embedserve.errors import EmbedserveError, FailedPrecondition, Unavailable
from embedserve.types import CheckProgress, CheckReport, CollectionInfo, Filter, Hit, Item, Keep, Limits, SearchOptions
from embedserve.v1 import admin_service_pb2 as admin_pb
from embedserve.v1 import collection_service_pb2 as collection_pb
from embedserve.v1 import embedding_service_pb2 as embedding_pb
from embedserve.v1.admin_service_pb2_grpc import AdminServiceStub
from embedserve.v1.collection_service_pb2_grpc import CollectionServiceStub
from embedserve.v1.embedding_service_pb2_grpc import EmbeddingServiceStub
from embedserve.v1.search_service_pb2_grpc import SearchServiceStub

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from embedserve.v1.admin_service_pb2_grpc import AdminServiceAsyncStub
    from embedserve.v1.collection_service_pb2_grpc import CollectionServiceAsyncStub
    from embedserve.v1.embedding_service_pb2_grpc import EmbeddingServiceAsyncStub
    from embedserve.v1.search_service_pb2_grpc import SearchServiceAsyncStub

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)
CallT = TypeVar("CallT", bound=Message)
AnswerT = TypeVar("AnswerT", bound=Message)
AnyT = TypeVar("AnyT")

_READY_POLL_S = 0.05


class _Connection:
    """A channel and what is called on it."""

    def __init__(self, access: Access) -> None:
        self.channel: grpc.aio.Channel = access.open(grpc.aio)
        self.embedding: EmbeddingServiceAsyncStub = EmbeddingServiceStub(self.channel)
        self.search: SearchServiceAsyncStub = SearchServiceStub(self.channel)
        self.collections: CollectionServiceAsyncStub = CollectionServiceStub(self.channel)
        self.admin: AdminServiceAsyncStub = AdminServiceStub(self.channel)
        self.health: Any = health_pb2_grpc.HealthStub(self.channel)  # its stubs name no calls


@dataclass(frozen=True, slots=True)
class _Sent(Generic[RequestT, ResponseT]):
    """A call under way."""

    request: RequestT
    call: grpc.aio.UnaryUnaryCall[RequestT, ResponseT]
    deadline_s: float


class AsyncClient:
    """A connection to an embedserve server, for one event loop. The same as ``Client``, with ``await``.

    Iterables that a bulk method takes are advanced in a worker thread, since they may read files.

    Args:
        target: HOST:PORT of the server; the port may be left out if it is 50051.
        timeout_s: how long one call to the server may take, with its repetitions. ``embed`` and ``add`` of many take as
            long as they take, but end where no answer comes for so long.
        token: what the server knows this client by; sent with every call.
        tls: encrypt, and believe the CAs that this machine believes.
        ca: encrypt, and believe only the CAs in this PEM file.
        client_cert: PEM file with the certificate that a server with mutual TLS asks for; ``client_key`` with its key.
        client_key: PEM file with the private key of ``client_cert``.
        allow_plain_token: send the token without TLS to another machine too, where the way there is safe.
        credentials: TLS as gRPC makes it, instead of the four above; None for none of one's own.

    Raises:
        InvalidInput: arguments contradict each other, or the token would travel readable to another machine.
        SetupError: a file with certificates cannot be used.
    """

    def __init__(
        self,
        target: str = "localhost:50051",
        *,
        timeout_s: float = 60,
        token: str = "",
        tls: bool = False,
        ca: str | Path | None = None,
        client_cert: str | Path | None = None,
        client_key: str | Path | None = None,
        allow_plain_token: bool = False,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self._target = calls.address(target)
        self._timeout_s = timeout_s
        self._access = access(
            self._target,
            token=token,
            tls=tls,
            ca=ca,
            client_cert=client_cert,
            client_key=client_key,
            allow_plain_token=allow_plain_token,
            credentials=credentials,
        )
        self._made: _Connection | None = None
        self._known_limits: Limits | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """As ``Client.close``."""
        self._closed = True
        if self._made is not None:
            await self._made.channel.close()

    # --- Embeddings ---

    async def embed(
        self, images: Iterable[ImageInput], *, errors: str = "raise", encoder_fingerprint: str = ""
    ) -> Embeddings:
        """As ``Client.embed``."""
        collector = bulk.Collector(images, errors)
        reader = bulk.EmbedReader()
        results = self._embed(collector.images(), encoder_fingerprint, reader)
        try:
            async for result in results:
                collector.add(result)
        finally:
            await results.aclose()
        return collector.embeddings(reader.encoder or (await self.server_info()).encoder)

    def embed_each(
        self, images: Iterable[ImageInput], *, encoder_fingerprint: str = ""
    ) -> AsyncIterator[NDArray[np.float32] | EmbedserveError]:
        """As ``Client.embed_each``."""
        return self._embed(images, encoder_fingerprint, bulk.EmbedReader())

    async def _embed(
        self, images: Iterable[ImageInput], encoder_fingerprint: str, reader: bulk.EmbedReader
    ) -> AsyncGenerator[NDArray[np.float32] | EmbedserveError]:
        parts = bulk.embed_parts(images, await self._limits(), encoder_fingerprint)
        stub = self._connection.embedding
        async with aclosing(self._bulk(bulk.EMBED, stub.Embed, stub.EmbedStream, parts)) as answers:
            async for part, response in answers:
                for result in reader.read(part, response):
                    yield result

    async def encoder(self) -> EncoderInfo:
        """As ``Client.encoder``."""
        request = embedding_pb.GetEncoderRequest()
        return messages.encoder_info(await self._answer(self._connection.embedding.GetEncoder, request))

    # --- Search ---

    async def search(
        self,
        collection: str,
        *,
        image: ImageInput | None = None,
        vector: ArrayLike | None = None,
        id: str | None = None,
        k: int = 10,
        min_score: float | None = None,
        filter: Filter | None = None,
        group_by: str = "",
        exact: bool = False,
        ef: int = 0,
        nprobe: int = 0,
        target_recall: float | None = None,
        include_metadata: bool = True,
        include_vectors: bool = False,
        encoder_fingerprint: str = "",
    ) -> list[Hit]:
        """As ``Client.search``."""
        (result,) = await self.search_many(
            collection,
            [Query(image=image, vector=vector, id=id)],
            k=k,
            min_score=min_score,
            filter=filter,
            group_by=group_by,
            exact=exact,
            ef=ef,
            nprobe=nprobe,
            target_recall=target_recall,
            include_metadata=include_metadata,
            include_vectors=include_vectors,
            encoder_fingerprint=encoder_fingerprint,
        )
        if isinstance(result, EmbedserveError):
            raise result
        return result

    async def search_many(
        self,
        collection: str,
        queries: Iterable[Query],
        *,
        k: int = 10,
        min_score: float | None = None,
        filter: Filter | None = None,
        group_by: str = "",
        exact: bool = False,
        ef: int = 0,
        nprobe: int = 0,
        target_recall: float | None = None,
        include_metadata: bool = True,
        include_vectors: bool = False,
        encoder_fingerprint: str = "",
    ) -> list[list[Hit] | EmbedserveError]:
        """As ``Client.search_many``."""
        options = SearchOptions(
            k=k,
            min_score=min_score,
            filter=filter,
            group_by=group_by,
            exact=exact,
            ef=ef,
            nprobe=nprobe,
            target_recall=target_recall,
            include_metadata=include_metadata,
            include_vectors=include_vectors,
        )
        parts = messages.search_parts(collection, queries, options, await self._limits(), encoder_fingerprint)
        results: list[list[Hit] | EmbedserveError] = []
        async with aclosing(self._in_order(self._connection.search.Search, parts)) as answers:
            async for part, response in answers:
                results += messages.search_results(part, response)
        return results

    # --- Items ---

    async def add(
        self, collection: str, items: Iterable[ItemInput], *, encoder_fingerprint: str = ""
    ) -> list[AddResult]:
        """As ``Client.add``."""
        async with aclosing(self._add(collection, items, encoder_fingerprint)) as results:
            return [result async for result in results]

    def add_each(
        self, collection: str, items: Iterable[ItemInput], *, encoder_fingerprint: str = ""
    ) -> AsyncIterator[AddResult]:
        """As ``Client.add_each``."""
        return self._add(collection, items, encoder_fingerprint)

    async def _add(
        self, collection: str, items: Iterable[ItemInput], encoder_fingerprint: str
    ) -> AsyncGenerator[AddResult]:
        parts = bulk.add_parts(collection, items, await self._limits(), encoder_fingerprint)
        stub = self._connection.collections
        async with aclosing(self._bulk(bulk.ADD, stub.Upsert, stub.UpsertStream, parts)) as answers:
            async for part, response in answers:
                for result in bulk.add_results(part, response):
                    yield result

    async def get_items(
        self,
        collection: str,
        ids: Sequence[str],
        *,
        include_metadata: bool = True,
        include_vectors: bool = False,
        include_media: bool = False,
    ) -> list[Item | None]:
        """As ``Client.get_items``."""
        parts = messages.get_items_parts(
            collection,
            ids,
            await self._limits(),
            include_metadata=include_metadata,
            include_vectors=include_vectors,
            include_media=include_media,
        )
        items: list[Item | None] = []
        async with aclosing(self._in_order(self._connection.collections.GetItems, parts)) as answers:
            async for part, response in answers:
                items += messages.get_items_results(part, response)
        return items

    async def delete_items(self, collection: str, ids: Sequence[str]) -> int:
        """As ``Client.delete_items``."""
        parts = messages.delete_items_parts(collection, ids, await self._limits())
        deleted = 0
        async with aclosing(self._in_order(self._connection.collections.DeleteItems, parts)) as answers:
            async for _part, response in answers:
                deleted += response.deleted_count if response is not None else 0
        return deleted

    async def list_items(
        self,
        collection: str,
        *,
        filter: Filter | None = None,
        include_metadata: bool = True,
        include_vectors: bool = False,
        page_size: int = 100,
    ) -> AsyncIterator[Item]:
        """As ``Client.list_items``."""
        request: collection_pb.ListItemsRequest | None = messages.list_items_request(
            collection,
            filter=filter,
            include_metadata=include_metadata,
            include_vectors=include_vectors,
            page_size=page_size,
        )
        while request is not None:
            response = await self._answer(self._connection.collections.ListItems, request)
            for item in response.items:
                yield wire.item_from_proto(item)
            request = messages.next_page_request(request, response)

    # --- Collections ---

    async def create_collection(
        self,
        name: str,
        *,
        keep: Keep | str = Keep.THUMBNAILS,
        external: bool = False,
        dimension: int = 0,
        index: str = "auto",
        target_recall: float | None = None,
        filter_keys: Sequence[str] = (),
        encoder_fingerprint: str = "",
        encoder_name: str = "",
    ) -> CollectionInfo:
        """As ``Client.create_collection``."""
        request = messages.create_collection_request(
            name,
            keep=keep,
            external=external,
            dimension=dimension,
            index=index,
            target_recall=target_recall,
            filter_keys=filter_keys,
            encoder_fingerprint=encoder_fingerprint,
            encoder_name=encoder_name,
        )
        response = await self._answer(self._connection.collections.CreateCollection, request, retry=False)
        return wire.collection_from_proto(response.collection)

    async def get_collection(self, name: str) -> CollectionInfo:
        """As ``Client.get_collection``."""
        request = messages.message(collection_pb.GetCollectionRequest, name=name)
        response = await self._answer(self._connection.collections.GetCollection, request)
        return wire.collection_from_proto(response.collection)

    async def list_collections(self) -> list[CollectionInfo]:
        """As ``Client.list_collections``."""
        request = collection_pb.ListCollectionsRequest()
        response = await self._answer(self._connection.collections.ListCollections, request)
        return [wire.collection_from_proto(collection) for collection in response.collections]

    async def delete_collection(self, name: str) -> None:
        """As ``Client.delete_collection``."""
        request = messages.message(collection_pb.DeleteCollectionRequest, name=name)
        await self._answer(self._connection.collections.DeleteCollection, request, retry=False)

    async def set_alias(self, alias: str, collection: str) -> None:
        """As ``Client.set_alias``."""
        request = messages.message(collection_pb.SetAliasRequest, alias=alias, collection=collection)
        await self._answer(self._connection.collections.SetAlias, request)

    async def check_collection(
        self, name: str, on_progress: Callable[[CheckProgress], None] | None = None
    ) -> CheckReport:
        """As ``Client.check_collection``."""
        request = messages.message(collection_pb.CheckCollectionRequest, name=name)
        reader = backups.CheckReader(on_progress)
        async with aclosing(self._responses(self._connection.collections.CheckCollection, request)) as responses:
            async for response in responses:
                reader.read(response)
        return reader.report()

    async def backup_collection(
        self,
        name: str,
        path: str | Path,
        *,
        overwrite: bool = False,
        on_progress: Callable[[int], None] | None = None,
    ) -> str:
        """As ``Client.backup_collection``; ``on_progress`` is called in another thread."""
        request = messages.message(collection_pb.BackupCollectionRequest, name=name)
        async with _in_threads(atomic_write(Path(path), overwrite=overwrite)) as file:
            reader = backups.BackupReader(file, on_progress)
            async with aclosing(self._responses(self._connection.collections.BackupCollection, request)) as responses:
                async for response in responses:
                    await asyncio.to_thread(reader.read, response)
            return reader.sha256()

    async def restore_collection(
        self, name: str, path: str | Path, *, on_progress: Callable[[int | None], None] | None = None
    ) -> CollectionInfo:
        """As ``Client.restore_collection``; ``on_progress`` is called in another thread."""
        messages.message(collection_pb.RestoreCollectionRequest, name=name)
        _ = self._connection  # which is there only if the client is open
        await asyncio.to_thread(backups.check_readable, Path(path))
        # Where a write meets a call that the server has ended, grpc.aio forgets why it did; grpc does not.
        channel: grpc.Channel = self._access.open(grpc)
        try:
            method = CollectionServiceStub(channel).RestoreCollection
            sender = backups.RestoreSender(name, Path(path), self._target, self._timeout_s, on_progress)
            return await asyncio.to_thread(sender.send, method, lambda: self._closed)
        finally:
            channel.close()  # which ends the thread, if it is still there

    # --- The server ---

    async def server_info(self) -> ServerInfo:
        """As ``Client.server_info``."""
        request = embedding_pb.GetServerInfoRequest()
        info = messages.server_info(await self._answer(self._connection.embedding.GetServerInfo, request))
        self._known_limits = info.limits
        return info

    async def replace_encoder(self, *, fingerprint: str = "") -> EncoderRef:
        """As ``Client.replace_encoder``."""
        request = messages.message(admin_pb.ReplaceEncoderRequest, fingerprint=fingerprint)
        return messages.encoder_ref((await self._answer(self._connection.admin.ReplaceEncoder, request)).current)

    async def wait_ready(self, timeout_s: float = 60) -> None:
        """As ``Client.wait_ready``."""
        deadline_s = time.monotonic() + timeout_s
        state = "nothing answers there"
        while (remaining_s := deadline_s - time.monotonic()) > 0:
            try:
                response = await self._connection.health.Check(health_pb2.HealthCheckRequest(), timeout=remaining_s)
            except grpc.RpcError as error:
                state = calls.not_ready_because(error, self._target, state)
            else:
                if response.status == health_pb2.HealthCheckResponse.SERVING:
                    return
                state = "it is starting or stopping"
            await asyncio.sleep(min(_READY_POLL_S, max(0.0, deadline_s - time.monotonic())))
        raise Unavailable(
            f"the server at {self._target} is not ready after {timeout_s:g} s: {state}", hint=calls.START_HINT
        )

    # --- Calls ---

    @property
    def _connection(self) -> _Connection:
        """Made on first use, because gRPC binds it to the running event loop."""
        if self._closed:
            raise FailedPrecondition("this client has been closed")
        if self._made is None:
            self._made = _Connection(self._access)
        return self._made

    async def _limits(self) -> Limits:
        """The server's limits, asked for once."""
        return self._known_limits or (await self.server_info()).limits

    async def _answer(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[RequestT, ResponseT],
        request: RequestT,
        *,
        retry: bool = True,
    ) -> ResponseT:
        """The response to one request."""
        return await self._await(method, self._send(method, request), retry=retry)

    async def _bulk(
        self,
        kind: bulk.Bulk[RequestT, ResponseT, CallT],
        method: grpc.aio.UnaryUnaryMultiCallable[CallT, AnswerT],
        stream: grpc.aio.StreamStreamMultiCallable[RequestT, ResponseT],
        parts: Iterator[Part[RequestT]],
    ) -> AsyncGenerator[tuple[Part[RequestT], ResponseT | AnswerT | None]]:
        """The responses to the parts of a bulk method: one call if there is but one part, otherwise a stream."""
        first = await asyncio.to_thread(next, parts, None)
        if first is None:
            return
        if first.is_all:
            yield first, None if first.request is None else await self._answer(method, kind.as_call(first.request))
            return
        exchange = streams.Exchange(kind.is_answer, self._target, self._timeout_s)
        answers = aio_streams.answers(stream, chain([first], parts), exchange, lambda: self._closed)
        async with aclosing(answers):
            async for answer in answers:
                yield answer

    async def _in_order(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[RequestT, ResponseT],
        parts: Iterator[Part[RequestT]],
    ) -> AsyncGenerator[tuple[Part[RequestT], ResponseT | None]]:
        """The responses to many requests in their order, a few of them under way at a time."""
        waiting: deque[tuple[Part[RequestT], _Sent[RequestT, ResponseT] | None]] = deque()

        async def first() -> tuple[Part[RequestT], ResponseT | None]:
            part, sent = waiting[0]
            response = None if sent is None else await self._await(method, sent)
            waiting.popleft()
            return part, response

        try:
            while (part := await asyncio.to_thread(next, parts, None)) is not None:
                while len(waiting) >= calls.CALLS_IN_FLIGHT:
                    yield await first()
                waiting.append((part, None if part.request is None else self._send(method, part.request)))
            while waiting:
                yield await first()
        finally:
            for _part, sent in waiting:
                if sent is not None:
                    sent.call.cancel()

    async def _responses(
        self, method: grpc.aio.UnaryStreamMultiCallable[RequestT, ResponseT], request: RequestT
    ) -> AsyncGenerator[ResponseT]:
        """The responses to one request, none of them long after the one before; asked again before the first."""
        attempt, deadline_s = 1, time.monotonic() + self._timeout_s
        while True:
            call: Any = method(request)
            has_begun = False
            try:
                while True:
                    async with asyncio.timeout(backups.silence_s(self._timeout_s)):
                        response = await call.read()
                    if response is grpc.aio.EOF:
                        return
                    has_begun = True
                    yield response
            except TimeoutError as error:
                raise backups.silent(self._target, self._timeout_s) from error
            except grpc.RpcError as error:
                failure = calls.failure_of(error, self._target, self._timeout_s)
                pause_s = calls.pause_before_retry_s(failure, attempt, deadline_s - time.monotonic())
                if has_begun or pause_s is None:
                    raise failure.error from error
            except asyncio.CancelledError as error:
                self._check_cancelled(error)
                raise
            finally:
                call.cancel()
            await asyncio.sleep(pause_s)
            attempt += 1

    def _check_cancelled(self, error: asyncio.CancelledError) -> None:
        """Tell a call that was cancelled because the client was closed from a caller that is cancelled.

        Raises:
            Unavailable: the client was closed.
        """
        task = asyncio.current_task()
        if self._closed and (task is None or not task.cancelling()):
            raise Unavailable("the call was cancelled: the client was closed") from error

    def _send(
        self, method: grpc.aio.UnaryUnaryMultiCallable[RequestT, ResponseT], request: RequestT
    ) -> _Sent[RequestT, ResponseT]:
        call = method(request, timeout=self._timeout_s)
        return _Sent(request, call, time.monotonic() + self._timeout_s)

    async def _await(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[RequestT, ResponseT],
        sent: _Sent[RequestT, ResponseT],
        *,
        retry: bool = True,
    ) -> ResponseT:
        """The response to a request that is under way, asking again where that makes sense."""
        attempt, call = 1, sent.call
        while True:
            try:
                return await call
            except grpc.RpcError as error:
                failure = calls.failure_of(error, self._target, self._timeout_s)
                remaining_s = sent.deadline_s - time.monotonic()
                pause_s = calls.pause_before_retry_s(failure, attempt, remaining_s) if retry else None
                if pause_s is None:
                    raise failure.error from error
            except asyncio.CancelledError as error:
                self._check_cancelled(error)
                raise
            await asyncio.sleep(pause_s)
            attempt += 1
            call = method(sent.request, timeout=sent.deadline_s - time.monotonic())


@asynccontextmanager
async def _in_threads(blocking: AbstractContextManager[AnyT]) -> AsyncIterator[AnyT]:
    """Enter and leave what waits for the disk."""
    value = await asyncio.to_thread(blocking.__enter__)
    try:
        yield value
    except BaseException as error:
        if not await asyncio.to_thread(blocking.__exit__, type(error), error, error.__traceback__):
            raise
    else:
        await asyncio.to_thread(blocking.__exit__, None, None, None)


for _name, _member in vars(AsyncClient).items():
    if not _name.startswith("_"):
        # One text for both, where help() and editors look for it.
        _member.__doc__ = getattr(Client, _name).__doc__
