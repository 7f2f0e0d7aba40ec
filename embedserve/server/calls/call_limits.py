"""How many calls are in flight, how many of their requests are received at a time, and how long each may take.

gRPC reads a whole message into memory by itself and waits for it without limit. To make memory independent of the
number of clients and of their speed, only some requests are received at a time: as many of the largest size as fit the
queue. HTTP/2's flow control holds the other ones back on the client's side.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import grpc

from embedserve.errors import InvalidInput, Overloaded
from embedserve.server.calls.responses import abort
from embedserve.types import Limits

_Context = grpc.aio.ServicerContext[Any, Any]

RECEIVE_TIMEOUT_S = 30.0
"""A request must arrive within this time: 16 MiB take as long at 4 Mbit/s."""

_RECEIVE_TIMEOUT_WHILE_OTHERS_WAIT_S = 10.0
"""The same while other requests wait to be received; of the slow ones only as many are ended as wait."""

_MIN_RECEIVING = 32
_RETRY_AFTER_MS = 1000
_OVERSIZE_END_S = 0.1
"""How long gRPC may take to end a call whose request is larger than max_message_bytes."""


class CallLimits:
    """Counts calls from their headers to their end.

    Args:
        limits: max_calls, max_connection_calls, and max_queue_bytes and max_message_bytes, whose quotient is the
            number of requests received at a time.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._free = max(limits.max_queue_bytes // limits.max_message_bytes, _MIN_RECEIVING)
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._receiving: dict[_Context, float] = {}
        self._ended: set[_Context] = set()
        self._peers: dict[str, int] = {}
        self.calls = 0

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
                    hint=f"try again in {_RETRY_AFTER_MS} ms",
                    retry_after_ms=_RETRY_AFTER_MS,
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

    async def receive(self, context: _Context) -> Any:
        """The one request of a call, received when there is room.

        Raises:
            InvalidInput: the client sent none.
            asyncio.CancelledError: it is too large, or the client has hung up.
            grpc.aio.AbortError: it took too long, and the call has been ended.
        """
        if self._free:
            self._free -= 1
        else:
            admitted = asyncio.get_running_loop().create_future()
            self._waiting.append(admitted)
            try:
                await admitted
            except asyncio.CancelledError:
                if not admitted.cancelled():  # it got a place at the same moment
                    self._release()
                elif admitted in self._waiting:
                    self._waiting.remove(admitted)
                raise
        self._receiving[context] = asyncio.get_running_loop().time()
        try:
            request = await context.read()
        finally:
            self._receiving.pop(context, None)
            self._release()
            was_ended = context in self._ended
            self._ended.discard(context)
        if was_ended:
            raise grpc.aio.AbortError("the request took too long")
        task = asyncio.current_task()
        if task is not None and task.cancelling():  # gRPC's read swallows that the client has hung up
            raise asyncio.CancelledError
        if request is grpc.aio.EOF:
            await asyncio.sleep(_OVERSIZE_END_S)
            raise InvalidInput("the call has no request")
        return request

    async def end_slow_calls(self) -> None:
        """End calls whose request takes too long; runs until it is cancelled."""
        ending: set[asyncio.Task[None]] = set()  # side by side: ending a call that hangs may take long
        while True:
            await asyncio.sleep(1)
            now = asyncio.get_running_loop().time()
            waiting = sum(not admitted.done() for admitted in self._waiting)
            for number, (context, begun) in enumerate(list(self._receiving.items())):  # the oldest first
                timeout_s = _RECEIVE_TIMEOUT_WHILE_OTHERS_WAIT_S if number < waiting else RECEIVE_TIMEOUT_S
                if now - begun > timeout_s and context not in self._ended:
                    self._ended.add(context)
                    task = asyncio.create_task(self._end(context, timeout_s))
                    ending.add(task)
                    task.add_done_callback(ending.discard)

    async def _end(self, context: _Context, timeout_s: float) -> None:
        error = Overloaded(
            f"the request did not arrive within {timeout_s:g} s",
            hint="send fewer or smaller images in a call",
            retry_after_ms=_RETRY_AFTER_MS,
        )
        try:
            await abort(error, context)
        except Exception:  # AbortError, as always; or the client hung up at the same moment
            return

    def _release(self) -> None:
        """Give a place to the request that has waited longest."""
        while self._waiting:
            admitted = self._waiting.popleft()
            if not admitted.done():
                admitted.set_result(None)
                return
        self._free += 1
