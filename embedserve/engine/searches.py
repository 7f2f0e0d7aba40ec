"""Searches of many calls, spread over as many threads as cores; each takes the waiting work when it is free.

A search that finds a free thread is answered at once. While all are busy, searches with the same options on the same
collection go through the store together, which costs less than one by one; no search waits for later ones. The queries
of a large call are shared out among the free threads, and where several calls wait, each gets its turn in every round,
so a call of 64 does not hold back a call of one.

Queries that are searched together are searched until all of their callers have left.
"""

from __future__ import annotations

import asyncio
import math
import queue
import threading
import time
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from embedserve.answer_size import AnswerSize, too_large
from embedserve.engine.turn_queue import QueuedCall, TurnQueue
from embedserve.errors import DeadlineExceeded, EmbedserveError, Unavailable
from embedserve.store.protocol import VectorStore
from embedserve.types import CollectionIdentity, Hit, SearchOptions
from embedserve.wanted import Unwanted, Wanted

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
    size: AnswerSize
    """Of all hits so far."""
    error: Exception | None = None
    batches: list[_Batch] = field(default_factory=list)
    """In which some of the queries are searched now."""


class _Batch(Wanted):
    """What is searched together is wanted as long as one of its calls is."""

    __slots__ = ("calls",)

    def __init__(self, calls: int, deadline: float) -> None:
        super().__init__(deadline)
        self.calls = calls
        """How many of them have not left."""


_Share: TypeAlias = tuple[SearchCall, int, int]
"""A call and the positions of queries taken of it: from the first to before the second."""


class Searches:
    """The threads that search a store, and the calls that wait for them. Belongs to the event loop it is made on.

    Args:
        store: the store.
        threads: how many.
        are_long: each search may take long. Then calls of one flow never take the last thread, unless there is only
            one, and a turn takes few queries, so that the next flow has its turn soon.
    """

    def __init__(self, store: VectorStore, threads: int, *, are_long: bool = False) -> None:
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._tokens: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._queue: TurnQueue[SearchCall] = TurnQueue()
        self._free = threads
        self._most_of_a_flow = max(threads - 1, 1) if are_long else threads
        self._most_together = _LEAST_SHARE if are_long else _MOST_TOGETHER
        self._threads_of: Counter[Hashable] = Counter()
        """Of each flow, if searches are long."""
        self._are_long = are_long
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._work, name=f"{'long-' * are_long}search-{number}", daemon=True)
            for number in range(threads)
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
        size: AnswerSize,
        deadline: float | None = None,
    ) -> asyncio.Future[list[list[Hit]]]:
        """Search; cancelling the future takes back the queries that no thread has taken, and ends the others soon.

        Args:
            identity: the collection.
            queries: float32 [Q, D] with unit norm, Q at least 1.
            options: what is asked for.
            exclude_ids: as ``VectorStore.search`` takes them.
            size: to which the bytes of the hits are added.
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
            size,
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
            self._leave(call)

    def _leave(self, call: SearchCall) -> None:
        """End what is searched for a call alone, once it is gone; the lock is held."""
        batches, call.batches = call.batches, []
        for batch in batches:
            batch.calls -= 1
            if not batch.calls:
                batch.cancel()

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
        now = time.monotonic()
        with self._lock:
            skipped = [flow for flow, count in self._threads_of.items() if count >= self._most_of_a_flow]
            shares = self._queue.take_share(
                min(self._free, self._most_of_a_flow), least=_LEAST_SHARE, most=self._most_together, skipped=skipped
            )
            if not shares:
                return False
            flow = shares[0][0].flow
            if self._are_long:
                self._threads_of[flow] += 1
            self._free -= 1
        for call, _, _ in shares:
            if call.deadline <= now:
                self._fail(call, DeadlineExceeded("the deadline passed while the search waited"))
        self._answer(shares)
        with self._lock:
            self._free += 1
            if self._are_long:
                self._threads_of[flow] -= 1
                if not self._threads_of[flow]:
                    del self._threads_of[flow]
        return True

    def _answer(self, shares: list[_Share]) -> None:
        latest = max([call.deadline for call, _, _ in shares])
        with self._lock:
            shares = [share for share in shares if not share[0].gone]
            batch = _Batch(len(shares), latest)
            for call, _, _ in shares:
                call.batches.append(batch)
        if not shares:
            return
        # Each share has its own, which counts only if it is searched to the end.
        sizes = [AnswerSize(call.size.most_bytes - call.size.bytes, call.size.hint) for call, _, _ in shares]
        try:
            found = self._search(shares, batch, sizes)
        except Unwanted:
            return
        except Exception as error:
            if len(shares) == 1:
                self._fail(shares[0][0], error)
                return
        else:
            self._settle(shares, batch, found, sizes)
            return
        with self._lock:
            for call, _, _ in shares:
                if batch in call.batches:
                    call.batches.remove(batch)
        # One of them may be to blame, and the others must not fail with it.
        for share in shares:
            self._answer([share])

    def _search(self, shares: list[_Share], batch: _Batch, sizes: list[AnswerSize]) -> list[list[Hit]]:
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
            sizes=[size for size, (_, start, stop) in zip(sizes, shares, strict=True) for _ in range(start, stop)],
            wanted=batch,
        )
        if len(found) != len(queries):
            raise ValueError(f"the store answered {len(found)} of {len(queries)} queries")
        return found

    def _settle(self, shares: list[_Share], batch: _Batch, found: list[list[Hit]], sizes: list[AnswerSize]) -> None:
        """Note hits, and wake the event loop, once, if calls are answered with them."""
        wake, position = False, 0
        with self._lock:
            for (call, start, stop), size in zip(shares, sizes, strict=True):
                call.hits[start:stop] = found[position : position + stop - start]
                position += stop - start
                if batch in call.batches:
                    call.batches.remove(batch)
                call.size.bytes += size.bytes
                if call.size.bytes > call.size.most_bytes and not call.gone:
                    call.error = too_large(call.size.most_bytes, call.size.hint)
                    wake |= self._queue.end(call)
                    self._leave(call)
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
            self._leave(call)
        if wake:
            self._loop.call_soon_threadsafe(self._deliver)


def _comparable(options: SearchOptions) -> object:
    """Equal for options that ask for the same; ``==`` is not enough, since for it 1 and True are the same."""
    return options if options.filter is None else repr(options)
