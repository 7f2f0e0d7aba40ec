"""Bidirectional streams: bounded reading ahead, answers in order, nothing left running when the caller goes.

A request is counted in the server's admission before the next one is read, so that a stream holds one message more
than it was let in with, however fast its client sends. When the server drains, reading ends; what was read is answered.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
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
    readers: set[asyncio.Task[Any]]
    """Where the reading task is kept while it runs; cancelling it there ends the stream for a server that drains."""


async def ordered(
    requests: AsyncIterator[_In],
    begin: Callable[[_In], tuple[_Begun, asyncio.Future[_Out]]],
    intake: Intake[_In],
) -> AsyncIterator[tuple[_Begun, _Out]]:
    """What was begun with every request, a window at a time, and its result, in the order of the requests.

    Args:
        requests: the stream.
        begin: starts the work on a request; returns what is needed to answer it, and its result to come. What it raises
            ends the stream.
        intake: how far to read ahead.
    """
    begun: asyncio.Queue[tuple[_Begun, asyncio.Future[_Out]] | None] = asyncio.Queue()
    current: tuple[_Begun, asyncio.Future[_Out]] | None = None
    reading = _Reading(
        requests, intake, put=lambda request: begun.put_nowait(begin(request)), end=lambda: begun.put_nowait(None)
    )
    try:
        while (current := await begun.get()) is not None:
            yield current[0], await current[1]
            reading.answered(1)  # an answer that the client has not taken yet keeps its room
        reading.check()
    finally:
        reading.close()
        while current is not None or not begun.empty():
            if current is not None:
                current[1].cancel()
            current = None if begun.empty() else begun.get_nowait()


async def grouped(requests: AsyncIterator[_In], intake: Intake[_In]) -> AsyncIterator[list[_In]]:
    """The requests in groups of up to a window: whatever has come while the group before was worked on."""
    arrived: asyncio.Queue[_In | None] = asyncio.Queue()
    reading = _Reading(requests, intake, put=arrived.put_nowait, end=lambda: arrived.put_nowait(None))
    try:
        request = await arrived.get()
        while request is not None:
            group = [request]
            while not arrived.empty() and (request := arrived.get_nowait()) is not None:
                group.append(request)
            yield group
            reading.answered(len(group))
            if request is not None:
                request = await arrived.get()
        reading.check()
    finally:
        reading.close()


class _Reading(Generic[_In]):
    """Reads a stream in a task of its own, as far ahead as its intake allows.

    The queues that it fills are unbounded by themselves, so that their end can always be put in.
    """

    def __init__(
        self, requests: AsyncIterator[_In], intake: Intake[_In], *, put: Callable[[_In], None], end: Callable[[], None]
    ) -> None:
        self._intake = intake
        self._held: deque[Weight] = deque()
        self._inputs = 0
        self._left = asyncio.Event()
        self._task = asyncio.create_task(self._read(requests, put, end))
        intake.readers.add(self._task)
        self._task.add_done_callback(intake.readers.discard)

    async def _read(self, requests: AsyncIterator[_In], put: Callable[[_In], None], end: Callable[[], None]) -> None:
        try:
            async for request in requests:
                weight = self._intake.weigh(request)
                while self._held and self._inputs + weight.inputs > self._intake.window:
                    self._left.clear()
                    await self._left.wait()
                await self._intake.admission.enter_stream(weight.images, weight.bytes)
                self._held.append(weight)
                self._inputs += weight.inputs
                put(request)
        finally:
            end()

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
        if self._task.done() and (error := self._task.exception()) is not None:
            raise error

    def close(self) -> None:
        """Stop reading and give the room free of whatever was not answered."""
        self._task.cancel()
        while self._held:
            self._leave()

    def _leave(self) -> None:
        weight = self._held.popleft()
        self._inputs -= weight.inputs
        self._intake.admission.leave_stream(weight.images, weight.bytes)
