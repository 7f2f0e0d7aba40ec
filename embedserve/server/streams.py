"""Bidirectional streams: bounded reading ahead, answers in order, nothing left running when the caller goes.

A request is counted in the server's admission before the next one is read, so that a stream holds one message more
than it was let in with, however fast its client sends. When the server drains, reading ends; what was read is answered.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

from embedserve.admission import Admission
from embedserve.errors import Unavailable

_In = TypeVar("_In")
_Out = TypeVar("_Out")
_Begun = TypeVar("_Begun")


class Weight(NamedTuple):
    """What a request holds."""

    inputs: int
    """Images or items."""
    images: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Intake(Generic[_In]):
    """How far ahead a stream is read: ``window`` inputs, or one request, as long as ``admission`` has room for them."""

    window: int
    admission: Admission
    weigh: Callable[[_In], Weight]
    keeps_inputs: bool = True
    """Whether what was begun still refers to the inputs when its work is done. They count in admission until they are
    answered then, and otherwise until the work is done: answers that a client does not take hold up his own stream, by
    its window, and no other."""
    readers: set[asyncio.Task[Any]]
    """Where the reading task is kept while it runs; cancelling it there ends the stream for a server that drains."""


async def ordered(
    requests: AsyncIterator[_In],
    begin: Callable[[_In], tuple[_Begun, asyncio.Future[_Out]]],
    intake: Intake[_In],
) -> AsyncIterator[list[tuple[_Begun, _Out]]]:
    """What was begun with every request, a window at a time, and its result, in the order of the requests.

    Results come in groups: the next one as soon as it is there, and those behind it that are there by then too. More
    requests are read and worked on while a group is answered.

    Args:
        requests: the stream.
        begin: starts the work on a request; returns what is needed to answer it, and its result to come. What it raises
            ends the stream.
        intake: how far to read ahead.
    """
    reading = _Reading(requests, begin, intake)
    try:
        while await reading.has_more():
            await asyncio.wait([reading.begun[0][1]])
            group = []
            while reading.begun and reading.begun[0][1].done():
                begun, future = reading.begun.popleft()
                group.append((begun, future.result()))
            yield group
            reading.answered(len(group))
        reading.check()
    finally:
        reading.close()


@dataclass(slots=True, eq=False)
class _Held:
    """A request that was read and whose answer has not been taken."""

    weight: Weight
    counts: bool = True
    """In admission."""


class _Reading(Generic[_In, _Begun, _Out]):
    """Reads a stream in a task of its own, as far ahead as its intake allows."""

    def __init__(
        self,
        requests: AsyncIterator[_In],
        begin: Callable[[_In], tuple[_Begun, asyncio.Future[_Out]]],
        intake: Intake[_In],
    ) -> None:
        self.begun: deque[tuple[_Begun, asyncio.Future[_Out]]] = deque()
        """What has no answer yet, the oldest first."""
        self._intake = intake
        self._held: deque[_Held] = deque()
        self._inputs = 0
        self._left = asyncio.Event()
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._read(requests, begin))
        intake.readers.add(self._task)
        self._task.add_done_callback(intake.readers.discard)
        self._task.add_done_callback(lambda _: self._changed.set())

    async def _read(
        self, requests: AsyncIterator[_In], begin: Callable[[_In], tuple[_Begun, asyncio.Future[_Out]]]
    ) -> None:
        async for request in requests:
            weight = self._intake.weigh(request)
            while self._held and self._inputs + weight.inputs > self._intake.window:
                self._left.clear()
                await self._left.wait()
            await self._intake.admission.enter_stream(weight.images, weight.bytes)
            held = _Held(weight)
            self._held.append(held)
            self._inputs += weight.inputs
            entry = begin(request)
            if not self._intake.keeps_inputs:
                entry[1].add_done_callback(partial(self._let_go, held))
            self.begun.append(entry)
            self._changed.set()
            del request  # while the next one is waited for, which may be long

    async def has_more(self) -> bool:
        """Wait until something is begun; False when all is answered and nothing comes any more."""
        while not self.begun:
            if self._task.done():
                return False
            self._changed.clear()
            await self._changed.wait()
        return True

    def answered(self, count: int) -> None:
        """The oldest requests have been answered: there is room for as many others."""
        for _ in range(count):
            self._leave()
        self._left.set()

    def check(self) -> None:
        """Raise what reading raised.

        Raises:
            Unavailable: the server drains, and the client may have had more to send.
        """
        if self._task.cancelled():
            raise Unavailable("the server is shutting down", hint="send what was not answered again")
        if (error := self._task.exception()) is not None:
            raise error

    def close(self) -> None:
        """Stop reading, take back what has no answer, and give its room free."""
        self._task.cancel()
        for _, future in self.begun:
            future.cancel()
        while self._held:
            self._leave()

    def _leave(self) -> None:
        held = self._held.popleft()
        self._inputs -= held.weight.inputs
        self._let_go(held)

    def _let_go(self, held: _Held, _: object = None) -> None:
        if held.counts:
            held.counts = False
            self._intake.admission.leave_stream(held.weight.images, held.weight.bytes)
