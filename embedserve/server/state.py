"""What the services share: the engine once it is there, and whether calls are taken."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from embedserve.errors import Unavailable

if TYPE_CHECKING:
    from embedserve.engine import Engine


class ServerState:
    """Starting → ready → draining; never back."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._draining = False
        self.ready_unix_s = 0.0

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

    def ready(self, engine: Engine) -> None:
        """The engine is warm."""
        self._engine = engine
        self.ready_unix_s = time.time()

    def drain(self) -> Engine | None:
        """No new calls from now on; gives the engine, if there is one, to whoever closes it."""
        self._draining = True
        return self._engine
