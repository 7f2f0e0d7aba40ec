"""What is done for every call of ours, in one place: its id, its end in one status, its counters, log line and span.

Errors become statuses here: ours with code and hint, anything else as INTERNAL. A call is accounted for when its task
ends, which is the one moment that comes for every call: also for one that was never read, or cancelled while its answer
was sent. Health and reflection are left alone.
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

from embedserve.errors import DeadlineExceeded, EmbedserveError, InternalError, InvalidInput
from embedserve.server.access.roles import caller
from embedserve.server.calls.call_limits import CallLimits
from embedserve.server.calls.minimum_rate import LEAST_BYTES_PER_S, MinimumRate
from embedserve.server.calls.responses import abort
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

_UNTAKEN_S = 60.0
"""A message that the caller does not take for so long ends a call that holds a thread and files as long as it lasts."""

_ON_THE_WAY_S = 0.02
"""How long the beginning of a call may have been on its way to us."""


@dataclass(slots=True, eq=False)
class _Call:
    """One call, from when its headers came until its answer was sent."""

    method: str
    metrics: MethodMetrics
    request_id: str
    begun: float
    """When it was read, on ``time.monotonic``'s clock."""
    context: _Context | None = None
    """None until it was read."""
    code: str = ""
    """The status that it was answered with."""
    error: str = ""
    """The code of the error, as ``embedserve.errors`` has it; empty if there was none."""
    reason: str = ""
    """Its message."""
    span: Span | None = None
    request: Any = None
    response: Any = None
    """Both kept for a span only; of streams there are neither."""


_CODES: dict[object, str] = {key: code.name for code in grpc.StatusCode for key in (code, code.value[0])}
"""Names of the statuses. A context gives its own as a number, though it is declared otherwise."""

_current: ContextVar[_Call] = ContextVar("_current")


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the calls of our own services. Has to be the first interceptor, so that it sees what others refuse.

    Args:
        state: which calls are under way.
        gate: how many of them there may be.
        metrics: where calls are counted.
        traces: where spans go, if anywhere.
    """

    def __init__(self, state: ServerState, gate: CallLimits, metrics: Metrics, traces: Traces | None = None) -> None:
        self._state = state
        self._gate = gate
        self._metrics = metrics
        self._traces = traces
        self._wrapped: dict[str, tuple[Any, grpc.RpcMethodHandler[Any, Any]]] = {}
        """For each method its handler and the wrapped one."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[_In, _Out] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[_In, _Out] | None:
        """The handler of a call, wrapped. Runs in the task of the call, before the call is read."""
        method = handler_call_details.method
        handler = await continuation(handler_call_details)
        if method.startswith("/grpc."):
            return handler
        metrics = self._metrics.method(method)
        if handler is None:
            metrics.ended("UNIMPLEMENTED", 0.0)
            return None
        inner, wrapped = self._wrapped.get(method, (None, None))
        if inner is not handler or wrapped is None:
            wrapped = self._wrap(handler)
            # What another interceptor refuses with reads nothing, and is another handler each time.
            if metrics.known and handler.request_deserializer is not None:
                self._wrapped[method] = handler, wrapped
        self._begin(method, metrics, handler_call_details.invocation_metadata)
        return wrapped

    # --- Begin and end --------------------------------------------------------------

    def _begin(self, method: str, metrics: MethodMetrics, metadata: Any) -> None:
        request_id = ""
        for key, value in metadata:
            if key == logs.REQUEST_ID and logs.is_sane(value):
                request_id = value
        call = _Call(method, metrics, request_id or logs.new_request_id(), time.monotonic())
        fields = {"request_id": call.request_id}
        if name := caller.get():
            fields["caller"] = name
        if self._traces is not None:
            call.span, span_fields = self._traces.begin(method, dict(metadata))
            fields |= span_fields
        # The task is this call's alone, so what is set here ends with it.
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
        read = handler.request_deserializer and _readable(handler.request_deserializer)
        if handler.unary_unary is not None:
            # On the wire the same; here it leaves to us when, and whether, the request is received.
            return grpc.stream_unary_rpc_method_handler(
                self._unary(handler.unary_unary), read, handler.response_serializer
            )
        if handler.unary_stream is not None:  # likewise
            return grpc.stream_stream_rpc_method_handler(
                self._download(handler.unary_stream), read, handler.response_serializer
            )
        if handler.stream_unary is not None:
            return grpc.stream_unary_rpc_method_handler(
                self._upload(handler.stream_unary), read, handler.response_serializer
            )
        return grpc.stream_stream_rpc_method_handler(
            self._stream(handler.stream_stream, admitted=read is not None), read, handler.response_serializer
        )

    def _unary(self, inner: Any) -> Any:
        async def answer(call: _Call, context: _Context) -> Any:
            self._gate.enter(context.peer())
            request = _checked(await self._gate.receive(context))
            call.begun = time.monotonic()
            with self._state.call():
                response = await inner(request, context)
            if call.span is not None:
                call.request, call.response = request, response
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
        async def answer(context: _Context) -> None:
            self._gate.enter(context.peer())
            request = _checked(await self._gate.receive(context))
            with self._state.call():
                pace = MinimumRate(_UNTAKEN_S)
                async with aclosing(inner(request, context)) as responses:
                    async for response in responses:
                        await _write(response, context, pace)

        async def handle(_: AsyncIterator[Any], context: _Context) -> None:
            call = _accept(context)
            try:
                await answer(context)
            except Exception as error:
                failure = _failure(error, call)
            else:
                call.code = "OK"
                return
            await _abort(failure, context)

        return handle

    def _upload(self, inner: Any) -> Any:
        async def answer(requests: AsyncIterator[Any], context: _Context) -> Any:
            self._gate.enter(context.peer())
            with self._state.call():
                return await inner(_all_checked(requests), context)

        async def handle(requests: AsyncIterator[Any], context: _Context) -> Any:
            call = _accept(context)
            try:
                response = await answer(requests, context)
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
            with self._state.call():
                try:
                    self._gate.enter(context.peer())
                    if admitted:  # a client is told at once that it is let in, and not with the first answer
                        with suppress(grpc.aio.BaseError):  # where it is gone already
                            await context.send_initial_metadata(())
                    async for response in inner(_all_checked(requests), context):
                        yield response
                except Exception as error:
                    failure = _failure(error, call)
                if failure is not None:
                    await _abort(failure, context)
            call.code = "OK"

        return handle


def _accept(context: _Context) -> _Call:
    """The call that is under way, nothing of which has been read yet."""
    call = _current.get()
    call.context, call.begun = context, time.monotonic()
    context.set_trailing_metadata(((logs.REQUEST_ID, call.request_id),))
    return call


async def _write(response: Any, context: _Context, pace: MinimumRate) -> None:
    """Send a message of several.

    Raises:
        DeadlineExceeded: the caller does not take it, or takes them too slowly.
        asyncio.CancelledError: the caller has hung up.
    """
    begun = time.monotonic()
    try:
        async with asyncio.timeout(_UNTAKEN_S):
            await context.write(response)
    except TimeoutError:
        raise DeadlineExceeded(f"the caller has taken no message for {_UNTAKEN_S:g} s") from None
    except grpc.aio.AbortError:
        raise
    except grpc.aio.BaseError:  # the write fails at the moment of the hang-up, and gRPC has not cancelled the task yet
        raise asyncio.CancelledError from None
    if not pace.is_kept(response.ByteSize(), time.monotonic() - begun):
        raise DeadlineExceeded(
            f"the caller has taken {pace.bytes} bytes in {pace.waited_s:.0f} s;"
            f" he is to take at least {LEAST_BYTES_PER_S} bytes a second"
        )


def _failure(error: Exception, call: _Call) -> EmbedserveError | grpc.aio.AbortError:
    """What a call ends with, noted. It refers to no frame any more.

    gRPC keeps the exception that ends a call, in a cycle with the call: the requests in the frames behind it, up to
    32 MiB each, would stay until Python's garbage collector comes, which counts objects and not bytes.
    """
    assert call.context is not None
    failure: EmbedserveError | grpc.aio.AbortError
    if isinstance(error, grpc.aio.AbortError):  # another interceptor's end of the call
        call.code = call.error = _CODES.get(call.context.code(), "UNKNOWN")
        call.reason = call.context.details()
        failure = error
    else:
        if isinstance(error, EmbedserveError):
            failure = error
        else:
            _log.error("bug in %s", call.method, exc_info=error)
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


def _code_of(call: _Call, task: asyncio.Task[Any]) -> str:
    """The gRPC status with which a call ended."""
    # gRPC ends a call whose caller has hung up or is out of time, and does not say which: it cancels the task, or a
    # write fails before it does.
    if task.cancelling() or not call.code:
        remaining_s = None if call.context is None else call.context.time_remaining()
        return "DEADLINE_EXCEEDED" if is_late(remaining_s, time.monotonic() - call.begun) else "CANCELLED"
    return call.code


def is_late(remaining_s: float | None, after_s: float) -> bool:
    """Whether who hung up ``after_s`` seconds did so because his time was up, with ``remaining_s`` left by our clock.

    gRPC rounds a deadline up by as much as a hundredth on its way to us, and we count from when the call came, so we
    see the caller hang up shortly before it passes here.
    """
    return remaining_s is not None and remaining_s <= 0.01 * (remaining_s + after_s) + _ON_THE_WAY_S


def _fields_of(call: _Call, code: str, seconds: float) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "method": call.method.removeprefix("/"),
        "code": code,
        "duration_ms": round(seconds * 1000, 3),
        "peer": "" if call.context is None else call.context.peer(),
    }
    if call.error:
        fields |= {"error": call.error, "reason": call.reason}
    return fields


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


async def _all_checked(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _checked(request)
        del request  # while the next one is waited for, which may be long
