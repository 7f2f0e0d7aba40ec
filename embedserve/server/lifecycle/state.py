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


_END_S = 1.0
"""How long calls that are ended may take to stop; what they wait for looks every few milliseconds."""


class ServerState:
    """Starting → ready → draining, never back. While the server is ready, the encoder may fail and recover."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._draining = False
        self._calls: set[asyncio.Task[Any]] = set()
        self._is_over = False
        """The grace time has passed."""
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
        """Counts the current task as a call in flight for the block.

        Raises:
            Unavailable: the grace time of a draining server has passed, which ended the call.
        """
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        self._idle.clear()
        try:
            yield
        except asyncio.CancelledError:
            if not self._is_over or task.uncancel():
                raise
            raise shutting_down() from None
        finally:
            self._calls.discard(task)
            if not self._calls:
                self._idle.set()

    async def drain(self, grace_s: float) -> Engine | None:
        """Accept no new calls, stop reading streams, and wait until the calls in flight are answered.

        Args:
            grace_s: longest wait, in seconds; then the calls that are left end with UNAVAILABLE.

        Returns:
            The engine, if there is one, to be closed by the caller.
        """
        self._draining = True
        for reader in list(self.readers):
            reader.cancel()
        try:
            await asyncio.wait_for(self._idle.wait(), grace_s)
        except TimeoutError:
            self._is_over = True
            for call in self._calls:
                call.cancel()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), _END_S)
        return self._engine
