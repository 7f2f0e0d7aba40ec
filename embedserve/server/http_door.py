"""Connections to the HTTP port: bounded in number and in time, counted from before their TLS handshake.

When there are as many as allowed, the one that has been idle longest gives way, so that probes are answered however
many connections others keep. asyncio's own listening, when no descriptor is left, logs a line for each connection that
it may have waiting and asks again for each of them; uvicorn allows 2,048, which made a million lines in 40 seconds.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import Callable, Sequence

from uvicorn.protocols.http.h11_impl import H11Protocol

_log = logging.getLogger("embedserve.server")

MAX_CONNECTIONS = 64
REQUEST_TIMEOUT_S = 10.0
"""How long a connection may take for its handshake, to send a request, headers and body, to read the response, or be
idle."""
_RETRY_S = 0.05
"""Before the next connection is taken, when none could be."""
_IDLE_S = 1.0
"""Idle for so long, a connection gives way to the files of the rest of the server."""
_LOG_EVERY_S = 1.0


class HttpConnection(H11Protocol):
    """uvicorn's connection, with the limits that it lacks: on idle connections, and on slow senders and readers."""

    _timeout: asyncio.TimerHandle | None = None
    on_answered: Callable[[], None] = staticmethod(lambda: None)
    on_lost: Callable[[], None] = staticmethod(lambda: None)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin the time for the first request."""
        super().connection_made(transport)
        self._restart_timeout()

    def on_response_complete(self) -> None:
        """Begin the time for the next request."""
        super().on_response_complete()
        self.on_answered()
        self._restart_timeout()

    def connection_lost(self, exc: Exception | None) -> None:
        """Keep nothing of it."""
        super().connection_lost(exc)
        if self._timeout is not None:
            self._timeout.cancel()
        self.on_lost()

    @property
    def is_idle(self) -> bool:
        """Whether it waits for its client: for a request, or to read the response."""
        is_answered = self.cycle is None or self.cycle.response_complete
        return is_answered or self.transport.is_closing() or self.transport.get_write_buffer_size() > 0

    def _restart_timeout(self) -> None:
        if self._timeout is not None:
            self._timeout.cancel()
        self._timeout = self.loop.call_later(REQUEST_TIMEOUT_S, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if self.is_idle:
            self.transport.abort()
        else:
            self._restart_timeout()


class _Guest:
    """A connection from when it is accepted; its protocol is None until its handshake is done."""

    def __init__(self) -> None:
        self.protocol: HttpConnection | None = None
        self.handshake: asyncio.Task[None] | None = None
        self.since_s = time.monotonic()
        """When it was accepted or last answered."""

    @property
    def is_idle(self) -> bool:
        return self.protocol is None or self.protocol.is_idle

    def end(self) -> None:
        if self.protocol is not None:
            self.protocol.transport.abort()
        elif self.handshake is not None:
            self.handshake.cancel()


class Door:
    """Accepts connections.

    Args:
        sockets: listening ones.
        make_protocol: makes the protocol of a connection.
        tls: the context of its handshake; None without TLS.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        make_protocol: Callable[[], HttpConnection],
        tls: ssl.SSLContext | None,
    ) -> None:
        self._sockets, self._make_protocol, self._tls = sockets, make_protocol, tls
        self._guests: dict[_Guest, None] = {}
        """The oldest first; answering makes one the youngest."""
        self._accepting: list[asyncio.Task[None]] = []
        self._logged_s = -_LOG_EVERY_S

    def open(self) -> None:
        """Accept connections from now on."""
        for listening in self._sockets:
            listening.setblocking(False)
            self._accepting.append(asyncio.create_task(self._accept(listening), name="http door"))

    async def close(self) -> None:
        """Accept no more; connections stay."""
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        for guest in self._guests:
            if guest.protocol is None:
                guest.end()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(listening)
            except OSError as error:  # no descriptor is left, or the client has left before
                self._make_room(idle_s=_IDLE_S)
                self._log_failure(error)
                await asyncio.sleep(_RETRY_S)
                continue
            if len(self._guests) < MAX_CONNECTIONS or self._make_room():
                guest = _Guest()
                self._guests[guest] = None
                guest.handshake = asyncio.create_task(self._begin(guest, accepted))
            else:
                accepted.close()
            await asyncio.sleep(0)  # while connections wait, accepting one never does

    async def _begin(self, guest: _Guest, accepted: socket.socket) -> None:
        def make_protocol() -> HttpConnection:
            protocol = self._make_protocol()
            protocol.on_answered = lambda: self._make_youngest(guest)
            protocol.on_lost = lambda: self._forget(guest)
            return protocol

        try:
            timeout_s = None if self._tls is None else REQUEST_TIMEOUT_S
            _, guest.protocol = await asyncio.get_running_loop().connect_accepted_socket(
                make_protocol, accepted, ssl=self._tls, ssl_handshake_timeout=timeout_s
            )
        except (OSError, asyncio.CancelledError):  # it speaks no TLS, is too slow, or has given way
            accepted.close()
            self._forget(guest)

    def _make_room(self, *, idle_s: float = 0.0) -> bool:
        """Whether a connection gave way: the one that has been idle longest, and for ``idle_s`` at least."""
        latest_s = time.monotonic() - idle_s
        for guest in self._guests:
            if guest.is_idle and guest.since_s <= latest_s:
                guest.end()
                self._forget(guest)
                return True
        return False

    def _make_youngest(self, guest: _Guest) -> None:
        if guest in self._guests:
            del self._guests[guest]
            self._guests[guest] = None
            guest.since_s = time.monotonic()

    def _forget(self, guest: _Guest) -> None:
        self._guests.pop(guest, None)

    def _log_failure(self, error: OSError) -> None:
        if (now_s := time.monotonic()) >= self._logged_s + _LOG_EVERY_S:
            self._logged_s = now_s
            _log.error("the HTTP port cannot take connections", extra={"fields": {"reason": error.strerror}})
