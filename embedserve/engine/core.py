"""What the parts of an engine share: the current embedder, and the store with the threads that its calls run in."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, TypeVar

from embedserve.cores import usable_cores
from embedserve.engine.answers import Answers
from embedserve.engine.embedder import Embedder
from embedserve.engine.jobs import Jobs
from embedserve.engine.pools import started_pool
from embedserve.engine.searches import Searches
from embedserve.errors import FailedPrecondition
from embedserve.observer import Observer
from embedserve.store.protocol import VectorStore
from embedserve.types import CollectionIdentity, SearchOptions
from embedserve.wanted import Wanted

_T = TypeVar("_T")
_STORE_THREADS = 4
"""For calls that neither read nor write items: those that create, delete and name collections."""
_WRITERS = 16
"""They mostly wait for the disk. Writes that arrive while it is busy are committed together, so more writers make fewer
commits."""


class Core:
    """Made on the event loop that its threads report to. It owns embedder and store, and closes them."""

    def __init__(self, embedder: Embedder, store: VectorStore | None, observer: Observer) -> None:
        self.embedder = embedder
        """Embeds from now on. It may be replaced while a call runs, so a call reads it once, when it begins."""
        self.limits = embedder.admission.limits
        self.observer = observer
        self.jobs = Jobs()
        """Checks, backups and restores."""
        self.answers = Answers(self.limits)
        """What is read for callers and not taken yet."""
        cores = usable_cores()
        # Searches that may take long have threads of their own, so that plain ones always find one; and one more than a
        # single call may take, so that other long ones find one, too.
        self._searches = None if store is None else Searches(store, cores)
        self._long_searches = None if store is None else Searches(store, cores + 1, are_long=True)
        started = started_pool if store is not None else _idle_pool
        # Separate pools, or a few writes that wait for the disk would hold up every read.
        self.readers = started(cores, "read")
        self.writers = started(_WRITERS, "write")
        # What may read the metadata of all items, so that it never holds up the reads of a few.
        self.scans = started(max(1, cores // 2), "scan")
        self.short = started(_STORE_THREADS, "store")
        self._store = store

    async def close(self) -> None:
        """Finish what was admitted, then end the threads and close the store."""
        await self.embedder.close()
        for searches in (self._searches, self._long_searches):
            if searches is not None:
                await searches.close()
        for pool in (self.readers, self.writers, self.scans, self.short):
            pool.shutdown()
        await self.jobs.close()
        if self._store is not None:
            await asyncio.to_thread(self._store.close)

    @property
    def has_store(self) -> bool:
        """Whether there are collections."""
        return self._store is not None

    @property
    def store(self) -> VectorStore:
        """The store.

        Raises:
            FailedPrecondition: there is none.
        """
        if self._store is None:
            raise FailedPrecondition(
                "the server has no data directory, so it has no collections",
                hint="start it with: embedserve serve encoder.onnx --data DIR",
            )
        return self._store

    def identity(self, collection: str) -> CollectionIdentity:
        """The identity of a collection, by name or alias; never waits.

        Raises:
            CollectionNotFound: no collection or alias has the name.
        """
        return self.store.identity(collection)

    def searches(self, options: SearchOptions) -> Searches:
        """The threads for a search with these options. There is a store.

        What an index cannot answer alone may take long: every row is compared, or its metadata are read.
        """
        may_take_long = options.exact or options.filter is not None or options.group_by
        searches = self._long_searches if may_take_long else self._searches
        assert searches is not None
        return searches

    async def read(
        self, work: Callable[[VectorStore, Wanted], _T], pool: ThreadPoolExecutor, *, deadline: float | None = None
    ) -> _T:
        """What ``work`` returns, called in a thread of the pool; it ends early once the caller has left.

        Raises:
            DeadlineExceeded: the deadline passed, on ``time.monotonic``'s clock.
        """
        wanted = Wanted(math.inf if deadline is None else deadline)
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, work, self.store, wanted)
        except asyncio.CancelledError:
            wanted.cancel()
            raise

    async def in_store(self, work: Callable[[VectorStore], _T], pool: ThreadPoolExecutor | None = None) -> _T:
        """What ``work`` returns for the store, called in a thread of the pool; without one, in one for short calls."""
        return await asyncio.get_running_loop().run_in_executor(pool or self.short, work, self.store)

    def on_store(self, operation: Literal["search", "upsert"], begun: float) -> float:
        """Tell the observer how long the store took since ``begun``, on ``time.monotonic``'s clock; in milliseconds."""
        seconds = time.monotonic() - begun
        self.observer.on_store(operation, seconds)
        return seconds * 1000


def _idle_pool(threads: int, name: str) -> ThreadPoolExecutor:
    """A pool for a server without a store, which never uses it."""
    return ThreadPoolExecutor(threads, thread_name_prefix=name)
