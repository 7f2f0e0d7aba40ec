"""OpenTelemetry: one server span per call, with child spans for its parts. Imported only by a server that traces.

The standard ``OTEL_…`` variables set where spans go, which are sampled, and the name of the service.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import embedserve
from embedserve.errors import SetupError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

_PARTS = ("decode", "queue", "inference", "store")
"""Fields of ``Timings``, in the order of the work."""

_FLUSH_S = 3.0

_COUNTED = ("images", "items", "queries", "ids", "results")

_ERROR_CODES = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
"""Codes that mark a server span as an error, by OpenTelemetry's conventions for RPC spans."""


class Traces:
    """Makes the spans of calls.

    Args:
        provider: where spans go; by default the OTLP collector that ``OTEL_EXPORTER_OTLP_ENDPOINT`` names.

    Raises:
        SetupError: OpenTelemetry is not installed.
    """

    def __init__(self, provider: TracerProvider | None = None) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

            self._provider = provider or _to_collector()
        except ImportError as error:
            raise SetupError(
                f"traces need OpenTelemetry, which is not installed ({error.name} is missing)",
                hint='pip install "embedserve[tracing]"',
            ) from error
        self._api = trace
        self._propagator = TraceContextTextMapPropagator()
        self._tracer = self._provider.get_tracer("embedserve", embedserve.__version__)

    def begin(self, method: str, metadata: dict[str, str]) -> tuple[Span, dict[str, str]]:
        """Start the span of a call, as a child of the client's if its metadata has a ``traceparent``.

        Returns:
            The span, and its ids as fields for the log.
        """
        name = method.removeprefix("/")
        span = self._tracer.start_span(
            name,
            context=self._propagator.extract(metadata),
            kind=self._api.SpanKind.SERVER,
            attributes={"rpc.system.name": "grpc", "rpc.method": name},
        )
        context = span.get_span_context()
        return span, {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}

    def end(self, span: Span, *, code: str, reason: str, request: Any, response: Any, **attributes: str) -> None:
        """End the span of a call with its gRPC status; ``reason`` is the message of its error, or empty."""
        if span.is_recording():
            span.set_attribute("rpc.response.status_code", code)
            for key, value in attributes.items():
                span.set_attribute(f"embedserve.{key}", value)
            self._describe(span, request, response)
            if code in _ERROR_CODES:
                span.set_attribute("error.type", code)
                span.set_status(self._api.StatusCode.ERROR, reason)
        span.end()

    def close(self) -> None:
        """Send the remaining spans; blocks for at most ``_FLUSH_S``, even if the collector is unreachable."""
        sending = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        sending.start()
        sending.join(_FLUSH_S)

    def _describe(self, span: Span, request: Any, response: Any) -> None:
        fields = {} if request is None else request.DESCRIPTOR.fields_by_name
        for field in _COUNTED:
            if field in fields:
                span.set_attribute(f"embedserve.{field}", len(getattr(request, field)))
        fields = {} if response is None else response.DESCRIPTOR.fields_by_name
        if "results" in fields:
            failed = sum(result.HasField("error") for result in response.results)
            span.set_attribute("embedserve.failed", failed)
        if "timings" in fields:
            self._parts(span, response.timings)

    def _parts(self, span: Span, timings: Any) -> None:
        """Child spans for the parts of a call, one after the other from its start.

        Of several images only the longest times are known, not when they were. If these together exceed the call,
        there are attributes but no child spans.
        """
        parts = [(part, getattr(timings, f"{part}_ms")) for part in _PARTS]
        for part, took_ms in parts:
            span.set_attribute(f"embedserve.{part}_ms", took_ms)
        begun_ns: int | None = getattr(span, "start_time", None)
        if begun_ns is None or sum(took_ms for _, took_ms in parts) * 1e6 > time.time_ns() - begun_ns:
            return
        parent = self._api.set_span_in_context(span)
        for part, took_ms in parts:
            if took_ms:
                ended_ns = begun_ns + int(took_ms * 1e6)
                self._tracer.start_span(part, context=parent, start_time=begun_ns).end(ended_ns)
                begun_ns = ended_ns


def _to_collector() -> TracerProvider:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    ours = Resource.create({"service.name": "embedserve", "service.version": embedserve.__version__})
    provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
