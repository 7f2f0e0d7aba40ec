"""What every call of our services has in common: request id, limits, final status, metrics, log line and span.

Errors become statuses here: those of ``embedserve.errors`` with code and hint, anything else as INTERNAL. A call is
recorded when its task ends, which happens to every call, even to one that was never read or was cancelled while its
response was sent. Health and reflection are only bounded, see ``OpenCalls``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import grpc

from embedserve.errors import DeadlineExceeded, EmbedserveError, InternalError, Unavailable
from embedserve.server.access.roles import caller
from embedserve.server.calls.call_limits import CallLimits
from embedserve.server.calls.minimum_rate import MIN_BYTES_PER_S, MinimumRate
from embedserve.server.calls.open_calls import OpenCalls
from embedserve.server.calls.requests import checked, checked_stream, tolerant
from embedserve.server.calls.responses import SERIALIZE, EncodedResponse, abort
from embedserve.server.lifecycle.state import ServerState
from embedserve.server.telemetry import logs
from embedserve.server.telemetry.metrics import MethodMetrics, Metrics

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from embedserve.server.telemetry.tracing import Traces

_In = TypeVar("_In")
_Out = TypeVar("_Out")
_Context = grpc.aio.ServicerContext[Any, Any]
_log = logging.getLogger("embedserve.server")

_WRITE_TIMEOUT_S = 60.0
"""How long the client may leave a message unread before its download ends: a download holds a thread and open files."""

_TRANSIT_S = 0.02
"""How long the headers of a call may have been on their way to the server."""


@dataclass(slots=True, eq=False)
class _CallRecord:
    """What is known of one call, from the arrival of its headers until its response was sent."""

    method: str
    metrics: MethodMetrics
    request_id: str
    begun: float
    """When its headers arrived, and later when its request had been read, on ``time.monotonic``'s clock."""
    context: _Context | None = None
    """None until its handler runs."""
    peer: str = ""
    """Its client's address, asked for while the call runs: afterwards gRPC may have given up what knows it, and the
    process crashed once in asking."""
    code: str = ""
    """The gRPC status of its response."""
    error: str = ""
    """The code of its error as in ``embedserve.errors``; empty if there was none."""
    reason: str = ""
    """The message of its error."""
    span: Span | None = None
    request: Any = None
    response: Any = None
    """Request and response of a unary call; kept only if it has a span."""


_CODES: dict[object, str] = {key: code.name for code in grpc.StatusCode for key in (code, code.value[0])}
"""Names of the statuses. ``ServicerContext.code`` returns a number, although it is declared otherwise."""

_current: ContextVar[_CallRecord] = ContextVar("_current")


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the calls of our own services. It must be the first interceptor, to see what the others refuse.

    Args:
        state: keeps track of the calls in flight.
        call_limits: how many calls there may be.
        open_calls: the same for health and reflection.
        metrics: counts the calls.
        traces: where spans go; None for none.
    """

    def __init__(
        self,
        state: ServerState,
        call_limits: CallLimits,
        open_calls: OpenCalls,
        metrics: Metrics,
        traces: Traces | None = None,
    ) -> None:
        self._state = state
        self._arrivals = state.arrivals
        self._call_limits = call_limits
        self._open_calls = open_calls
        self._metrics = metrics
        self._traces = traces
        self._wrapped: dict[str, tuple[Any, grpc.RpcMethodHandler[Any, Any]]] = {}
        """For each method its handler, and the same handler wrapped."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[_In, _Out] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[_In, _Out] | None:
        """The handler of a call, wrapped. Runs in the task of the call, before its request is read."""
        self._arrivals.last_s = time.monotonic()
        if self._arrivals.held is not None:
            await self._arrivals.held.wait()
        method = handler_call_details.method
        handler = await continuation(handler_call_details)
        if method.startswith("/grpc."):
            return handler and self._open_calls.wrap(method, handler)
        metrics = self._metrics.method(method)
        if handler is None:
            metrics.ended("UNIMPLEMENTED", 0.0)
            return None
        inner, wrapped = self._wrapped.get(method, (None, None))
        if inner is not handler or wrapped is None:
            wrapped = self._wrap(handler)
            # The handler of a refusal by another interceptor reads nothing, and is a new one each time.
            if metrics.known and handler.request_deserializer is not None:
                self._wrapped[method] = handler, wrapped
        self._begin(method, metrics, handler_call_details.invocation_metadata)
        return wrapped

    # --- Begin and end --------------------------------------------------------------

    def _begin(self, method: str, metrics: MethodMetrics, metadata: Any) -> None:
        request_id = ""
        for key, value in metadata:
            if key == logs.REQUEST_ID and logs.is_valid_request_id(value):
                request_id = value
        call = _CallRecord(method, metrics, request_id or logs.new_request_id(), time.monotonic())
        fields = {"request_id": call.request_id}
        if name := caller.get():
            fields["caller"] = name
        if self._traces is not None:
            call.span, span_fields = self._traces.begin(method, dict(metadata))
            fields |= span_fields
        # The task belongs to this call alone, so these context variables end with it.
        _current.set(call)
        logs.call_fields.set(fields)
        self._metrics.calls_in_flight += 1
        task = asyncio.current_task()
        assert task is not None
        task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[Any]) -> None:
        call = _current.get()
        seconds = time.monotonic() - call.begun
        code = _code_of(call, task)
        self._metrics.calls_in_flight -= 1
        call.metrics.ended(code, seconds)
        if code == "CANCELLED":
            self._metrics.cancelled.inc()
        elif call.error:
            self._metrics.on_error(call.error)
        level = logging.DEBUG if code == "OK" else logging.INFO
        if logs.access.isEnabledFor(level):
            logs.access.log(level, "call", extra={"fields": _fields_of(call, code, seconds)})
        if self._traces is not None and call.span is not None:
            self._traces.end(
                call.span,
                code=code,
                reason=call.reason,
                request=call.request,
                response=call.response,
                request_id=call.request_id,
            )

    # --- Handlers -------------------------------------------------------------------

    def _wrap(self, handler: grpc.RpcMethodHandler[_In, _Out]) -> grpc.RpcMethodHandler[_In, _Out]:
        deserialize = handler.request_deserializer and tolerant(handler.request_deserializer)
        if handler.unary_unary is not None:
            # The same on the wire, but it leaves to us when, and whether, the request is received.
            return grpc.stream_unary_rpc_method_handler(
                self._unary(handler.unary_unary),
                deserialize,
                handler.response_serializer and SERIALIZE,
            )
        if handler.unary_stream is not None:  # likewise
            return grpc.stream_stream_rpc_method_handler(
                self._download(handler.unary_stream), deserialize, handler.response_serializer
            )
        if handler.stream_unary is not None:
            return grpc.stream_unary_rpc_method_handler(
                self._upload(handler.stream_unary), deserialize, handler.response_serializer
            )
        return grpc.stream_stream_rpc_method_handler(
            self._stream(handler.stream_stream, admitted=deserialize is not None),
            deserialize,
            handler.response_serializer,
        )

    def _unary(self, inner: Any) -> Any:
        async def answer(call: _CallRecord, context: _Context) -> Any:
            self._call_limits.enter(call.peer)
            request = checked(await self._call_limits.receive(context))
            call.begun = time.monotonic()
            with self._state.call():
                response = await inner(request, context)
            if call.span is not None:
                call.request = request
                call.response = response.outline if isinstance(response, EncodedResponse) else response
            return response

        async def handle(_: AsyncIterator[Any], context: _Context) -> Any:
            call = _accept(context)
            try:
                response = await answer(call, context)
            except Exception as error:
                failure = _failure(error, call)
            else:
                call.code = "OK"
                return response
            return await _abort(failure, context)

        return handle

    def _download(self, inner: Any) -> Any:
        async def answer(call: _CallRecord, context: _Context) -> None:
            self._call_limits.enter(call.peer)
            request = checked(await self._call_limits.receive(context))
            with self._state.call():
                minimum_rate = MinimumRate(_WRITE_TIMEOUT_S)
                async with aclosing(inner(request, context)) as responses:
                    async for response in responses:
                        await _write(response, context, minimum_rate)

        async def handle(_: AsyncIterator[Any], context: _Context) -> None:
            call = _accept(context)
            try:
                await answer(call, context)
            except Exception as error:
                failure = _failure(error, call)
            else:
                call.code = "OK"
                return
            await _abort(failure, context)

        return handle

    def _upload(self, inner: Any) -> Any:
        async def answer(call: _CallRecord, requests: AsyncIterator[Any], context: _Context) -> Any:
            self._call_limits.enter(call.peer)
            with self._state.call():
                return await inner(checked_stream(requests), context)

        async def handle(requests: AsyncIterator[Any], context: _Context) -> Any:
            call = _accept(context)
            try:
                response = await answer(call, requests, context)
            except Exception as error:
                failure = _failure(error, call)
            else:
                call.code = "OK"
                return response
            return await _abort(failure, context)

        return handle

    def _stream(self, inner: Any, *, admitted: bool) -> Any:
        async def handle(requests: Any, context: _Context) -> AsyncIterator[Any]:
            call = _accept(context)
            failure: EmbedserveError | grpc.aio.AbortError | None = None
            try:
                with self._state.call():
                    try:
                        self._call_limits.enter(call.peer)
                        if admitted:  # tells the client that it is admitted, before there is a first response
                            with suppress(grpc.aio.BaseError):  # it may have hung up
                                await context.send_initial_metadata(())
                        async for response in inner(checked_stream(requests), context):
                            yield response
                    except Exception as error:
                        failure = _failure(error, call)
                    if failure is not None:
                        await _abort(failure, context)
            except Unavailable as error:  # ended when the grace time was over
                await _abort(_failure(error, call), context)
            call.code = "OK"

        return handle


def _accept(context: _Context) -> _CallRecord:
    """The record of the current call, now that its handler runs."""
    call = _current.get()
    call.context, call.peer, call.begun = context, context.peer(), time.monotonic()
    context.set_trailing_metadata(((logs.REQUEST_ID, call.request_id),))
    return call


async def _write(response: Any, context: _Context, minimum_rate: MinimumRate) -> None:
    """Send one message of a download.

    Raises:
        DeadlineExceeded: the client does not read it, or reads too slowly.
        asyncio.CancelledError: the client has hung up.
    """
    begun = time.monotonic()
    try:
        async with asyncio.timeout(_WRITE_TIMEOUT_S):
            await context.write(response)
    except TimeoutError:
        raise DeadlineExceeded(f"the client has read no message for {_WRITE_TIMEOUT_S:g} s") from None
    except grpc.aio.AbortError:
        raise
    except grpc.aio.BaseError:  # the write fails at the moment of the hang-up, before gRPC cancels the task
        raise asyncio.CancelledError from None
    if not minimum_rate.is_kept(response.ByteSize(), time.monotonic() - begun):
        raise DeadlineExceeded(
            f"the client has read {minimum_rate.bytes} bytes in {minimum_rate.waited_s:.0f} s;"
            f" it must read at least {MIN_BYTES_PER_S >> 10} KiB/s"
        )


def _failure(error: Exception, call: _CallRecord) -> EmbedserveError | grpc.aio.AbortError:
    """What a call ends with, recorded; without its traceback.

    gRPC keeps the exception that ends a call in a reference cycle with the call: the requests in the frames of the
    traceback, up to 32 MiB each, would stay until Python's garbage collector runs, which counts objects, not bytes.
    """
    assert call.context is not None
    failure: EmbedserveError | grpc.aio.AbortError
    if isinstance(error, grpc.aio.AbortError):  # another interceptor has ended the call
        call.code = call.error = _CODES.get(call.context.code(), "UNKNOWN")
        call.reason = call.context.details()
        failure = error
    else:
        if isinstance(error, EmbedserveError):
            failure = error
        else:
            _log.error("bug in a call", exc_info=error, extra={"fields": {"method": call.method.removeprefix("/")}})
            failure = InternalError(
                f"this is a bug in embedserve: {type(error).__name__}", hint="the server's log has the details"
            )
        call.code, call.error, call.reason = failure.grpc_status, failure.code, failure.message
    failure.__traceback__ = failure.__context__ = failure.__cause__ = None
    return failure


async def _abort(failure: EmbedserveError | grpc.aio.AbortError, context: _Context) -> NoReturn:
    if isinstance(failure, grpc.aio.AbortError):
        raise failure
    await abort(failure, context)


def _code_of(call: _CallRecord, task: asyncio.Task[Any]) -> str:
    """The gRPC status with which a call ended."""
    # gRPC ends a call whose client has hung up or is out of time, and does not say which: it cancels the task, or a
    # write fails before it does.
    if task.cancelling() or not call.code:
        remaining_s = None if call.context is None else call.context.time_remaining()
        return "DEADLINE_EXCEEDED" if is_late(remaining_s, time.monotonic() - call.begun) else "CANCELLED"
    return call.code


def is_late(remaining_s: float | None, after_s: float) -> bool:
    """Whether a client that hung up after ``after_s`` did so because its deadline passed.

    gRPC rounds a deadline up by as much as 1 % on its way to the server, which counts from the arrival of the call. So
    the server sees the client hang up shortly before the deadline by its own clock, ``remaining_s`` earlier.
    """
    return remaining_s is not None and remaining_s <= 0.01 * (remaining_s + after_s) + _TRANSIT_S


def _fields_of(call: _CallRecord, code: str, seconds: float) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "method": call.method.removeprefix("/"),
        "code": code,
        "duration_ms": round(seconds * 1000, 3),
        "peer": call.peer,
    }
    if call.error:
        fields |= {"error": call.error, "reason": call.reason}
    return fields
