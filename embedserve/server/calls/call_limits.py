"""How many calls are in flight, how many of their requests are received at a time, and how long each may take.

To make memory independent of the number of clients and of their speed, only some requests are received at a time: as
many of the largest size as fit the queue.
"""

from __future__ import annotations

import asyncio

from embedserve.errors import EmbedserveError, Overloaded
from embedserve.server.calls.receiving import RETRY_AFTER_MS, Receiver
from embedserve.types import Limits

RECEIVE_TIMEOUT_S = 30.0
"""A request must arrive within this time: 16 MiB take as long at 4 Mbit/s."""

_RECEIVE_TIMEOUT_WHILE_OTHERS_WAIT_S = 10.0
"""The same while other requests wait to be received; of the slow ones only as many are ended as wait."""

_MIN_RECEIVING = 32
KNOWN_PEERS = 8192
"""Connections of which it is remembered that they had calls."""


class CallLimits:
    """Counts calls from their headers to their end.

    Args:
        limits: max_calls, max_connection_calls, and max_queue_bytes and max_message_bytes, whose quotient is the
            number of requests received at a time.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._receiver = Receiver(max(limits.max_queue_bytes // limits.max_message_bytes, _MIN_RECEIVING))
        self.receive = self._receiver.receive
        """The one request of a call, received when there is room: see ``Receiver.receive``."""
        self._peers: dict[str, int] = {}
        self._known: dict[str, None] = {}
        self.calls = 0

    @property
    def peers(self) -> set[str]:
        """Connections with calls in flight; may be asked for in any thread."""
        return set(self._peers)

    @property
    def known_peers(self) -> set[str]:
        """Connections that had calls, as far as they are remembered; may be asked for in any thread."""
        return set(self._known)

    def enter(self, peer: str) -> None:
        """Count a call; it counts until its task ends, which is after its response has been sent.

        Args:
            peer: address and port of the connection.

        Raises:
            Overloaded: max_calls or, on this connection, max_connection_calls is reached.
        """
        peer_calls = self._peers.get(peer, 0)
        for name, calls, where in (
            ("max_calls", self.calls, ""),
            ("max_connection_calls", peer_calls, " on this connection"),
        ):
            if calls >= (limit := getattr(self._limits, name)):
                raise Overloaded(
                    f"the server is busy: {calls} calls are in flight{where}; {name} is {limit}",
                    hint=f"try again in {RETRY_AFTER_MS} ms",
                    retry_after_ms=RETRY_AFTER_MS,
                )
        task = asyncio.current_task()
        assert task is not None
        self.calls += 1
        self._peers[peer] = peer_calls + 1
        task.add_done_callback(lambda _: self._leave(peer))

    def _leave(self, peer: str) -> None:
        self.calls -= 1
        self._peers[peer] -= 1
        if not self._peers[peer]:
            del self._peers[peer]
            self._known[peer] = None
            if len(self._known) > KNOWN_PEERS:
                del self._known[next(iter(self._known))]

    async def end_slow_calls(self) -> None:
        """End calls whose request takes too long; runs until it is cancelled."""
        while True:
            await asyncio.sleep(1)
            self._receiver.end_slow(RECEIVE_TIMEOUT_S, _RECEIVE_TIMEOUT_WHILE_OTHERS_WAIT_S)

    def end_unreceived(self, error: EmbedserveError) -> None:
        """End all calls whose request has not been received, because of ``error``."""
        self._receiver.end_all(error)
