"""Every error of a call becomes a gRPC status in one place: ours with code and hint, anything else as INTERNAL."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc
from grpc_status import rpc_status

from embedserve import wire
from embedserve.errors import EmbedserveError, InternalError

_In = TypeVar("_In")
_Out = TypeVar("_Out")
_log = logging.getLogger("embedserve.server")


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns exceptions of our own services into statuses; leaves health and reflection alone."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[_In, _Out] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[_In, _Out] | None:
        """The handler of a call, wrapped."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith("/embedserve."):
            return handler
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(
                _unary(handler.unary_unary, method), handler.request_deserializer, handler.response_serializer
            )
        assert handler.stream_stream is not None, f"{method} is neither unary nor bidirectional"
        return grpc.stream_stream_rpc_method_handler(
            _stream(handler.stream_stream, method), handler.request_deserializer, handler.response_serializer
        )


def _unary(inner: Any, method: str) -> Any:
    async def handle(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await inner(request, context)
        except Exception as error:
            await _abort(error, method, context)

    return handle


def _stream(inner: Any, method: str) -> Any:
    async def handle(requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        try:
            async for response in inner(requests, context):
                yield response
        except Exception as error:
            await _abort(error, method, context)

    return handle


async def _abort(error: Exception, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    if isinstance(error, (grpc.aio.AbortError, asyncio.CancelledError)):
        raise error
    if not isinstance(error, EmbedserveError):
        _log.error("bug in %s", method, exc_info=error)
        error = InternalError(
            f"this is a bug in embedserve: {type(error).__name__}", hint="the server's log has the details"
        )
    await context.abort_with_status(rpc_status.to_status(wire.error_to_status(error)))
