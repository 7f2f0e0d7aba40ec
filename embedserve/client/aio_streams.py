"""Bulk over a stream for ``AsyncClient``: chunks are taken in a worker thread, and responses awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Generic, Self, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from embedserve.client import answers as answers_of_server
from embedserve.client import failures
from embedserve.client.chunks import Chunk
from embedserve.client.window import Window

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)

_ADMISSION_S = 1.0


async def answers(
    method: Any,
    chunks: Iterator[Chunk[RequestT]],
    window: Window[RequestT, ResponseT],
    is_closed: Callable[[], bool],
) -> AsyncGenerator[tuple[Chunk[RequestT], ResponseT | None]]:
    """Each chunk with its response, or None if it had nothing to send, in order.

    Args:
        method: the stream's method of a stub.
        chunks: taken in a worker thread, as far ahead as ``window`` has room.
        window: a new one.
        is_closed: whether the client has been closed.
    """
    stream: _Stream[RequestT, ResponseT] | None = None
    next_chunk: asyncio.Task[Chunk[RequestT] | None] | None = None
    try:
        while True:
            while (unsendable := window.pop_unsendable()) is not None:
                yield unsendable, None
            if window.done:
                if stream is not None:
                    await stream.finish(window.remaining_s())
                return
            if next_chunk is None and window.has_room:
                next_chunk = asyncio.create_task(asyncio.to_thread(next, chunks, None))
            waiting: tuple[asyncio.Task[Any] | None, ...] = (next_chunk, stream.reading if stream is not None else None)
            finished, _ = await asyncio.wait(
                [task for task in waiting if task is not None],
                timeout=None if window.idle else window.remaining_s(),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not finished:
                raise window.timeout_error()
            if next_chunk is not None and next_chunk in finished:
                chunk, next_chunk = next_chunk.result(), None
                window.add(chunk)
                if chunk is None and stream is not None:
                    stream.send(None)
                elif chunk is not None and chunk.request is not None:
                    if stream is None:
                        window.begin()
                        stream = _Stream(method)
                    stream.send(chunk.request)
            elif stream is not None:
                try:
                    response = stream.received()
                except (grpc.RpcError, asyncio.CancelledError) as error:  # the call is cancelled, not the caller
                    if is_closed():
                        raise failures.closed_client() from error
                    await stream.close()
                    stream = None
                    if not window.idle:
                        reason = error if isinstance(error, grpc.RpcError) else None
                        await asyncio.sleep(window.pause_before_reopening_s(reason))
                        stream = _Stream(method, window.requests_again())
                except EOFError:
                    raise window.early_end_error() from None
                else:
                    yield window.pop_answered(response), response
    finally:
        if next_chunk is not None:
            next_chunk.cancel()  # its thread ends once the caller's iterator gives the next input
            await asyncio.wait([next_chunk])
        if stream is not None:
            await stream.close()


class _Outbox(Generic[RequestT]):
    """The requests of one stream; no generator, since a cancelled gRPC call leaves a generator half-run."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[RequestT | None] = asyncio.Queue()
        self.admission: Callable[[], Awaitable[object]] | None = None
        """Awaited before the first request is given, but no longer than ``_ADMISSION_S``."""

    def put(self, request: RequestT | None) -> None:
        self._queue.put_nowait(request)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RequestT:
        admission, self.admission = self.admission, None
        if admission is not None:
            with suppress(TimeoutError):  # a proxy may hold headers back until data follows
                await asyncio.wait_for(admission(), _ADMISSION_S)
        request = await self._queue.get()
        if request is None:
            raise StopAsyncIteration
        return request


class _Stream(Generic[RequestT, ResponseT]):
    """One stream, with a task that waits for its next response.

    If a write meets a stream that the server has ended, grpc.aio loses the status. A stream that replaces a broken one
    therefore sends the first of ``first`` once the server's headers show that it was admitted, and the others once the
    first has been answered.

    Args:
        method: the stream's method of a stub.
        first: requests to begin with.
    """

    def __init__(self, method: Any, first: Sequence[RequestT | None] = ()) -> None:
        self._outbox: _Outbox[RequestT] = _Outbox()
        self._held: list[RequestT | None] | None = None
        for request in first:
            self.send(request)
            if self._held is None:
                self._held = []
        self._call = method(self._outbox)
        if first:
            self._outbox.admission = self._call.initial_metadata
        self.reading: asyncio.Task[Any] = asyncio.create_task(self._call.read())

    def send(self, request: RequestT | None) -> None:
        """Send a request; None: there are no more."""
        if self._held is None:
            self._outbox.put(request)
        else:
            self._held.append(request)

    def received(self) -> ResponseT:
        """The response that ``reading`` has read; starts to read the next one.

        Raises:
            grpc.RpcError: the stream broke.
            asyncio.CancelledError: it was cancelled on this side.
            EOFError: the server ended it.
        """
        response = self.reading.result()
        if response is grpc.aio.EOF:
            raise EOFError
        self.reading = asyncio.create_task(self._call.read())
        held, self._held = self._held, None
        for request in held or ():
            self.send(request)
        answer: ResponseT = answers_of_server.readable(response)
        return answer

    async def finish(self, timeout_s: float) -> None:
        """Let the server end a stream that has been answered rather than cancel it; its status does not matter."""
        await asyncio.wait([self.reading], timeout=timeout_s)

    async def close(self) -> None:
        """Cancel the stream, if it has not ended."""
        self._call.cancel()
        self._outbox.put(None)  # if it has ended, gRPC's task would otherwise wait for the next request for ever
        self.reading.cancel()
        await asyncio.gather(self.reading, return_exceptions=True)
