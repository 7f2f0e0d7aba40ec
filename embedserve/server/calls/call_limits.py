"""How many calls the server holds, how many of their requests it receives at a time, and for how long it waits for one.

gRPC reads a whole message into memory before anybody is asked, and waits for it without end. So that neither the number
of callers nor their slowness decides about memory, requests are received a few at a time: as many of the largest size
as may be in the queue. Whoever waits for his turn is held back by HTTP/2's flow control, at the other end.
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
"""A request has to be there this long after its call began: 16 MiB take as long at 4 Mbit/s."""

_WHILE_OTHERS_WAIT_S = 10.0
"""Where others wait for their turn to be received, as many as those wait are ended that have taken longer than this."""

_LEAST_RECEIVED = 32
_RETRY_AFTER_MS = 1000
_ENDED_S = 0.1


class CallLimits:
    """Counts calls from their headers to their end.

    Args:
        limits: max_calls, max_connection_calls, and what bounds the bytes that are received at a time.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._free = max(limits.max_queue_bytes // limits.max_message_bytes, _LEAST_RECEIVED)
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._receiving: dict[_Context, float] = {}
        self._ended: set[_Context] = set()
        self._peers: dict[str, int] = {}
        self.calls = 0

    def enter(self, peer: str) -> None:
        """A call begins; it counts until its task ends, when also its answer has been sent.

        Args:
            peer: address and port of the connection.

        Raises:
            Overloaded: there are max_calls already, or max_connection_calls on this connection.
        """
        of_peer = self._peers.get(peer, 0)
        for name, calls, where in (
            ("max_calls", self.calls, ""),
            ("max_connection_calls", of_peer, " on this connection"),
        ):
            if calls >= (most := getattr(self._limits, name)):
                raise Overloaded(
                    f"the server is busy: {calls} calls are under way{where}; {name} is {most}",
                    hint=f"try again in {_RETRY_AFTER_MS} ms",
                    retry_after_ms=_RETRY_AFTER_MS,
                )
        task = asyncio.current_task()
        assert task is not None
        self.calls += 1
        self._peers[peer] = of_peer + 1
        task.add_done_callback(lambda _: self._leave(peer))

    def _leave(self, peer: str) -> None:
        self.calls -= 1
        self._peers[peer] -= 1
        if not self._peers[peer]:
            del self._peers[peer]

    async def receive(self, context: _Context) -> Any:
        """The one request of a call.

        Raises:
            InvalidInput: the caller sent none.
            asyncio.CancelledError: it is too large, or the caller has gone.
            grpc.aio.AbortError: it took too long, and the call has been ended.
        """
        if self._free:
            self._free -= 1
        else:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():  # it came at this very moment
                    self._pass_on()
                elif turn in self._waiting:
                    self._waiting.remove(turn)
                raise
        self._receiving[context] = asyncio.get_running_loop().time()
        try:
            request = await context.read()
        finally:
            self._receiving.pop(context, None)
            self._pass_on()
            was_ended = context in self._ended
            self._ended.discard(context)
        if was_ended:
            raise grpc.aio.AbortError("the request took too long")
        task = asyncio.current_task()
        if task is not None and task.cancelling():  # gRPC's reading swallows that the caller has gone
            raise asyncio.CancelledError
        if request is grpc.aio.EOF:
            await asyncio.sleep(_ENDED_S)  # in which gRPC ends the call of a request that is too large
            raise InvalidInput("the call has no request")
        return request

    async def watch(self) -> None:
        """End calls whose request takes too long; runs until it is cancelled."""
        ending: set[asyncio.Task[None]] = set()  # each by itself: to tell one that hangs may take long
        while True:
            await asyncio.sleep(1)
            now = asyncio.get_running_loop().time()
            waiting = sum(not turn.done() for turn in self._waiting)
            for number, (context, begun) in enumerate(list(self._receiving.items())):  # the oldest first
                allowed_s = _WHILE_OTHERS_WAIT_S if number < waiting else RECEIVE_TIMEOUT_S
                if now - begun > allowed_s and context not in self._ended:
                    self._ended.add(context)
                    task = asyncio.create_task(self._end(context, allowed_s))
                    ending.add(task)
                    task.add_done_callback(ending.discard)

    async def _end(self, context: _Context, allowed_s: float) -> None:
        error = Overloaded(
            f"the request was not there after {allowed_s:g} s",
            hint="send fewer or smaller images in a call",
            retry_after_ms=_RETRY_AFTER_MS,
        )
        try:
            await abort(error, context)
        except Exception:  # AbortError, as always; or the caller has gone in this very moment
            return

    def _pass_on(self) -> None:
        """What is free goes to whoever has waited longest."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
