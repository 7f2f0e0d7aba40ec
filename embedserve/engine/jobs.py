"""Work that takes minutes, in threads of its own; the event loop takes what it gives, and gives what it takes.

Nothing is held but a few pieces. Where nobody waits for a work any more, it is told so with an exception, at the next
piece that it gives or takes or when it asks, so that it ends and cleans up behind itself.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import Any, Generic, TypeVar

from embedserve.errors import Overloaded

_T = TypeVar("_T")
_ResultT = TypeVar("_ResultT")

_THREADS = 2
_PIECES_AHEAD = 2
_MOST_WAITING = 16
_RETRY_AFTER_MS = 10_000
"""Works take seconds to hours; whoever is refused may ask again before the first of those in front has ended."""


class Ended(Exception):
    """Raised in a work that nobody waits for any more."""


class LongWork:
    """Runs ``threads`` works at a time; ``most_waiting`` others at most wait for their turn, and hold nothing yet."""

    def __init__(self, threads: int = _THREADS, most_waiting: int = _MOST_WAITING) -> None:
        self._pool = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="long-work")
        self._most = threads + most_waiting
        self._lock = threading.Lock()
        self._works = 0

    async def given_by(self, work: Callable[[Callable[[_T], None], Callable[[], None]], None]) -> AsyncGenerator[_T]:
        """The pieces of a work, in order. Closing the iterator ends the work.

        Args:
            work: is called with two functions. The first takes a piece, and waits where two have not been taken yet;
                the second is to be called now and then. Both raise Ended where nobody waits any more.

        Raises:
            Overloaded: too many wait already.
        """
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[_T] = asyncio.Queue(_PIECES_AHEAD)
        ended = threading.Event()

        def give(piece: _T) -> None:
            if not ended.is_set():
                asyncio.run_coroutine_threadsafe(pieces.put(piece), loop).result()
            check()

        def check() -> None:
            if ended.is_set():
                raise Ended

        working = asyncio.wrap_future(self._begin(lambda: work(give, check)))
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

    async def taken_by(
        self, work: Callable[[Iterator[_T], Callable[[], None]], _ResultT], pieces: AsyncIterator[_T]
    ) -> _ResultT:
        """What a work returns of the pieces, which are taken one by one as it asks for them.

        Cancelling this ends the work, and it is cancelled once the work has ended. A work that was too far for that
        goes on to its end, and this returns what it returned: what was done is never called undone.

        Args:
            work: is called with the pieces, and with a function that is to be called now and then. Both raise Ended
                where nobody waits any more.
            pieces: what they raise is raised in the work, and from there here.

        Raises:
            Overloaded: too many wait already.
        """
        taken = _Taken(pieces, asyncio.get_running_loop())
        begun = self._begin(lambda: work(taken, taken.check))
        working = asyncio.wrap_future(begun)
        # Where this is cancelled once more, what the work ended with is nobody's concern.
        working.add_done_callback(lambda future: future.cancelled() or future.exception())
        try:
            await asyncio.wait([working])
        except asyncio.CancelledError:
            taken.end()
            if begun.cancel():  # its turn had not come
                raise
            await asyncio.wait([working])
            if isinstance(working.exception(), Ended):
                raise
        finally:
            taken.end()
        return working.result()

    def _begin(self, work: Callable[[], _ResultT]) -> concurrent.futures.Future[_ResultT]:
        with self._lock:
            if self._works >= self._most:
                raise Overloaded(
                    f"{self._works} checks, backups and restores are under way or wait for their turn",
                    retry_after_ms=_RETRY_AFTER_MS,
                )
            working = self._pool.submit(work)
            self._works += 1
        working.add_done_callback(self._end)
        return working

    def _end(self, _: object) -> None:
        with self._lock:
            self._works -= 1

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

    def check(self) -> None:
        """End the work where nobody waits for it.

        Raises:
            Ended: nobody does.
        """
        if self._has_ended:
            raise Ended

    async def _take(self) -> _T:
        return await anext(self._pieces)

    def end(self) -> None:
        """Nobody waits for the work any more."""
        with self._lock:
            self._has_ended = True
            if self._next is not None:
                self._next.cancel()
