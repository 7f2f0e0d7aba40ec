"""What the services share: the engine once it is there, whether calls are taken, and which are under way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal

from embedserve.errors import Unavailable

if TYPE_CHECKING:
    from embedserve.engine.engine import Engine


class ServerState:
    """Starting → ready → draining; never back. While it is ready, the encoder may fail and recover."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._draining = False
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.ready_unix_s = 0.0
        self.failing = False
        """The encoder fails on everything; calls are taken still, but whoever has another server should ask that."""
        self.readers: set[asyncio.Task[Any]] = set()
        """Tasks that read streams; draining ends them."""

    @property
    def engine(self) -> Engine:
        """The engine.

        Raises:
            Unavailable: it is not there yet, or no more.
        """
        if self._draining:
            raise Unavailable("the server is shutting down", hint="try another replica, or again when it is back")
        if self._engine is None:
            raise Unavailable("the server is starting", hint="try again in a second")
        return self._engine

    @property
    def phase(self) -> Literal["starting", "ready", "failing", "draining"]:
        """Where in its life the server is."""
        if self._draining:
            return "draining"
        if self._engine is None:
            return "starting"
        return "failing" if self.failing else "ready"

    def ready(self, engine: Engine) -> None:
        """The engine is warm."""
        self._engine = engine
        self.ready_unix_s = time.time()

    @contextmanager
    def call(self) -> Iterator[None]:
        """A call of ours is under way."""
        self._calls += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._calls -= 1
            if not self._calls:
                self._idle.set()

    async def drain(self, grace_s: float) -> Engine | None:
        """Take no new calls, read no more of streams, and wait until what is under way is answered.

        Args:
            grace_s: how long to wait at most, in seconds.

        Returns:
            The engine, if there is one, for whoever closes it.
        """
        self._draining = True
        for reader in list(self.readers):
            reader.cancel()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), grace_s)
        return self._engine
