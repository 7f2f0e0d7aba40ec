"""Streams. Bidirectional ones: bounded reading ahead, answers in order, nothing left running when the caller goes.

A request is counted in the server's admission before the next one is read, so that a stream holds one message more
than it was let in with, however fast its client sends. When the server drains, reading ends; what was read is answered.
Streams in one direction belong to work that takes minutes; it ends when the server drains.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from embedserve.engine.admission import Admission
from embedserve.errors import Unavailable
from embedserve.server.lifecycle.state import ServerState

_In = TypeVar("_In")
_Out = TypeVar("_Out")
_Begun = TypeVar("_Begun")
_Answer = TypeVar("_Answer")


class Cost(NamedTuple):
    """What a request holds."""

    inputs: int
    """Images or items."""
    images: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class ReadAhead(Generic[_In]):
    """How far ahead a stream is read: ``window`` inputs, or one request, as long as ``admission`` has room for them."""

    window: int
    admission: Admission
    weigh: Callable[[_In], Cost]
    readers: set[asyncio.Task[Any]]
    """Where the reading task is kept while it runs; cancelling it there ends the stream for a server that drains."""


async def ordered(
    requests: AsyncIterator[_In],
    begin: Callable[[_In], tuple[_Begun, asyncio.Future[_Out]]],
    finish: Callable[[list[tuple[_Begun, _Out]]], Awaitable[Sequence[_Answer]]],
    intake: ReadAhead[_In],
) -> AsyncIterator[Sequence[_Answer]]:
    """An answer for every request, in the order of the requests, a window of them in work at a time.

    Requests are finished in groups: the next one as soon as its result is there, and those behind it whose are there by
    then too. More requests are read, begun and finished while a group's answers are taken. What is finished counts in
    admission no more; so a client that takes no answers holds up its own stream, by the window, and no other.

    Args:
        requests: the stream.
        begin: starts the work on a request; returns what is needed to answer it, and its result to come.
        finish: makes the answers of a group; from then on nothing may refer to their requests.
        intake: how far to read ahead.

    What ``begin`` and ``finish`` raise ends the stream.
    """
    work = _Work(requests, begin, finish, intake)
    try:
        while (answers := await work.answers.get()) is not None:
            yield answers
            work.answered(len(answers))
        work.check()
    finally:
        work.close()


async def until_drained(
    pieces: AsyncGenerator[_Out],
    state: ServerState,
    *,
    idle_s: float,
    is_last: Callable[[_Out], bool] = lambda _: False,
) -> AsyncGenerator[_Out | None]:
    """The pieces as they come, and None whenever none has come for ``idle_s``; they are closed at the end.

    Args:
        pieces: of work that takes long.
        state: says when the server drains.
        idle_s: how long to say nothing, in seconds.
        is_last: whether nothing comes after a piece, so that all is there even if the server drains by then.

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
                    await asyncio.wait([coming])  # before the pieces can be closed
            if coming.cancelled():
                break
            if (piece := coming.result()) is None:
                return
            yield piece
            if is_last(piece):
                return
        raise Unavailable("the server is shutting down", hint="ask again when it is back")


async def _next_or_none(pieces: AsyncGenerator[_Out]) -> _Out | None:
    return await anext(pieces, None)


class _Work(Generic[_In, _Begun, _Out, _Answer]):
    """A task that reads a stream and begins, as far ahead as its intake allows, and one that finishes."""

    def __init__(
        self,
        requests: AsyncIterator[_In],
        begin: Callable[[_In], tuple[_Begun, asyncio.Future[_Out]]],
        finish: Callable[[list[tuple[_Begun, _Out]]], Awaitable[Sequence[_Answer]]],
        intake: ReadAhead[_In],
    ) -> None:
        self.answers: asyncio.Queue[Sequence[_Answer] | None] = asyncio.Queue()
        """No more than a window of them; None is the end."""
        self._intake = intake
        self._begun: deque[tuple[_Begun, asyncio.Future[_Out]]] = deque()
        self._weights: deque[Cost] = deque()
        """Of what was begun and counts in admission, the oldest first."""
        self._inputs: deque[int] = deque()
        """How many inputs each request has that was read and whose answer has not been taken, the oldest first."""
        self._in_window = 0
        self._left = asyncio.Event()
        self._changed = asyncio.Event()
        self._reading = asyncio.create_task(self._read(requests, begin))
        intake.readers.add(self._reading)
        self._reading.add_done_callback(intake.readers.discard)
        self._reading.add_done_callback(lambda _: self._changed.set())
        self._finishing = asyncio.create_task(self._finish(finish))
        self._finishing.add_done_callback(lambda _: self.answers.put_nowait(None))

    async def _read(
        self, requests: AsyncIterator[_In], begin: Callable[[_In], tuple[_Begun, asyncio.Future[_Out]]]
    ) -> None:
        async for request in requests:
            weight = self._intake.weigh(request)
            while self._inputs and self._in_window + weight.inputs > self._intake.window:
                self._left.clear()
                await self._left.wait()
            await self._intake.admission.enter_stream(weight.images, weight.bytes)
            self._weights.append(weight)
            self._inputs.append(weight.inputs)
            self._in_window += weight.inputs
            self._begun.append(begin(request))
            self._changed.set()
            del request  # while the next one is waited for, which may be long

    async def _finish(self, finish: Callable[[list[tuple[_Begun, _Out]]], Awaitable[Sequence[_Answer]]]) -> None:
        while True:
            while not self._begun:
                if self._reading.done():
                    return
                self._changed.clear()
                await self._changed.wait()
            await asyncio.wait([self._begun[0][1]])
            group = []
            while self._begun and self._begun[0][1].done():
                begun, future = self._begun.popleft()
                group.append((begun, future.result()))
            answers = await finish(group)
            for _ in group:
                self._let_go()
            del group
            self.answers.put_nowait(answers)

    def answered(self, count: int) -> None:
        """The oldest answers have been taken: there is room in the window."""
        for _ in range(count):
            self._in_window -= self._inputs.popleft()
        self._left.set()

    def check(self) -> None:
        """Raise what reading, beginning or finishing raised.

        Raises:
            Unavailable: the server drains, and the client may have had more to send.
        """
        if (failure := self._finishing.exception()) is not None:
            raise failure
        if self._reading.cancelled():
            raise Unavailable("the server is shutting down", hint="send what was not answered again")
        if (failure := self._reading.exception()) is not None:
            raise failure

    def close(self) -> None:
        """Stop reading, take back what has no answer, and give its room free."""
        self._reading.cancel()
        self._finishing.cancel()
        for _, future in self._begun:
            future.cancel()
        while self._weights:
            self._let_go()

    def _let_go(self) -> None:
        if self._weights:  # else all has been let go, since the stream was closed meanwhile
            weight = self._weights.popleft()
            self._intake.admission.leave_stream(weight.images, weight.bytes)
