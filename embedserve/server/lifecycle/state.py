"""What the services share: the engine once it is ready, whether calls are accepted, and how many are in flight."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal

from embedserve.errors import Unavailable
from embedserve.server.lifecycle.arrivals import Arrivals

if TYPE_CHECKING:
    from embedserve.engine.engine import Engine


def shutting_down(hint: str = "try another replica, or try again when it is back") -> Unavailable:
    """What a call is refused with while the server drains."""
    return Unavailable("the server is shutting down", hint=hint)


class ServerState:
    """Starting → ready → draining, never back. While the server is ready, the encoder may fail and recover."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._draining = False
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.ready_unix_s = 0.0
        self.failing = False
        """The encoder fails on every image. Calls are still accepted, but clients should prefer another server."""
        self.readers: set[asyncio.Task[Any]] = set()
        """Tasks that read streams; draining cancels them."""
        self.arrivals = Arrivals()
        """Counts and, when the port closes, holds the calls that arrive."""

    @property
    def engine(self) -> Engine:
        """The engine.

        Raises:
            Unavailable: the server is starting or draining.
        """
        if self._draining:
            raise shutting_down()
        if self._engine is None:
            raise Unavailable("the server is starting", hint="try again in a second")
        return self._engine

    @property
    def phase(self) -> Literal["starting", "ready", "failing", "draining"]:
        """The phase of the server's life cycle."""
        if self._draining:
            return "draining"
        if self._engine is None:
            return "starting"
        return "failing" if self.failing else "ready"

    def ready(self, engine: Engine) -> None:
        """From now on calls are accepted; the engine is warm."""
        self._engine = engine
        self.ready_unix_s = time.time()

    @contextmanager
    def call(self) -> Iterator[None]:
        """Counts a call as in flight for the block."""
        self._calls += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._calls -= 1
            if not self._calls:
                self._idle.set()

    async def drain(self, grace_s: float) -> Engine | None:
        """Accept no new calls, stop reading streams, and wait until the calls in flight are answered.

        Args:
            grace_s: longest wait, in seconds.

        Returns:
            The engine, if there is one, to be closed by the caller.
        """
        self._draining = True
        for reader in list(self.readers):
            reader.cancel()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), grace_s)
        return self._engine
