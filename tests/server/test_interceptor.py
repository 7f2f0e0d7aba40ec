"""A caller that hangs up while a message is sent to it is no bug of ours, whichever of its two signs is seen first.

gRPC cancels the call's task, and the write that is under way fails. Which comes first is a matter of microseconds: here
it is the write, in other tests the cancellation.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from embedserve.server.calls.call_limits import CallLimits
from embedserve.server.calls.open_calls import OpenCalls
from embedserve.server.interceptor import CallInterceptor
from embedserve.server.lifecycle.state import ServerState
from embedserve.server.telemetry.metrics import Metrics
from embedserve.types import Limits

METHOD = "/embedserve.v1.CollectionService/BackupCollection"


class WriteFailed(grpc.aio.BaseError):
    """Stands for gRPC's ExecuteBatchError, which has no public name."""


@dataclass(eq=False)
class HungUp:
    """The context of a call whose caller hangs up while the second message is sent."""

    remaining_s: float | None
    written: list[Any] = field(default_factory=list)

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def set_trailing_metadata(self, metadata: object) -> None:
        """Nothing is sent any more."""

    def time_remaining(self) -> float | None:
        return self.remaining_s

    async def read(self) -> bytes:
        return b""

    async def send_initial_metadata(self, metadata: object) -> None:
        """It arrived."""

    async def write(self, response: Any) -> None:
        if self.written:
            raise WriteFailed
        self.written.append(response)


class Response(bytes):
    """A message."""

    def ByteSize(self) -> int:
        return len(self)


@dataclass(frozen=True)
class Details:
    method: str = METHOD
    invocation_metadata: tuple[tuple[str, str], ...] = ()


async def three(*_: object) -> AsyncIterator[Response]:
    for _number in range(3):
        yield Response(b"abc")


async def download(handler: Any, context: HungUp) -> None:
    with suppress(asyncio.CancelledError):  # as gRPC does
        await handler.stream_stream(None, context)


async def stream(handler: Any, context: HungUp) -> None:
    with suppress(WriteFailed):  # as gRPC does, which writes the answers of streams itself
        async for response in handler.stream_stream(None, context):
            await context.write(response)


@pytest.mark.parametrize(
    ("remaining_s", "code"), [(None, "CANCELLED"), (60.0, "CANCELLED"), (0.001, "DEADLINE_EXCEEDED")]
)
@pytest.mark.parametrize(
    ("handler", "serve"),
    [
        (grpc.unary_stream_rpc_method_handler(three), download),
        (grpc.stream_stream_rpc_method_handler(three), stream),
    ],
    ids=["download", "stream"],
)
def test_a_write_that_fails_since_the_caller_has_hung_up_is_counted_as_a_hang_up(
    handler: grpc.RpcMethodHandler[Any, Any],
    serve: Callable[..., Any],
    remaining_s: float | None,
    code: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics, limits = Metrics([METHOD]), Limits()

    async def scenario() -> tuple[int, int]:
        state, gate = ServerState(), CallLimits(limits)
        interceptor = CallInterceptor(state, gate, OpenCalls(), metrics)

        async def inner(_: object) -> grpc.RpcMethodHandler[Any, Any]:
            return handler

        async def call() -> None:
            wrapped = await interceptor.intercept_service(inner, Details())  # type: ignore[arg-type]
            assert wrapped is not None
            await serve(wrapped, HungUp(remaining_s))

        await asyncio.create_task(call())
        await state.drain(20)
        return gate.calls, metrics.calls_in_flight

    with caplog.at_level(logging.WARNING):
        assert asyncio.run(scenario()) == (0, 0)
    labels = {"method": "BackupCollection"}
    assert metrics.registry.get_sample_value("embedserve_requests_total", {**labels, "code": code}) == 1
    for other in {"OK", "UNKNOWN", "INTERNAL", "CANCELLED", "DEADLINE_EXCEEDED"} - {code}:
        assert not metrics.registry.get_sample_value("embedserve_requests_total", {**labels, "code": other})
    assert caplog.records == []
