"""Bulk over a stream for asyncio: as ``streams.answers``, with inputs taken in a worker thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Generic, Self, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from embedserve.client.parts import Part
from embedserve.client.streams import Exchange
from embedserve.errors import Unavailable

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)

_ADMISSION_S = 1.0


async def answers(
    method: Any,
    parts: Iterator[Part[RequestT]],
    exchange: Exchange[RequestT, ResponseT],
    is_closed: Callable[[], bool],
) -> AsyncGenerator[tuple[Part[RequestT], ResponseT | None]]:
    """Each part with its response, or None if it had nothing to send, in order.

    Args:
        method: the stream's method of a stub.
        parts: taken in a worker thread, as far ahead as ``exchange`` has room.
        exchange: a new one.
        is_closed: whether the client has been closed.
    """
    stream: _Stream[RequestT, ResponseT] | None = None
    taking: asyncio.Task[Part[RequestT] | None] | None = None
    try:
        while True:
            while (refused := exchange.refused()) is not None:
                yield refused, None
            if exchange.done:
                if stream is not None:
                    await stream.finish(exchange.remaining_s())
                return
            if taking is None and exchange.has_room:
                taking = asyncio.create_task(asyncio.to_thread(next, parts, None))
            waiting: tuple[asyncio.Task[Any] | None, ...] = (taking, stream.reading if stream is not None else None)
            over, _ = await asyncio.wait(
                [task for task in waiting if task is not None],
                timeout=None if exchange.idle else exchange.remaining_s(),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not over:
                raise exchange.late()
            if taking is not None and taking in over:
                part, taking = taking.result(), None
                exchange.take(part)
                if part is None and stream is not None:
                    stream.send(None)
                elif part is not None and part.request is not None:
                    if stream is None:
                        stream = _Stream(method)
                    stream.send(part.request)
            elif stream is not None:
                try:
                    response = stream.received()
                except (grpc.RpcError, asyncio.CancelledError) as error:  # the call is cancelled, not the caller
                    if is_closed():
                        raise Unavailable("the call was cancelled: the client was closed") from error
                    await stream.close()
                    stream = None
                    if not exchange.idle:
                        await asyncio.sleep(exchange.pause_s(error if isinstance(error, grpc.RpcError) else None))
                        stream = _Stream(method, exchange.unanswered())
                        if exchange.ended:
                            stream.send(None)
                except EOFError:
                    raise exchange.cut_short() from None
                else:
                    yield exchange.answered(response), response
    finally:
        if taking is not None:
            taking.cancel()  # its thread ends when the caller's iterator gives it the next input
            await asyncio.wait([taking])
        if stream is not None:
            await stream.close()


class _Outbox(Generic[RequestT]):
    """The requests of one stream as they come; no generator, since gRPC leaves those half-run when it is cancelled."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[RequestT | None] = asyncio.Queue()
        self.admission: Callable[[], Awaitable[object]] | None = None
        """What is awaited, but not for long, before the first request is given."""

    def put(self, request: RequestT | None) -> None:
        self._queue.put_nowait(request)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RequestT:
        admission, self.admission = self.admission, None
        if admission is not None:
            with suppress(TimeoutError):  # something in between may hold headers back until there is more
                await asyncio.wait_for(admission(), _ADMISSION_S)
        request = await self._queue.get()
        if request is None:
            raise StopAsyncIteration
        return request


class _Stream(Generic[RequestT, ResponseT]):
    """One stream, with a task that waits for its next response.

    Where a write meets a stream that the server has ended, grpc.aio forgets why it did. A stream that follows one that
    broke therefore sends the first of ``again`` only when the server has let it in, as its headers say, and the rest
    only when the first was answered: it will know.
    """

    def __init__(self, method: Any, again: Sequence[RequestT] = ()) -> None:
        self._outbox: _Outbox[RequestT] = _Outbox()
        self._held: list[RequestT | None] | None = None
        for request in again:
            self.send(request)
            if self._held is None:
                self._held = []
        self._call = method(self._outbox)
        if again:
            self._outbox.admission = self._call.initial_metadata
        self.reading: asyncio.Task[Any] = asyncio.create_task(self._call.read())

    def send(self, request: RequestT | None) -> None:
        """Send a request; None: there are no more."""
        if self._held is None:
            self._outbox.put(request)
        else:
            self._held.append(request)

    def received(self) -> ResponseT:
        """What ``reading`` has read; the next is read from now on.

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
        answer: ResponseT = response
        return answer

    async def finish(self, timeout_s: float) -> None:
        """Let the server end a stream that has been answered, rather than cancel it; how it ends does not matter."""
        await asyncio.wait([self.reading], timeout=timeout_s)

    async def close(self) -> None:
        """Cancel the stream, if it has not ended."""
        self._call.cancel()
        self._outbox.put(None)  # where it has ended, gRPC's task for the requests would wait for the next one for ever
        self.reading.cancel()
        await asyncio.gather(self.reading, return_exceptions=True)
