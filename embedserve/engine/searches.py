"""Searches of many calls, spread over as many threads as cores; each takes the waiting work when it is free.

A search that finds a free thread is answered at once. While all are busy, searches with the same options on the same
collection go through the store together, which costs less than one by one; no search waits for later ones. The queries
of a large call are shared out among the free threads, and where several calls wait, each gets its turn in every round,
so a call of 64 does not hold back a call of one.
"""

from __future__ import annotations

import asyncio
import math
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from embedserve.engine.turn_queue import QueuedCall, TurnQueue
from embedserve.errors import DeadlineExceeded, EmbedserveError, Unavailable
from embedserve.store.protocol import VectorStore
from embedserve.types import CollectionIdentity, Hit, SearchOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MOST_TOGETHER = 64
"""Queries of several calls that go through the store together at most."""
_LEAST_SHARE = 16
"""Queries for which it is worth waking another thread."""


@dataclass(slots=True, eq=False)
class SearchCall(QueuedCall):
    """Queries that are answered together. Calls with the same options on one collection are one flow."""

    identity: CollectionIdentity
    options: SearchOptions
    queries: NDArray[np.float32]
    exclude_ids: Sequence[str | None]
    deadline: float
    """On time.monotonic's clock; infinity for none."""
    future: asyncio.Future[list[list[Hit]]]
    hits: list[list[Hit]]
    """For each query, once it is answered."""
    error: Exception | None = None


_Share: TypeAlias = tuple[SearchCall, int, int]
"""A call and the positions of queries taken of it: from the first to before the second."""


class Searches:
    """The threads that search a store, and the calls that wait for them. Belongs to the event loop it is made on."""

    def __init__(self, store: VectorStore, threads: int) -> None:
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._tokens: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._queue: TurnQueue[SearchCall] = TurnQueue()
        self._free = threads
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._work, name=f"search-{number}", daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    # --- On the event loop ---

    def submit(
        self,
        identity: CollectionIdentity,
        queries: NDArray[np.float32],
        options: SearchOptions,
        exclude_ids: Sequence[str | None],
        *,
        deadline: float | None = None,
    ) -> asyncio.Future[list[list[Hit]]]:
        """Search; cancelling the future takes back the queries that no thread has taken.

        Args:
            identity: the collection.
            queries: float32 [Q, D] with unit norm, Q at least 1.
            options: what is asked for.
            exclude_ids: as ``VectorStore.search`` takes them.
            deadline: when the caller stops waiting, on ``time.monotonic``'s clock.

        Returns:
            For each query its hits, as ``VectorStore.search`` returns them; or the error that it raises for this call,
            or DeadlineExceeded.

        Raises:
            Unavailable: this has been closed.
        """
        count = len(queries)
        call = SearchCall(
            (identity.uid, identity.name, _comparable(options)),
            count,
            identity,
            options,
            queries,
            exclude_ids,
            math.inf if deadline is None else deadline,
            self._loop.create_future(),
            [[] for _ in range(count)],
        )
        with self._lock:
            if self._stopping:
                raise Unavailable("the server is shutting down")
            self._queue.add(call)
        for _ in range(-(-count // _LEAST_SHARE)):
            self._tokens.put(True)
        call.future.add_done_callback(lambda future: self._take_back(call) if future.cancelled() else None)
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

    def _take_back(self, call: SearchCall) -> None:
        with self._lock:
            self._queue.take_back(call)

    def _deliver(self) -> None:
        with self._lock:
            answered, self._queue.answered = self._queue.answered, []
        for call in answered:
            if call.future.done():
                continue
            if call.error is None:
                call.future.set_result(call.hits)
            else:
                call.future.set_exception(call.error)

    # --- In the threads ---

    def _work(self) -> None:
        # A token only wakes a thread: it goes on while anything waits and sleeps when nothing does, and every call that
        # comes then brings tokens. A condition variable would do the same in Python, for 30 µs a search.
        while self._tokens.get():
            while self._answer_some():
                pass

    def _answer_some(self) -> bool:
        """Answer queries of the calls whose turn it is; whether there were any."""
        with self._lock:
            shares = self._queue.take_share(self._free, least=_LEAST_SHARE, most=_MOST_TOGETHER)
            if not shares:
                return False
            self._free -= 1
        now = time.monotonic()
        for call, _, _ in shares:
            if call.deadline <= now:
                self._fail(call, DeadlineExceeded("the deadline passed while the search waited"))
        self._answer(shares)
        with self._lock:
            self._free += 1
        return True

    def _answer(self, shares: list[_Share]) -> None:
        shares = [share for share in shares if not share[0].gone]
        if not shares:
            return
        try:
            found = self._search(shares)
        except Exception as error:
            if len(shares) == 1:
                self._fail(shares[0][0], error)
                return
        else:
            self._settle(shares, found)
            return
        # One of them may be to blame, and the others must not fail with it.
        for share in shares:
            self._answer([share])

    def _search(self, shares: list[_Share]) -> list[list[Hit]]:
        """The hits of each query, of all shares one after the other."""
        import numpy as np

        first = shares[0][0]
        parts = [call.queries[start:stop] for call, start, stop in shares]
        queries = parts[0] if len(parts) == 1 else np.concatenate(parts)
        found = self._store.search(
            first.identity.name,
            queries,
            first.options,
            [id for call, start, stop in shares for id in call.exclude_ids[start:stop]],
            uid=first.identity.uid,
        )
        if len(found) != len(queries):
            raise ValueError(f"the store answered {len(found)} of {len(queries)} queries")
        return found

    def _settle(self, shares: list[_Share], found: list[list[Hit]]) -> None:
        """Note hits, and wake the event loop, once, if calls are answered with them."""
        wake, position = False, 0
        with self._lock:
            for call, start, stop in shares:
                call.hits[start:stop] = found[position : position + stop - start]
                position += stop - start
                wake |= self._queue.settle(call, stop - start)
        if wake:
            self._loop.call_soon_threadsafe(self._deliver)

    def _fail(self, call: SearchCall, error: Exception) -> None:
        if isinstance(error, EmbedserveError):
            # Its frames hold the call, which holds the error: a cycle with all the queries in it.
            error.__traceback__ = error.__context__ = error.__cause__ = None
        with self._lock:
            if call.gone:  # cancelled, or failed with another share
                return
            call.error = error
            wake = self._queue.end(call)
        if wake:
            self._loop.call_soon_threadsafe(self._deliver)


def _comparable(options: SearchOptions) -> object:
    """Equal for options that ask for the same; ``==`` is not enough, since for it 1 and True are the same."""
    return options if options.filter is None else repr(options)
