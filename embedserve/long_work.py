"""Work that takes minutes, in threads of its own; the event loop takes what it gives, and gives what it takes.

Nothing is held but a few pieces. Where nobody waits for a work any more, it is told so with an exception at the next
piece that it gives or takes, so that it ends and cleans up behind itself.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")
_ResultT = TypeVar("_ResultT")

_THREADS = 2
_PIECES_AHEAD = 2


class Ended(Exception):
    """Raised in a work that nobody waits for any more."""


class LongWork:
    """Runs ``threads`` works at a time; others wait for their turn, and hold nothing meanwhile."""

    def __init__(self, threads: int = _THREADS) -> None:
        self._pool = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="long-work")

    async def given_by(self, work: Callable[[Callable[[_T], None]], None]) -> AsyncGenerator[_T]:
        """The pieces that ``work`` gives to the function that it is called with, in order.

        That function waits where two pieces have not been taken yet. Closing the iterator ends the work.
        """
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[_T] = asyncio.Queue(_PIECES_AHEAD)
        ended = threading.Event()

        def give(piece: _T) -> None:
            if not ended.is_set():
                asyncio.run_coroutine_threadsafe(pieces.put(piece), loop).result()
            if ended.is_set():
                raise Ended

        working = loop.run_in_executor(self._pool, work, give)
        try:
            while not (working.done() and pieces.empty()):
                if pieces.empty():
                    taking = asyncio.ensure_future(pieces.get())
                    either: list[asyncio.Future[Any]] = [working, taking]
                    try:
                        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        taking.cancel()
                    if taking.done() and not taking.cancelled():
                        yield taking.result()
                else:
                    yield pieces.get_nowait()
            working.result()
        finally:
            ended.set()
            while not pieces.empty():  # so that a piece that waits for room finds some
                pieces.get_nowait()
            if not working.cancel() and not working.cancelled():
                working.exception()  # what it ended with, after nobody waited for it, is nobody's concern

    async def taken_by(self, work: Callable[[Iterator[_T]], _ResultT], pieces: AsyncIterator[_T]) -> _ResultT:
        """What ``work`` returns of the pieces, which are taken one by one as it asks for them.

        What ``pieces`` raises is raised in the work, and from there here.
        """
        loop = asyncio.get_running_loop()
        taken = _Taken(pieces, loop)
        try:
            return await loop.run_in_executor(self._pool, work, taken)
        finally:
            taken.end()

    async def close(self) -> None:
        """Wait until all work has ended. Calls that wait for some are to be gone by then."""
        await asyncio.to_thread(self._pool.shutdown, cancel_futures=True)


class _Taken(Iterator[_T], Generic[_T]):
    """Pieces that come on the event loop, for a thread."""

    def __init__(self, pieces: AsyncIterator[_T], loop: asyncio.AbstractEventLoop) -> None:
        self._pieces = pieces
        self._loop = loop
        self._lock = threading.Lock()
        self._next: concurrent.futures.Future[_T] | None = None
        self._has_ended = False

    def __next__(self) -> _T:
        with self._lock:
            if self._has_ended:
                raise Ended
            self._next = asyncio.run_coroutine_threadsafe(self._take(), self._loop)
        try:
            return self._next.result()
        except StopAsyncIteration:
            raise StopIteration from None
        except concurrent.futures.CancelledError:
            raise Ended from None

    async def _take(self) -> _T:
        return await anext(self._pieces)

    def end(self) -> None:
        """Nobody waits for the work any more."""
        with self._lock:
            self._has_ended = True
            if self._next is not None:
                self._next.cancel()
