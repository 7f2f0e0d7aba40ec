"""Receiving the one request of a call: only some at a time, and each within a time.

gRPC reads a whole message into memory by itself and waits for it without limit. HTTP/2's flow control holds back, on
the client's side, the requests that have no place.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import grpc

from embedserve.errors import EmbedserveError, InvalidInput, Overloaded
from embedserve.server.calls.responses import abort

_Context = grpc.aio.ServicerContext[Any, Any]

RETRY_AFTER_MS = 1000
_OVERSIZE_END_S = 0.1
"""How long gRPC may take to end a call whose request is larger than max_message_bytes."""


class Receiver:
    """Receives requests.

    Args:
        places: requests received at a time.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.receiving: dict[_Context, float] = {}
        """Calls whose request is on its way, and since when."""
        self._ended: set[_Context] = set()
        self._ending: set[asyncio.Task[None]] = set()  # side by side: ending a call that hangs may take long

    async def receive(self, context: _Context) -> Any:
        """The one request of a call, received when there is room.

        Raises:
            InvalidInput: the client sent none.
            EmbedserveError: what ``end_all`` was given.
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
        self.receiving[context] = asyncio.get_running_loop().time()
        try:
            request = await context.read()
        finally:
            self.receiving.pop(context, None)
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

    def end_slow(self, timeout_s: float, while_others_wait_s: float) -> None:
        """End calls whose request takes longer than a time, which is shorter for as many as wait for a place."""
        now = asyncio.get_running_loop().time()
        waiting = sum(not admitted.done() for admitted in self._waiting)
        for number, (context, begun) in enumerate(list(self.receiving.items())):  # the oldest first
            limit_s = while_others_wait_s if number < waiting else timeout_s
            if now - begun > limit_s:
                self._end(
                    context,
                    Overloaded(
                        f"the request did not arrive within {limit_s:g} s",
                        hint="send fewer or smaller images in a call",
                        retry_after_ms=RETRY_AFTER_MS,
                    ),
                )

    def end_all(self, error: EmbedserveError) -> None:
        """End all calls whose request has not been received, because of ``error``."""
        while self._waiting:
            admitted = self._waiting.popleft()
            if not admitted.done():
                admitted.set_exception(error)
        for context in list(self.receiving):
            self._end(context, error)

    def _end(self, context: _Context, error: EmbedserveError) -> None:
        async def end() -> None:
            try:
                await abort(error, context)
            except Exception:  # AbortError, as always; or the client hung up at the same moment
                return

        if context not in self._ended:
            self._ended.add(context)
            task = asyncio.create_task(end())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    def _release(self) -> None:
        """Give a place to the request that has waited longest."""
        while self._waiting:
            admitted = self._waiting.popleft()
            if not admitted.done():
                admitted.set_result(None)
                return
        self._free += 1
