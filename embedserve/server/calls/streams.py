"""Streams. Bidirectional ones: bounded read-ahead, responses in order, all work cancelled when the client hangs up.

A request is counted in the server's admission before the next one is read, so a stream holds at most one message more
than was admitted, however fast the client sends. When the server drains, reading ends; what was read is answered.
Streams in one direction belong to jobs that take minutes; they end when the server drains.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from embedserve.engine.admission import Admission
from embedserve.server.lifecycle.state import ServerState, shutting_down

_In = TypeVar("_In")
_Out = TypeVar("_Out")
_Begun = TypeVar("_Begun")
_Response = TypeVar("_Response")


class Cost(NamedTuple):
    """What one request counts in the read-ahead and in admission."""

    inputs: int
    """Images or items."""
    images: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class ReadAhead(Generic[_In]):
    """How far ahead a stream is read: ``window`` inputs, or one request, as long as ``admission`` has room for them."""

    window: int
    admission: Admission
    cost_of: Callable[[_In], Cost]
    readers: set[asyncio.Task[Any]]
    """Holds the reading task while it runs; a server that drains cancels it there."""


async def ordered(
    requests: AsyncIterator[_In],
    begin: Callable[[_In], tuple[_Begun, asyncio.Future[_Out]]],
    finish: Callable[[list[tuple[_Begun, _Out]]], Awaitable[Sequence[_Response]]],
    read_ahead: ReadAhead[_In],
) -> AsyncIterator[Sequence[_Response]]:
    """A response for every request, in the order of the requests, with at most a window of them in flight.

    Requests are finished in groups: the oldest as soon as it has its result, together with those right behind it that
    have theirs. While the responses of a group are sent, more requests are read, begun and finished. Finished requests
    no longer count in admission; so a client that does not read its responses stalls only its own stream.

    Args:
        requests: the stream.
        begin: starts the work on a request; returns what is needed to answer it, and the future of its result.
        finish: makes the responses of a group; they must not refer to the requests.
        read_ahead: how far to read ahead.

    An error of ``begin`` or ``finish`` ends the stream.
    """
    pipeline = _Pipeline(requests, begin, finish, read_ahead)
    try:
        while (responses := await pipeline.responses.get()) is not None:
            yield responses
            pipeline.sent(len(responses))
        pipeline.check()
    finally:
        pipeline.close()


async def until_drained(
    pieces: AsyncGenerator[_Out],
    state: ServerState,
    *,
    idle_s: float,
    is_last: Callable[[_Out], bool] = lambda _: False,
) -> AsyncGenerator[_Out | None]:
    """The pieces as they come, and None whenever none has come for ``idle_s``; closes ``pieces`` at the end.

    Args:
        pieces: the output of a long job.
        state: says when the server drains.
        idle_s: seconds without a piece after which None is yielded.
        is_last: whether a piece is the last one, after which a drain no longer matters.

    Raises:
        Unavailable: the server drains.
    """
    async with aclosing(pieces):
        while state.phase != "draining":
            coming: asyncio.Task[_Out | None] = asyncio.create_task(_next_or_none(pieces))
            state.readers.add(coming)
            coming.add_done_callback(state.readers.discard)
            try:
                while not (await asyncio.wait([coming], timeout=idle_s))[0]:
                    yield None
            finally:
                if coming.cancel():
                    await asyncio.wait([coming])  # pieces cannot be closed before
            if coming.cancelled():
                break
            if (piece := coming.result()) is None:
                return
            yield piece
            if is_last(piece):
                return
        raise shutting_down("ask again when it is back")


async def _next_or_none(pieces: AsyncGenerator[_Out]) -> _Out | None:
    return await anext(pieces, None)


class _Pipeline(Generic[_In, _Begun, _Out, _Response]):
    """Two tasks: one reads requests and begins them, as far ahead as allowed; one finishes them."""

    def __init__(
        self,
        requests: AsyncIterator[_In],
        begin: Callable[[_In], tuple[_Begun, asyncio.Future[_Out]]],
        finish: Callable[[list[tuple[_Begun, _Out]]], Awaitable[Sequence[_Response]]],
        read_ahead: ReadAhead[_In],
    ) -> None:
        self.responses: asyncio.Queue[Sequence[_Response] | None] = asyncio.Queue()
        """At most a window of them; None is the end."""
        self._read_ahead = read_ahead
        self._begun: deque[tuple[_Begun, asyncio.Future[_Out]]] = deque()
        self._costs: deque[Cost] = deque()
        """Of the requests that count in admission, the oldest first."""
        self._inputs: deque[int] = deque()
        """Inputs of each request that was read and whose response has not been sent, the oldest first."""
        self._in_window = 0
        self._window_changed = asyncio.Event()
        self._begun_changed = asyncio.Event()
        self._reading = asyncio.create_task(self._read(requests, begin))
        read_ahead.readers.add(self._reading)
        self._reading.add_done_callback(read_ahead.readers.discard)
        self._reading.add_done_callback(lambda _: self._begun_changed.set())
        self._finishing = asyncio.create_task(self._finish(finish))
        self._finishing.add_done_callback(lambda _: self.responses.put_nowait(None))

    async def _read(
        self, requests: AsyncIterator[_In], begin: Callable[[_In], tuple[_Begun, asyncio.Future[_Out]]]
    ) -> None:
        async for request in requests:
            cost = self._read_ahead.cost_of(request)
            while self._inputs and self._in_window + cost.inputs > self._read_ahead.window:
                self._window_changed.clear()
                await self._window_changed.wait()
            await self._read_ahead.admission.enter_stream(cost.images, cost.bytes)
            self._costs.append(cost)
            self._inputs.append(cost.inputs)
            self._in_window += cost.inputs
            self._begun.append(begin(request))
            self._begun_changed.set()
            del request  # free it during the wait for the next one, which may be long

    async def _finish(self, finish: Callable[[list[tuple[_Begun, _Out]]], Awaitable[Sequence[_Response]]]) -> None:
        while True:
            while not self._begun:
                if self._reading.done():
                    return
                self._begun_changed.clear()
                await self._begun_changed.wait()
            await asyncio.wait([self._begun[0][1]])
            group = []
            while self._begun and self._begun[0][1].done():
                begun, future = self._begun.popleft()
                group.append((begun, future.result()))
            responses = await finish(group)
            for _ in group:
                self._leave_admission()
            del group
            self.responses.put_nowait(responses)

    def sent(self, count: int) -> None:
        """The oldest ``count`` responses have been sent and leave the window."""
        for _ in range(count):
            self._in_window -= self._inputs.popleft()
        self._window_changed.set()

    def check(self) -> None:
        """Raise what reading, beginning or finishing raised.

        Raises:
            Unavailable: the server drains, and the client may have more to send.
        """
        if (failure := self._finishing.exception()) is not None:
            raise failure
        if self._reading.cancelled():
            raise shutting_down("send again what was not answered")
        if (failure := self._reading.exception()) is not None:
            raise failure

    def close(self) -> None:
        """Stop reading, cancel what has no response, and release its room in admission."""
        self._reading.cancel()
        self._finishing.cancel()
        for _, future in self._begun:
            future.cancel()
        while self._costs:
            self._leave_admission()

    def _leave_admission(self) -> None:
        if self._costs:  # ``close`` may have released everything meanwhile
            cost = self._costs.popleft()
            self._read_ahead.admission.leave_stream(cost.images, cost.bytes)
