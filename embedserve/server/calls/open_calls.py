"""Calls that are in no metric and count in no other limit: health, which needs no token, and reflection.

Anyone who reaches the port may make them, and a Watch lasts as long as its client wants. So there are at most
``MAX_CALLS``; one more ends the oldest of the address that has most of them, which is never a health check of somebody
else.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc

from embedserve.errors import EmbedserveError, Overloaded
from embedserve.server.calls.call_limits import KNOWN_PEERS
from embedserve.server.calls.receiving import RETRY_AFTER_MS, Receiver
from embedserve.server.calls.requests import checked, checked_stream, tolerant
from embedserve.server.calls.responses import abort

_In = TypeVar("_In")
_Out = TypeVar("_Out")
_Context = grpc.aio.ServicerContext[Any, Any]

MAX_CALLS = 1024
MAX_CONNECTION_CALLS = 32
"""On one connection: a client watches a few names."""
_RECEIVING = 16
"""Requests received at a time. They have some bytes, but gRPC would take max_message_bytes."""
RECEIVE_TIMEOUT_S = 5.0
_RECEIVE_TIMEOUT_WHILE_OTHERS_WAIT_S = 0.5


@dataclass(eq=False, slots=True)
class _Call:
    peer: str
    task: asyncio.Task[Any]
    error: EmbedserveError | None = None
    """Why it was ended by us."""


class OpenCalls:
    """Bounds these calls."""

    def __init__(self) -> None:
        self._receiver = Receiver(_RECEIVING)
        self._calls: dict[str, dict[_Call, None]] = {}
        """For each address its calls, the oldest first."""
        self._peers = Counter[str]()
        self._known: dict[str, None] = {}
        self._count = 0
        self._wrapped: dict[str, tuple[Any, grpc.RpcMethodHandler[Any, Any]]] = {}

    def __len__(self) -> int:
        return self._count

    @property
    def peers(self) -> set[str]:
        """Connections that have such calls; may be asked for in any thread."""
        return set(self._peers)

    @property
    def known_peers(self) -> set[str]:
        """Connections that had such calls, as far as they are remembered; may be asked for in any thread."""
        return set(self._known)

    def wrap(self, method: str, handler: grpc.RpcMethodHandler[_In, _Out]) -> grpc.RpcMethodHandler[_In, _Out]:
        """The handler of a method, bounded."""
        inner, wrapped = self._wrapped.get(method, (None, None))
        if inner is handler and wrapped is not None:
            return wrapped
        deserialize = handler.request_deserializer and tolerant(handler.request_deserializer)
        if handler.unary_unary is not None:
            wrapped = grpc.stream_unary_rpc_method_handler(
                self._unary(handler.unary_unary), deserialize, handler.response_serializer
            )
        else:
            inner = handler.unary_stream or handler.stream_stream
            wrapped = grpc.stream_stream_rpc_method_handler(
                self._stream(inner, one=handler.unary_stream is not None), deserialize, handler.response_serializer
            )
        if deserialize is not None:  # the handler of a refusal by another interceptor is a new one each time
            self._wrapped[method] = handler, wrapped
        return wrapped

    async def end_slow(self) -> None:
        """End calls whose request takes too long; runs until it is cancelled."""
        while True:
            await asyncio.sleep(_RECEIVE_TIMEOUT_WHILE_OTHERS_WAIT_S)
            if self._receiver.receiving:
                self._receiver.end_slow(RECEIVE_TIMEOUT_S, _RECEIVE_TIMEOUT_WHILE_OTHERS_WAIT_S)

    def end_all(self, error: EmbedserveError) -> None:
        """End all of them, because of ``error``."""
        for calls in self._calls.values():
            for call in calls:
                _end(call, error)

    def _unary(self, inner: Any) -> Any:
        async def handle(_: AsyncIterator[Any], context: _Context) -> Any:
            response: Any = None

            async def answer() -> None:
                nonlocal response
                response = await inner(checked(await self._receiver.receive(context)), context)

            await self._run(answer, context)
            return response

        return handle

    def _stream(self, inner: Any, *, one: bool) -> Any:
        async def handle(requests: AsyncIterator[Any], context: _Context) -> None:
            async def answer() -> None:
                asked = checked(await self._receiver.receive(context)) if one else checked_stream(requests)
                async with aclosing(inner(asked, context)) as responses:
                    async for response in responses:
                        await context.write(response)

            await self._run(answer, context)

        return handle

    async def _run(self, answer: Callable[[], Awaitable[None]], context: _Context) -> None:
        try:
            with self._entered(context.peer()) as call:
                try:
                    await answer()
                except asyncio.CancelledError:
                    if call.error is None:
                        raise
                    raise call.error from None
        except EmbedserveError as error:
            await abort(error, context)

    @contextmanager
    def _entered(self, peer: str) -> Iterator[_Call]:
        if self._peers[peer] >= MAX_CONNECTION_CALLS:
            raise Overloaded(
                f"{MAX_CONNECTION_CALLS} calls of health and reflection are in flight on this connection, which is the"
                " limit",
                hint="watch the health of a server once",
                retry_after_ms=RETRY_AFTER_MS,
            )
        if len(self) >= MAX_CALLS:
            self._displace()
        task = asyncio.current_task()
        assert task is not None
        call, address = _Call(peer, task), peer.rpartition(":")[0]
        self._calls.setdefault(address, {})[call] = None
        self._peers[peer] += 1
        self._count += 1
        try:
            yield call
        finally:
            self._leave(call)

    def _displace(self) -> None:
        most = max(self._calls.values(), key=len)
        oldest = next(iter(most))
        _end(
            oldest,
            Overloaded(
                f"{MAX_CALLS} calls of health and reflection are in flight, and this is the oldest of its address",
                hint="watch the health of a server once",
                retry_after_ms=RETRY_AFTER_MS,
            ),
        )
        self._leave(oldest)

    def _leave(self, call: _Call) -> None:
        address = call.peer.rpartition(":")[0]
        calls = self._calls.get(address, {})
        if call in calls:  # it may have been displaced
            del calls[call]
            if not calls:
                del self._calls[address]
            self._count -= 1
            self._peers[call.peer] -= 1
            if not self._peers[call.peer]:
                del self._peers[call.peer]
                self._known[call.peer] = None
                if len(self._known) > KNOWN_PEERS:
                    del self._known[next(iter(self._known))]


def _end(call: _Call, error: EmbedserveError) -> None:
    call.error = error
    call.task.cancel()
