"""Searches of many calls, spread over threads: as many as cores, each taking what is there at the moment it is free.

A search that finds a free thread is answered at once. While all are busy, those that wait and ask for the same of the
same collection go through the store together, which costs less than one by one; nobody waits so that others may come.
The queries of a large call are shared out among the threads that are free, and where several calls wait, every one of
them gets its turn in each round, so that a call of 64 does not hold back a call of one.
"""

from __future__ import annotations

import asyncio
import math
import queue
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from embedserve.errors import DeadlineExceeded, EmbedserveError, Unavailable
from embedserve.store.protocol import VectorStore
from embedserve.types import CollectionIdentity, Hit, SearchOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_TOGETHER = 64
"""Queries of several calls that go through the store together at most."""
_LEAST_SHARE = 16
"""Queries for which it is worth waking another thread."""


@dataclass(slots=True, eq=False)
class _Call:
    """Queries that are answered together."""

    queries: NDArray[np.float32]
    exclude_ids: Sequence[str | None]
    deadline: float
    """On time.monotonic's clock; infinity for none."""
    future: asyncio.Future[list[list[Hit]]]
    hits: list[list[Hit]]
    """Of each query, once it is answered."""
    left: int
    """Queries that are not answered."""
    taken: int = 0
    """Queries that a thread has taken; this is the next one's position."""
    error: Exception | None = None
    gone: bool = False
    """Nobody waits for its answer any more, or it has failed."""

    @property
    def waiting(self) -> int:
        """Queries that no thread has taken."""
        return len(self.queries) - self.taken


@dataclass(slots=True, eq=False)
class _Alike:
    """Calls that ask for the same of one collection."""

    bound: CollectionIdentity
    options: SearchOptions
    calls: deque[_Call] = field(default_factory=deque)
    """In the order in which they are to be served."""
    waiting: int = 0
    """Queries that no thread has taken."""


_Part: TypeAlias = tuple[_Call, int, int]
"""A call and the positions of the queries that were taken of it: from the first to before the second."""


class Searches:
    """The threads that search a store, and what waits for them. Belongs to the event loop that it is made on."""

    def __init__(self, store: VectorStore, threads: int) -> None:
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._tokens: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._waiting: OrderedDict[object, _Alike] = OrderedDict()  # the next one first
        self._free = threads
        self._done: list[_Call] = []
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._work, name=f"search-{number}", daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    # --- On the event loop ---

    def submit(
        self,
        bound: CollectionIdentity,
        queries: NDArray[np.float32],
        options: SearchOptions,
        exclude_ids: Sequence[str | None],
        *,
        deadline: float | None = None,
    ) -> asyncio.Future[list[list[Hit]]]:
        """Search; cancelling the future takes back whatever no thread has begun.

        Args:
            bound: the collection.
            queries: float32 [Q, D] with unit norm, Q at least 1.
            options: what is asked for.
            exclude_ids: as ``VectorStore.search`` takes them.
            deadline: when the answer is no longer wanted, on ``time.monotonic``'s clock.

        Returns:
            For each query its hits, as ``VectorStore.search`` returns them; or the error that it raises for this call,
            or DeadlineExceeded.

        Raises:
            Unavailable: this has been closed.
        """
        count = len(queries)
        call = _Call(
            queries,
            exclude_ids,
            math.inf if deadline is None else deadline,
            self._loop.create_future(),
            [[] for _ in range(count)],
            count,
        )
        key = (bound.uid, bound.name, _identity(options))
        with self._lock:
            if self._stopping:
                raise Unavailable("the server is shutting down")
            alike = self._waiting.get(key)
            if alike is None:
                alike = self._waiting[key] = _Alike(bound, options)
            alike.calls.append(call)
            alike.waiting += count
        for _ in range(-(-count // _LEAST_SHARE)):
            self._tokens.put(True)
        call.future.add_done_callback(lambda future: self._take_back(key, call) if future.cancelled() else None)
        return call.future

    async def close(self) -> None:
        """Finish what was submitted, then stop."""
        with self._lock:
            self._stopping = True
        for _ in self._threads:
            self._tokens.put(False)  # behind all that was submitted
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        self._deliver()

    def _take_back(self, key: object, call: _Call) -> None:
        with self._lock:
            call.gone = True
            alike = self._waiting.get(key)
            if alike is not None and call in alike.calls:
                alike.calls.remove(call)
                alike.waiting -= call.waiting
                if not alike.calls:
                    del self._waiting[key]

    def _deliver(self) -> None:
        with self._lock:
            done, self._done = self._done, []
        for call in done:
            if call.future.done():
                continue
            if call.error is None:
                call.future.set_result(call.hits)
            else:
                call.future.set_exception(call.error)

    # --- In the threads ---

    def _work(self) -> None:
        # A token only wakes a thread: it goes on while anything waits, and sleeps when nothing does, and whatever comes
        # then brings tokens. A condition variable would do the same in Python, for 30 µs a search.
        while self._tokens.get():
            while self._answer_some():
                pass

    def _answer_some(self) -> bool:
        """Answer those whose turn it is; whether there were any."""
        with self._lock:
            if not self._waiting:
                return False
            alike, parts = self._take()
            self._free -= 1
        if parts:
            self._answer(alike, parts)
        with self._lock:
            self._free += 1
        return True

    def _take(self) -> tuple[_Alike, list[_Part]]:
        """The queries whose turn it is: some of every call that waits, as far as there is room. Needs the lock."""
        key, alike = next(iter(self._waiting.items()))
        share = -(-alike.waiting // self._free)  # the other threads that are free take as much
        share = min(max(share, _LEAST_SHARE), _TOGETHER)
        now, parts = time.monotonic(), []
        calls = alike.calls
        of_each = max(share // len(calls), 1)
        for _ in range(min(len(calls), share)):
            call = calls.popleft()
            if call.gone:  # it failed with an earlier part
                alike.waiting -= call.waiting
                continue
            if call.deadline <= now:
                alike.waiting -= call.waiting
                self._settle(call, 0, DeadlineExceeded("the deadline passed while the search waited"))
                continue
            count = min(call.waiting, of_each)
            parts.append((call, call.taken, call.taken + count))
            call.taken += count
            alike.waiting -= count
            if call.waiting:
                calls.append(call)
        if calls:
            self._waiting.move_to_end(key)
        else:
            del self._waiting[key]
        return alike, parts

    def _answer(self, alike: _Alike, parts: list[_Part]) -> None:
        parts = [part for part in parts if not part[0].gone]
        try:
            found = self._search(alike, parts) if parts else []
        except Exception as error:
            if len(parts) == 1:
                self._settle_all([(parts[0], error)])
                return
        else:
            self._settle_all(list(zip(parts, found, strict=True)))
            return
        # One of them may be to blame, and the others are not to suffer for it.
        for part in parts:
            self._answer(alike, [part])

    def _search(self, alike: _Alike, parts: list[_Part]) -> list[list[list[Hit]]]:
        """For each part the hits of its queries."""
        import numpy as np

        queries = [call.queries[start:stop] for call, start, stop in parts]
        found = self._store.search(
            alike.bound.name,
            queries[0] if len(queries) == 1 else np.concatenate(queries),
            alike.options,
            [id for call, start, stop in parts for id in call.exclude_ids[start:stop]],
            uid=alike.bound.uid,
        )
        remaining = iter(found)
        return [[next(remaining) for _ in range(start, stop)] for _, start, stop in parts]

    def _settle_all(self, settled: Sequence[tuple[_Part, list[list[Hit]] | Exception]]) -> None:
        with self._lock:
            for (call, start, stop), result in settled:
                if isinstance(result, Exception):
                    self._settle(call, stop - start, result)
                else:
                    call.hits[start:stop] = result
                    self._settle(call, stop - start, None)

    def _settle(self, call: _Call, answered: int, error: Exception | None) -> None:
        """Note that queries are answered, and wake the event loop, once, if calls are with them. Needs the lock."""
        call.left -= answered
        if call.gone:
            return
        if error is not None:
            if isinstance(error, EmbedserveError):
                # Its frames hold the call, which holds the error: a cycle with all the queries in it.
                error.__traceback__ = error.__context__ = error.__cause__ = None
            call.error, call.gone = error, True
        if error is not None or not call.left:
            self._done.append(call)
            if len(self._done) == 1:
                self._loop.call_soon_threadsafe(self._deliver)


def _identity(options: SearchOptions) -> object:
    """Equal for options that ask for the same; ``==`` is not enough, since for it 1 and True are the same."""
    return options if options.filter is None else repr(options)
