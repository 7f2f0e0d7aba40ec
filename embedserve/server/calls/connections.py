"""Room for new connections on the gRPC port: those that have been idle longest give way.

gRPC counts connections from when they are accepted, before their handshake, and closes at once those beyond its limit.
So idle connections could keep all others out, health checks included. gRPC names no connections to Python; they are
found among the descriptors of this process, and ended with shutdown(2), which closes no descriptor that gRPC still
uses: for gRPC the client has hung up.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from embedserve import descriptors
from embedserve.engine.pools import started_pool

_log = logging.getLogger("embedserve.server")

EVERY_S = 0.1
_EVERY_WHILE_SHORT_S = 0.01
"""A client on the same machine opens ten thousand connections a second."""
_LOOK_EVERY_S = 1.0
"""Between two looks while the number of descriptors stays the same."""
KNOWN_IDLE_MS = 1000
_LOG_EVERY_S = 1.0
_ROOM_SHARE = 4
"""A quarter of the connections is kept free for new ones."""
_LEAST_KEPT = 16
"""Connections that are kept even when something else takes the descriptors."""

_TCP_INFO = struct.Struct("@8x12I")
"""The head of Linux's struct tcp_info; its field 9 is the time since data was sent, field 11 since it was received."""


@dataclass(frozen=True)
class _Connection:
    descriptor: int
    inode: int
    peer: str
    idle_ms: int


class ConnectionRoom:
    """Keeps room for new connections.

    Args:
        port: the gRPC port.
        allowed: connections that gRPC accepts at a time.
        busy: returns the peers that have calls in flight; their connections are never closed.
        known: returns peers that had calls. Connections without any give way first, and at once; the others after
            they have been idle for ``KNOWN_IDLE_MS``.
    """

    def __init__(
        self, port: int, allowed: int, *, busy: Callable[[], Collection[str]], known: Callable[[], Collection[str]]
    ) -> None:
        self._port, self._allowed, self._busy, self._known = port, allowed, busy, known
        self._room = allowed // _ROOM_SHARE
        # Looking for connections needs two descriptors, even when none is left.
        self._spare = [os.open(os.devnull, os.O_RDONLY) for _ in range(2)]
        self._enough = min(allowed - self._room, descriptors.limit() - descriptors.RESERVE)
        """Descriptors in use up to which there can be no shortage."""
        self._looked_s, self._used = -_LOOK_EVERY_S, 0
        self.closed = 0
        """Connections that had to give way."""

    async def keep(self) -> None:
        """Make room whenever there is little; runs until it is cancelled."""
        logged_s, logged = -_LOG_EVERY_S, 0
        thread = started_pool(1, "connections")  # its own: others may all be busy
        try:
            short_until_s = 0.0
            while True:
                now_s = time.monotonic()
                await asyncio.sleep(_EVERY_WHILE_SHORT_S if now_s < short_until_s else EVERY_S)
                used = descriptors.in_use()
                if used is not None and used > self._enough and self._looks_again(used):
                    short_until_s = now_s + _LOOK_EVERY_S
                    with suppress(OSError):  # the list of descriptors could not be read: next time
                        await asyncio.get_running_loop().run_in_executor(thread, self.make)
                if self.closed > logged and time.monotonic() >= logged_s + _LOG_EVERY_S:
                    # The limit is max_connections, or half of the files that this process may open.
                    fields = {"closed": self.closed - logged, "limit": self._allowed, "files": descriptors.limit()}
                    _log.warning("the longest idle connections were closed to make room", extra={"fields": fields})
                    logged_s, logged = time.monotonic(), self.closed
        finally:
            thread.shutdown()
            while self._spare:
                os.close(self._spare.pop())

    def make(self) -> int:
        """Close as many idle connections as are in the way of new ones; their number."""
        spares = len(self._spare)
        while self._spare:
            os.close(self._spare.pop())
        try:
            return self._make()
        finally:
            with suppress(OSError):
                while len(self._spare) < spares:
                    self._spare.append(os.open(os.devnull, os.O_RDONLY))

    def _make(self) -> int:
        used = descriptors.in_use()
        if used is None:
            return 0
        self._looked_s, self._used = time.monotonic(), used
        found = list(self._connections())
        excess = max(
            len(found) + self._room - self._allowed,
            min(used + descriptors.RESERVE - descriptors.limit(), len(found) - _LEAST_KEPT),
        )
        if excess <= 0:
            return 0
        busy, known = self._busy(), self._known()
        idle = [one for one in found if one.peer not in busy]
        new = [one for one in idle if one.peer not in known]
        old = [one for one in idle if one.peer in known and one.idle_ms >= KNOWN_IDLE_MS]
        by_age = [*sorted(new, key=_age, reverse=True), *sorted(old, key=_age, reverse=True)]
        closed = sum(_end(one) for one in by_age[:excess])
        self.closed += closed
        self._used -= closed
        return closed

    def _looks_again(self, used: int) -> bool:
        """Whether a look is worth its time, which is some milliseconds for a thousand connections."""
        return used - self._used > self._room // 8 or time.monotonic() - self._looked_s > _LOOK_EVERY_S

    def _connections(self) -> Iterator[_Connection]:
        for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
            with _shared(int(name)) as shared:
                if shared is None or shared.type != socket.SOCK_STREAM:
                    continue
                try:
                    if shared.family not in (socket.AF_INET, socket.AF_INET6) or shared.getsockname()[1] != self._port:
                        continue
                    peer = shared.getpeername()  # fails for the listening socket
                    idle_ms = _idle_ms(shared)
                    inode = os.fstat(shared.fileno()).st_ino
                except OSError:
                    continue
                yield _Connection(int(name), inode, peer_of(peer), idle_ms)


def _age(connection: _Connection) -> int:
    return connection.idle_ms


def peer_of(address: tuple[str, int] | tuple[str, int, int, int]) -> str:
    """An address as gRPC names the peer of a call."""
    host, port = address[:2]
    host = host.removeprefix("::ffff:") if "." in host else host
    return f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}"


@contextmanager
def _shared(descriptor: int) -> Iterator[socket.socket | None]:
    """A second handle on a socket, so that gRPC may close its own at any time; None if it is none, or is closed."""
    try:
        copy = os.dup(descriptor)
    except OSError:
        yield None
        return
    try:
        shared = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        yield None
        return
    with shared:
        yield shared


def _idle_ms(connection: socket.socket) -> int:
    """Milliseconds since data came or went."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    fields = _TCP_INFO.unpack(info)
    return int(min(fields[9], fields[11]))


def _end(connection: _Connection) -> bool:
    """End a connection, unless its descriptor is another's by now."""
    with _shared(connection.descriptor) as shared:
        try:
            if shared is None or os.fstat(shared.fileno()).st_ino != connection.inode:
                return False
            shared.shutdown(socket.SHUT_RDWR)
        except OSError:
            return False
    return True
