"""How ``AsyncClient`` makes its calls: with grpc.aio, on the running event loop. ``sync_calls`` is the counterpart."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2_grpc

from embedserve.client import aio_streams, answers, failures, long_calls, retry
from embedserve.client.access import Access
from embedserve.client.bulk import BulkMethod
from embedserve.client.chunks import Chunk
from embedserve.client.splitting import Splitter
from embedserve.client.window import CALLS_IN_FLIGHT, Window
from embedserve.errors import FailedPrecondition, InvalidInput, LimitExceeded
from embedserve.types import CollectionInfo, Limits
from embedserve.v1 import embedding_service_pb2 as embedding_pb
from embedserve.v1.admin_service_pb2_grpc import AdminServiceStub
from embedserve.v1.collection_service_pb2_grpc import CollectionServiceStub
from embedserve.v1.embedding_service_pb2_grpc import EmbeddingServiceStub
from embedserve.v1.search_service_pb2_grpc import SearchServiceStub

if TYPE_CHECKING:
    from embedserve.v1.admin_service_pb2_grpc import AdminServiceAsyncStub
    from embedserve.v1.collection_service_pb2_grpc import CollectionServiceAsyncStub
    from embedserve.v1.embedding_service_pb2_grpc import EmbeddingServiceAsyncStub
    from embedserve.v1.search_service_pb2_grpc import SearchServiceAsyncStub

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)
CallT = TypeVar("CallT", bound=Message)
AnswerT = TypeVar("AnswerT", bound=Message)
ResultT = TypeVar("ResultT")
EnteredT = TypeVar("EnteredT")


class AsyncStubs:
    """A channel and the services that are called on it."""

    def __init__(self, access: Access) -> None:
        self.channel: grpc.aio.Channel = access.open(grpc.aio)
        self.embedding: EmbeddingServiceAsyncStub = EmbeddingServiceStub(self.channel)
        self.search: SearchServiceAsyncStub = SearchServiceStub(self.channel)
        self.collections: CollectionServiceAsyncStub = CollectionServiceStub(self.channel)
        self.admin: AdminServiceAsyncStub = AdminServiceStub(self.channel)
        self.health: Any = health_pb2_grpc.HealthStub(self.channel)  # not typed by its package


@dataclass(frozen=True, slots=True)
class _PendingCall(Generic[RequestT, ResponseT]):
    """A call in flight."""

    request: RequestT
    call: grpc.aio.UnaryUnaryCall[RequestT, ResponseT]
    deadline_s: float


class AsyncCalls:
    """The calls of one client.

    Args:
        access: to the server.
        timeout_s: how long one call may take, with its retries.
    """

    def __init__(self, access: Access, timeout_s: float) -> None:
        self.target, self.timeout_s = access.target, timeout_s
        self.known_limits: Limits | None = None
        self._access = access
        self._stubs: AsyncStubs | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    @property
    def stubs(self) -> AsyncStubs:
        """Made on first use, because gRPC binds a channel to the running event loop.

        Raises:
            FailedPrecondition: the client has been closed, or belongs to another event loop.
        """
        if self._stubs is None or self._closed:
            self.check_open()
            self._loop = asyncio.get_running_loop()
            self._stubs = AsyncStubs(self._access)
        elif self._loop is not asyncio.get_running_loop():
            raise FailedPrecondition(
                "this AsyncClient belongs to the event loop of its first call, and this is another one",
                hint="make a client in each asyncio.run: async with AsyncClient(…) as client",
            )
        return self._stubs

    async def close(self) -> None:
        """Close the channel; calls in flight are cancelled. Closing twice does nothing."""
        self._closed = True
        # A channel of another loop can only be closed there; if that loop has ended, the channel is gone with it.
        if self._stubs is not None and self._loop is asyncio.get_running_loop():
            await self._stubs.channel.close()

    async def limits(self) -> Limits:
        """The server's limits, asked for once."""
        if self.known_limits is None:
            response = await self.answer(self.stubs.embedding.GetServerInfo, embedding_pb.GetServerInfoRequest())
            self.known_limits = answers.limits(response)
        return self.known_limits

    async def answer(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[RequestT, ResponseT],
        request: RequestT,
        *,
        is_retried: bool = True,
    ) -> ResponseT:
        """The response to one request."""
        return await self._await(method, self._send(method, request), is_retried=is_retried)

    async def in_order(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[RequestT, ResponseT],
        chunks: Iterator[Chunk[RequestT]],
        read: Callable[[Chunk[RequestT], ResponseT | None], list[ResultT]],
        splitter: Splitter[RequestT, ResultT] | None = None,
    ) -> list[ResultT]:
        """What ``read`` makes of each chunk and its response, in order; a few calls are in flight at a time.

        With a ``splitter``, a chunk whose answer is too large is sent again in smaller ones.
        """
        results: list[ResultT] = []
        in_flight: deque[tuple[Chunk[RequestT], _PendingCall[RequestT, ResponseT] | None]] = deque()

        async def read_smaller(chunk: Chunk[RequestT], error: LimitExceeded) -> None:
            if splitter is None:
                raise error
            smaller = splitter.smaller(chunk, error)
            if smaller is None:
                results.extend(splitter.alone(chunk, error))
                return
            for piece in smaller:
                try:
                    response = None if piece.request is None else await self.answer(method, piece.request)
                except LimitExceeded as again:
                    await read_smaller(piece, again)
                else:
                    results.extend(read(piece, response))

        async def read_first() -> None:
            chunk, call = in_flight[0]
            try:
                response = None if call is None else await self._await(method, call)
            except LimitExceeded as error:
                in_flight.popleft()
                await read_smaller(chunk, error)
                return
            in_flight.popleft()
            results.extend(read(chunk, response))

        try:
            while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
                if chunk.is_all and chunk.request is not None:
                    try:
                        response = await self.answer(method, chunk.request)
                    except LimitExceeded as error:
                        await read_smaller(chunk, error)
                        return results
                    return read(chunk, response)
                for piece in [chunk] if splitter is None else splitter.fitting(chunk):
                    if len(in_flight) == CALLS_IN_FLIGHT:
                        await read_first()
                    in_flight.append((piece, None if piece.request is None else self._send(method, piece.request)))
            while in_flight:
                await read_first()
        finally:
            for _chunk, call in in_flight:
                if call is not None:
                    call.call.cancel()
        return results

    async def bulk(
        self,
        kind: BulkMethod[RequestT, ResponseT, CallT],
        method: grpc.aio.UnaryUnaryMultiCallable[CallT, AnswerT],
        stream: grpc.aio.StreamStreamMultiCallable[RequestT, ResponseT],
        chunks: Iterator[Chunk[RequestT]],
    ) -> AsyncGenerator[tuple[Chunk[RequestT], ResponseT | AnswerT | None]]:
        """Each chunk with its response: by one call if there is only one chunk, otherwise over a stream."""
        first = await asyncio.to_thread(next, chunks, None)
        if first is None:
            return
        self.check_open()
        if first.is_all:
            yield first, None if first.request is None else await self.answer(method, kind.as_call(first.request))
            return
        window = Window(kind.is_answer, self.target, self.timeout_s)
        answers = aio_streams.answers(stream, chain([first], chunks), window, lambda: self._closed)
        async with aclosing(answers):
            async for answer in answers:
                yield answer

    async def responses(
        self, method: grpc.aio.UnaryStreamMultiCallable[RequestT, ResponseT], request: RequestT
    ) -> AsyncGenerator[ResponseT]:
        """The responses of a long call, with limited time between two of them; retried only before the first."""
        attempt, deadline_s = 1, time.monotonic() + self.timeout_s
        while True:
            self.check_open()
            call: Any = method(request)
            has_begun = False
            try:
                while True:
                    async with asyncio.timeout(long_calls.silence_s(self.timeout_s)):
                        response = await call.read()
                    if response is grpc.aio.EOF:
                        return
                    has_begun = True
                    yield answers.readable(response)
            except TimeoutError as error:
                raise long_calls.silence_error(self.target, self.timeout_s) from error
            except grpc.RpcError as error:
                failure = failures.failure_of(error, self.target, self.timeout_s)
                pause_s = retry.pause_s(failure, attempt, deadline_s - time.monotonic())
                if has_begun or pause_s is None:
                    raise failure.error from error
            except asyncio.CancelledError as error:
                self._check_cancelled(error)
                raise
            finally:
                call.cancel()
            await asyncio.sleep(pause_s)
            attempt += 1

    async def restore(self, sender: long_calls.RestoreSender) -> CollectionInfo:
        """The collection that ``sender`` makes."""
        self.check_open()
        # If a write meets a call that the server has ended, grpc.aio loses the status; grpc does not.
        channel: grpc.Channel = self._access.open(grpc)
        try:
            method = CollectionServiceStub(channel).RestoreCollection
            return await asyncio.to_thread(sender.send, method, lambda: self._closed)
        finally:
            channel.close()  # ends the thread if this task is cancelled

    def check_open(self) -> None:
        """Raise if the client is closed.

        Raises:
            FailedPrecondition: the client has been closed.
        """
        if self._closed:
            raise FailedPrecondition("this client has been closed")

    def _send(
        self, method: grpc.aio.UnaryUnaryMultiCallable[RequestT, ResponseT], request: RequestT
    ) -> _PendingCall[RequestT, ResponseT]:
        if self._closed:  # since the method was looked up; a closed channel raises what is not ours
            self.check_open()
        call = method(request, timeout=self.timeout_s)
        return _PendingCall(request, call, time.monotonic() + self.timeout_s)

    async def _await(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[RequestT, ResponseT],
        pending: _PendingCall[RequestT, ResponseT],
        *,
        is_retried: bool = True,
    ) -> ResponseT:
        """The response to a call in flight, which is made again where that makes sense."""
        attempt, call = 1, pending.call
        while True:
            try:
                return answers.readable(await call)
            except grpc.RpcError as error:
                failure = failures.failure_of(error, self.target, self.timeout_s)
                remaining_s = pending.deadline_s - time.monotonic()
                pause_s = retry.pause_s(failure, attempt, remaining_s) if is_retried or failure.is_unsent else None
                if pause_s is None:
                    raise failure.error from error
            except asyncio.CancelledError as error:
                self._check_cancelled(error)
                raise
            await asyncio.sleep(pause_s)
            self.check_open()
            attempt += 1
            call = method(pending.request, timeout=pending.deadline_s - time.monotonic())

    def _check_cancelled(self, error: asyncio.CancelledError) -> None:
        """Tell a call that was cancelled because the client was closed from a caller that is cancelled.

        Raises:
            Unavailable: the client was closed.
        """
        task = asyncio.current_task()
        if self._closed and (task is None or not task.cancelling()):
            raise failures.closed_client() from error


class WrongStatement:
    """Says what to write to those who open ``AsyncClient`` with ``with``."""

    def __enter__(self) -> NoReturn:
        raise InvalidInput(
            "AsyncClient is opened with `async with`", hint="async with AsyncClient(…) as client; or with Client(…)"
        )

    def __exit__(self, *error: object) -> None: ...


@asynccontextmanager
async def in_threads(blocking: AbstractContextManager[EnteredT]) -> AsyncIterator[EnteredT]:
    """Enters and leaves in a worker thread what waits for the disk."""
    value = await asyncio.to_thread(blocking.__enter__)
    try:
        yield value
    except BaseException as error:
        if not await asyncio.to_thread(blocking.__exit__, type(error), error, error.__traceback__):
            raise
    else:
        await asyncio.to_thread(blocking.__exit__, None, None, None)
