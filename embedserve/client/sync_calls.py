"""How ``Client`` makes its calls: with grpc, in the caller's thread. ``aio_calls`` is the counterpart."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, Generic, NoReturn, TypeVar

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2_grpc

from embedserve.client import answers, failures, long_calls, retry, sync_streams
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

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)
CallT = TypeVar("CallT", bound=Message)
AnswerT = TypeVar("AnswerT", bound=Message)
ResultT = TypeVar("ResultT")


class Stubs:
    """A channel and the services that are called on it."""

    def __init__(self, access: Access) -> None:
        self.channel: grpc.Channel = access.open(grpc)
        self.embedding = EmbeddingServiceStub(self.channel)
        self.search = SearchServiceStub(self.channel)
        self.collections = CollectionServiceStub(self.channel)
        self.admin = AdminServiceStub(self.channel)
        self.health: Any = health_pb2_grpc.HealthStub(self.channel)  # not typed by its package


@dataclass(frozen=True, slots=True)
class _PendingCall(Generic[RequestT, ResponseT]):
    """A call in flight."""

    request: RequestT
    future: grpc.Future[ResponseT]
    deadline_s: float


class Calls:
    """The calls of one client.

    Args:
        access: to the server.
        timeout_s: how long one call may take, with its retries.
    """

    def __init__(self, access: Access, timeout_s: float) -> None:
        self.target, self.timeout_s = access.target, timeout_s
        self.known_limits: Limits | None = None
        self.stubs = Stubs(access)
        self._closed = False

    def close(self) -> None:
        """Close the channel; calls in flight are cancelled. Closing twice does nothing."""
        self._closed = True
        self.stubs.channel.close()

    def limits(self) -> Limits:
        """The server's limits, asked for once."""
        if self.known_limits is None:
            response = self.answer(self.stubs.embedding.GetServerInfo, embedding_pb.GetServerInfoRequest())
            self.known_limits = answers.limits(response)
        return self.known_limits

    def answer(
        self, method: grpc.UnaryUnaryMultiCallable[RequestT, ResponseT], request: RequestT, *, is_retried: bool = True
    ) -> ResponseT:
        """The response to one request."""
        self.check_open()
        return self._await(method, request, time.monotonic() + self.timeout_s, is_retried=is_retried)

    def in_order(
        self,
        method: grpc.UnaryUnaryMultiCallable[RequestT, ResponseT],
        chunks: Iterator[Chunk[RequestT]],
        read: Callable[[Chunk[RequestT], ResponseT | None], list[ResultT]],
        splitter: Splitter[RequestT, ResultT] | None = None,
    ) -> list[ResultT]:
        """What ``read`` makes of each chunk and its response, in order; a few calls are in flight at a time.

        With a ``splitter``, a chunk whose answer is too large is sent again in smaller ones.
        """
        results: list[ResultT] = []
        in_flight: deque[tuple[Chunk[RequestT], _PendingCall[RequestT, ResponseT] | None]] = deque()

        def read_smaller(chunk: Chunk[RequestT], error: LimitExceeded) -> None:
            if splitter is None:
                raise error
            smaller = splitter.smaller(chunk, error)
            if smaller is None:
                results.extend(splitter.alone(chunk, error))
                return
            for piece in smaller:
                try:
                    response = None if piece.request is None else self.answer(method, piece.request)
                except LimitExceeded as again:
                    read_smaller(piece, again)
                else:
                    results.extend(read(piece, response))

        def read_first() -> None:
            chunk, call = in_flight[0]
            try:
                response = None if call is None else self._await(method, call.request, call.deadline_s, call.future)
            except LimitExceeded as error:
                in_flight.popleft()
                read_smaller(chunk, error)
                return
            in_flight.popleft()
            results.extend(read(chunk, response))

        try:
            for chunk in chunks:
                if chunk.is_all and chunk.request is not None:
                    # A call that others may follow costs gRPC a thread, 0.35 ms.
                    try:
                        response = self.answer(method, chunk.request)
                    except LimitExceeded as error:
                        read_smaller(chunk, error)
                        return results
                    return read(chunk, response)
                for piece in [chunk] if splitter is None else splitter.fitting(chunk):
                    if len(in_flight) == CALLS_IN_FLIGHT:
                        read_first()
                    in_flight.append((piece, None if piece.request is None else self._send(method, piece.request)))
            while in_flight:
                read_first()
        finally:
            for _chunk, call in in_flight:
                if call is not None:
                    call.future.cancel()
        return results

    def bulk(
        self,
        kind: BulkMethod[RequestT, ResponseT, CallT],
        method: grpc.UnaryUnaryMultiCallable[CallT, AnswerT],
        stream: grpc.StreamStreamMultiCallable[RequestT, ResponseT],
        chunks: Iterator[Chunk[RequestT]],
    ) -> Generator[tuple[Chunk[RequestT], ResponseT | AnswerT | None]]:
        """Each chunk with its response: by one call if there is only one chunk, otherwise over a stream."""
        first = next(chunks, None)
        if first is None:
            return
        if first.is_all:
            yield first, None if first.request is None else self.answer(method, kind.as_call(first.request))
            return
        self.check_open()
        window = Window(kind.is_answer, self.target, self.timeout_s)
        yield from sync_streams.answers(stream, chain([first], chunks), window, lambda: self._closed)

    def responses(
        self, method: grpc.UnaryStreamMultiCallable[RequestT, ResponseT], request: RequestT
    ) -> Generator[ResponseT]:
        """The responses of a long call, with limited time between two of them; retried only before the first."""
        attempt, deadline_s = 1, time.monotonic() + self.timeout_s
        while True:
            self.check_open()
            call = method(request)
            is_late = threading.Event()

            def give_up(call: Any = call, is_late: threading.Event = is_late) -> None:
                is_late.set()
                call.cancel()

            has_begun = False
            try:
                while True:
                    timer = threading.Timer(long_calls.silence_s(self.timeout_s), give_up)
                    timer.start()
                    try:
                        response = next(call, None)
                    finally:
                        timer.cancel()
                    if response is None:
                        return
                    has_begun = True
                    yield response
            except grpc.RpcError as error:
                if is_late.is_set():
                    raise long_calls.silence_error(self.target, self.timeout_s) from error
                if self._closed:
                    raise failures.closed_client() from error
                failure = failures.failure_of(error, self.target, self.timeout_s)
                pause_s = retry.pause_s(failure, attempt, deadline_s - time.monotonic())
                if has_begun or pause_s is None:
                    raise failure.error from error
            finally:
                call.cancel()
            time.sleep(pause_s)
            attempt += 1

    def restore(self, sender: long_calls.RestoreSender) -> CollectionInfo:
        """The collection that ``sender`` makes."""
        self.check_open()
        return sender.send(self.stubs.collections.RestoreCollection, lambda: self._closed)

    def check_open(self) -> None:
        """Refuse to go on with a closed client.

        Raises:
            FailedPrecondition: the client has been closed.
        """
        if self._closed:
            raise FailedPrecondition("this client has been closed")

    def _send(
        self, method: grpc.UnaryUnaryMultiCallable[RequestT, ResponseT], request: RequestT
    ) -> _PendingCall[RequestT, ResponseT]:
        self.check_open()
        future = method.future(request, timeout=self.timeout_s)
        return _PendingCall(request, future, time.monotonic() + self.timeout_s)

    def _await(
        self,
        method: grpc.UnaryUnaryMultiCallable[RequestT, ResponseT],
        request: RequestT,
        deadline_s: float,
        future: grpc.Future[ResponseT] | None = None,
        *,
        is_retried: bool = True,
    ) -> ResponseT:
        """The response to a request, or to its call in flight, which is made again where that makes sense."""
        attempt = 1
        while True:
            try:
                if future is not None:
                    return future.result()
                return method(request, timeout=deadline_s - time.monotonic())
            except grpc.RpcError as error:
                failure = failures.failure_of(error, self.target, self.timeout_s)
                remaining_s = deadline_s - time.monotonic()
                pause_s = retry.pause_s(failure, attempt, remaining_s) if is_retried or failure.is_unsent else None
                if pause_s is None:
                    raise failure.error from error
            except grpc.FutureCancelledError as error:
                raise failures.closed_client() from error
            time.sleep(pause_s)
            self.check_open()
            attempt, future = attempt + 1, None


class WrongStatement:
    """Says what to write to those who open ``Client`` with ``async with``."""

    async def __aenter__(self) -> NoReturn:
        raise InvalidInput(
            "Client is opened with `with`; it blocks", hint="with Client(…) as client; or async with AsyncClient(…)"
        )

    async def __aexit__(self, *error: object) -> None: ...
