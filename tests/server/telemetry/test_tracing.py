"""Spans of calls, as an exporter receives them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from embedserve.errors import SetupError
from embedserve.server.app import Server
from embedserve.server.config import ServerConfig
from embedserve.server.telemetry.tracing import Traces
from embedserve.v1 import embedding_service_pb2 as pb
from embedserve.v1.embedding_service_pb2_grpc import EmbeddingServiceStub
from tests.fakes import FakeEncoder, picture
from tests.running import serving, wait_until

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

EMBED = "embedserve.v1.EmbeddingService/Embed"


class Traced:
    """A server that traces, and the spans of the calls made so far."""

    def __init__(self, stub: EmbeddingServiceStub, exporter: InMemorySpanExporter) -> None:
        self.stub = stub
        self._exporter = exporter

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]

    def span(self, name: str) -> ReadableSpan:
        wait_until(lambda: bool(self.spans(name)))
        [found] = self.spans(name)
        return found


@pytest.fixture
def traced() -> Iterator[Traced]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with (
        serving(FakeEncoder(), traces=Traces(provider)) as address,
        grpc.insecure_channel(address) as channel,
    ):
        yield Traced(EmbeddingServiceStub(channel), exporter)


def attributes_of(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


def test_a_call_is_a_server_span_with_child_spans_for_its_parts(traced: Traced) -> None:
    traced.stub.Embed(pb.EmbedRequest(images=[picture(1)]), metadata=(("x-request-id", "mine"),))
    span = traced.span(EMBED)
    assert span.kind is SpanKind.SERVER
    attributes = attributes_of(span)
    assert attributes["rpc.system.name"] == "grpc"
    assert attributes["rpc.method"] == EMBED
    assert attributes["rpc.response.status_code"] == "OK"
    assert attributes["embedserve.request_id"] == "mine"
    assert (attributes["embedserve.images"], attributes["embedserve.failed"]) == (1, 0)
    assert span.status.status_code is StatusCode.UNSET
    parts = [traced.span(name) for name in ("decode", "queue", "inference")]
    for part in parts:
        assert part.parent is not None
        assert part.parent.span_id == span.context.span_id
        times: list[Any] = [span.start_time, part.start_time, part.end_time, span.end_time]
        assert times == sorted(times)
    assert parts[0].end_time == parts[1].start_time
    assert parts[1].end_time == parts[2].start_time


def test_a_span_is_a_child_of_the_clients(traced: Traced) -> None:
    trace_id, span_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    traced.stub.Embed(pb.EmbedRequest(images=[picture(1)]), metadata=(("traceparent", f"00-{trace_id}-{span_id}-01"),))
    span = traced.span(EMBED)
    assert span.parent is not None
    assert f"{span.context.trace_id:032x}" == trace_id
    assert f"{span.parent.span_id:016x}" == span_id


@pytest.mark.parametrize("given", ["nonsense", "00-0-0-00", "x" * 5000])
def test_an_invalid_traceparent_starts_a_new_trace(traced: Traced, given: str) -> None:
    traced.stub.Embed(pb.EmbedRequest(images=[picture(1)]), metadata=(("traceparent", given),))
    assert traced.span(EMBED).parent is None


def test_a_mistake_of_the_client_is_not_an_error_of_the_server(traced: Traced) -> None:
    with pytest.raises(grpc.RpcError):
        traced.stub.Embed(pb.EmbedRequest())
    span = traced.span(EMBED)
    assert attributes_of(span)["rpc.response.status_code"] == "INVALID_ARGUMENT"
    assert span.status.status_code is StatusCode.UNSET


def test_a_bug_is_an_error(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedserve.engine.embedder.Embedder.embed", lambda *_, **__: 1 / 0)
    with pytest.raises(grpc.RpcError):
        traced.stub.Embed(pb.EmbedRequest(images=[picture(1)]))
    span = traced.span(EMBED)
    assert span.status.status_code is StatusCode.ERROR
    assert attributes_of(span)["error.type"] == "INTERNAL"


def test_a_bad_image_is_counted_in_its_call(traced: Traced) -> None:
    traced.stub.Embed(pb.EmbedRequest(images=[picture(1), b"no image", picture(2)]))
    attributes = attributes_of(traced.span(EMBED))
    assert (attributes["embedserve.images"], attributes["embedserve.failed"]) == (3, 1)


def test_a_stream_is_one_span(traced: Traced) -> None:
    requests = [pb.EmbedStreamRequest(key=str(seed), image=picture(seed)) for seed in range(3)]
    assert len(list(traced.stub.EmbedStream(iter(requests)))) == 3
    assert attributes_of(traced.span(f"{EMBED}Stream"))["rpc.response.status_code"] == "OK"


def test_without_opentelemetry_a_server_that_traces_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(SetupError, match="traces need OpenTelemetry") as refused:
        Server(ServerConfig(encoder=Path("unused"), traces=True))
    assert refused.value.hint == 'pip install "embedserve[tracing]"'


def test_a_server_that_does_not_trace_loads_no_opentelemetry() -> None:
    import subprocess

    program = "import sys, embedserve.server.app; print([name for name in sys.modules if 'opentelemetry' in name])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_an_unreachable_collector_does_not_delay_the_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedserve.server.telemetry.tracing._FLUSH_S", 0.05)
    back = threading.Event()

    class Away(SpanProcessor):
        def shutdown(self) -> None:
            back.wait(20)

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(Away())
    with serving(FakeEncoder(), traces=Traces(provider)):
        pass
    assert not back.is_set()
    back.set()
