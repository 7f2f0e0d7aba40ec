"""Jobs that take minutes, in their own threads; pieces of what they make or read pass through the event loop.

Only a few pieces are held at a time. A job whose caller has gone gets an exception at the next piece that it
yields or takes, or at its next check, so that it ends and cleans up.
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
"""Jobs take seconds to hours; a caller that is refused may ask again before the first of those ahead has ended."""


class Ended(Exception):
    """Raised in a job whose caller has gone."""


class Jobs:
    """Runs ``threads`` jobs at a time; at most ``most_waiting`` others wait, and hold nothing yet."""

    def __init__(self, threads: int = _THREADS, most_waiting: int = _MOST_WAITING) -> None:
        self._pool = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="job")
        self._most = threads + most_waiting
        self._lock = threading.Lock()
        self._count = 0

    async def produce(self, job: Callable[[Callable[[_T], None], Callable[[], None]], None]) -> AsyncGenerator[_T]:
        """The pieces that a job gives, in order. Closing the iterator ends the job.

        Args:
            job: called with two functions. The first gives a piece, and blocks while two have not been taken yet; the
                second is to be called from time to time. Both raise Ended once the iterator is closed.

        Raises:
            Overloaded: too many jobs wait already.
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

        running = asyncio.wrap_future(self._begin(lambda: job(give, check)))
        try:
            while not (running.done() and pieces.empty()):
                if pieces.empty():
                    taking = asyncio.ensure_future(pieces.get())
                    either: list[asyncio.Future[Any]] = [running, taking]
                    try:
                        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        taking.cancel()
                    if taking.done() and not taking.cancelled():
                        yield taking.result()
                else:
                    yield pieces.get_nowait()
            running.result()
        finally:
            ended.set()
            while not pieces.empty():  # so that a piece that waits for room finds some
                pieces.get_nowait()
            if not running.cancel() and not running.cancelled():
                running.exception()  # retrieved, or asyncio would log it: no caller is left to raise it to

    async def consume(
        self, job: Callable[[Iterator[_T], Callable[[], None]], _ResultT], pieces: AsyncIterator[_T]
    ) -> _ResultT:
        """What a job returns; it takes the pieces one by one, as it asks for them.

        Cancelling this ends the job, and this is cancelled once the job has ended. A job that is past the point where
        it could end runs to its end, and this returns what it returned: what was done is never reported as undone.

        Args:
            job: called with the pieces, and with a function that is to be called from time to time. Both raise Ended
                once this is cancelled.
            pieces: what they raise is raised in the job, and passes through it to here.

        Raises:
            Overloaded: too many jobs wait already.
        """
        taken = _Taken(pieces, asyncio.get_running_loop())
        begun = self._begin(lambda: job(taken, taken.check))
        running = asyncio.wrap_future(begun)
        # Retrieved, or asyncio would log it where this is cancelled a second time.
        running.add_done_callback(lambda future: future.cancelled() or future.exception())
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError:
            taken.end()
            if begun.cancel():  # it had not begun
                raise
            await asyncio.wait([running])
            if isinstance(running.exception(), Ended):
                raise
        finally:
            taken.end()
        return running.result()

    def _begin(self, job: Callable[[], _ResultT]) -> concurrent.futures.Future[_ResultT]:
        with self._lock:
            if self._count >= self._most:
                raise Overloaded(
                    f"{self._count} checks, backups and restores are running or queued",
                    retry_after_ms=_RETRY_AFTER_MS,
                )
            running = self._pool.submit(job)
            self._count += 1
        running.add_done_callback(self._end)
        return running

    def _end(self, _: object) -> None:
        with self._lock:
            self._count -= 1

    async def close(self) -> None:
        """Wait until all jobs have ended; their callers must be gone by then."""
        await asyncio.to_thread(self._pool.shutdown, cancel_futures=True)


class _Taken(Iterator[_T], Generic[_T]):
    """Pieces that arrive on the event loop, as an iterator for a thread."""

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
        """Return while the caller waits.

        Raises:
            Ended: it has gone.
        """
        if self._has_ended:
            raise Ended

    async def _take(self) -> _T:
        return await anext(self._pieces)

    def end(self) -> None:
        """The caller has gone: end the job at its next piece or check."""
        with self._lock:
            self._has_ended = True
            if self._next is not None:
                self._next.cancel()
