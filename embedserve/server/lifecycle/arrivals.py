"""Calls that arrive while the server closes its port.

gRPC says goodbye to its clients and cancels, without a word, every call that arrives from then on, and every one that
waits to be handed to Python. A client that calls again as soon as it is answered often has such a call. So calls that
arrive at the very end are held, until each client has its calls here and sends no more; then gRPC says goodbye, and
only after that the held calls are refused: a client that reads the refusal has read the goodbye.
"""

from __future__ import annotations

import asyncio
import time

QUIET_S = 0.1
"""Without a new call for so long, nobody has one on the way."""
HOLD_AT_MOST_S = 1.0


class Arrivals:
    """Knows when the last call arrived, and holds those that arrive at the end."""

    def __init__(self) -> None:
        self.last_s = -QUIET_S
        """When the last call arrived, on ``time.monotonic``'s clock."""
        self.held: asyncio.Event | None = None
        """What arriving calls wait for; None as long as they need not wait."""

    async def hold(self) -> None:
        """Hold every call from now on, and return when no more arrive, or after ``HOLD_AT_MOST_S``."""
        self.held = asyncio.Event()
        ends_s = time.monotonic() + HOLD_AT_MOST_S
        while (now_s := time.monotonic()) < min(self.last_s + QUIET_S, ends_s):
            await asyncio.sleep(self.last_s + QUIET_S - now_s)

    def release(self) -> None:
        """Let the held calls go on."""
        if self.held is not None:
            self.held.set()
