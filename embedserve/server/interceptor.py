"""Every error of a call becomes a gRPC status in one place: ours with code and hint, anything else as INTERNAL."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from grpc_status import rpc_status

from embedserve import wire
from embedserve.errors import EmbedserveError, InternalError, InvalidInput
from embedserve.server.state import ServerState

_In = TypeVar("_In")
_Out = TypeVar("_Out")
_log = logging.getLogger("embedserve.server")


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns exceptions of our own services into statuses; leaves health and reflection alone."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[_In, _Out] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[_In, _Out] | None:
        """The handler of a call, wrapped."""
        method = handler_call_details.method
        if method in self._wrapped:
            return self._wrapped[method]
        handler = await continuation(handler_call_details)
        if handler is None or not method.startswith("/embedserve."):
            return handler
        wrapped = self._wrap(handler, method)
        self._wrapped[method] = wrapped
        return wrapped

    def _wrap(self, handler: grpc.RpcMethodHandler[_In, _Out], method: str) -> grpc.RpcMethodHandler[_In, _Out]:
        assert handler.request_deserializer is not None
        read = _readable(handler.request_deserializer)
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(
                self._unary(handler.unary_unary, method), read, handler.response_serializer
            )
        assert handler.stream_stream is not None, f"{method} is neither unary nor bidirectional"
        return grpc.stream_stream_rpc_method_handler(
            self._stream(handler.stream_stream, method), read, handler.response_serializer
        )

    def _unary(self, inner: Any, method: str) -> Any:
        async def handle(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            with self._state.call():
                try:
                    return await inner(_checked(request), context)
                except Exception as error:
                    await _abort(error, method, context)

        return handle

    def _stream(self, inner: Any, method: str) -> Any:
        async def checked(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
            async for request in requests:
                yield _checked(request)

        async def handle(requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            with self._state.call():
                try:
                    async for response in inner(checked(requests), context):
                        yield response
                except Exception as error:
                    await _abort(error, method, context)

        return handle


@dataclass(frozen=True)
class _Unreadable:
    """Stands for a request whose bytes are no message: gRPC itself would answer UNKNOWN with a Python repr."""

    error: Exception


def _readable(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except Exception as error:  # DecodeError; also for text that is no UTF-8, and for too many levels
            return _Unreadable(error)

    return read


def _checked(request: Any) -> Any:
    if isinstance(request, _Unreadable):
        raise InvalidInput("the request cannot be read as its message type") from request.error
    return request


async def _abort(error: Exception, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if not isinstance(error, EmbedserveError):
        _log.error("bug in %s", method, exc_info=error)
        error = InternalError(
            f"this is a bug in embedserve: {type(error).__name__}", hint="the server's log has the details"
        )
    await context.abort_with_status(rpc_status.to_status(wire.error_to_status(error)))
