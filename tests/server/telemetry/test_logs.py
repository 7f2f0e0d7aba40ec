"""What a server logs about its calls, and how a line is traced to its call."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from embedserve.server.telemetry import logs
from embedserve.v1 import embedding_service_pb2 as pb
from embedserve.v1.embedding_service_pb2_grpc import EmbeddingServiceStub
from tests.fakes import FakeEncoder, picture
from tests.running import ServerProcess, serving, wait_until


@pytest.fixture
def stub(address: str) -> Iterator[EmbeddingServiceStub]:
    with grpc.insecure_channel(address) as channel:
        yield EmbeddingServiceStub(channel)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The records of calls, at every level."""
    caplog.set_level(logging.DEBUG, "embedserve.access")
    return caplog


def id_of(call: grpc.Call | grpc.RpcError) -> str:
    trailers: Any = call.trailing_metadata() or ()
    [found] = [value for key, value in trailers if key == "x-request-id"]
    assert isinstance(found, str)
    return found


# --- Request ids ---


def test_a_request_id_comes_back_with_the_response(stub: EmbeddingServiceStub) -> None:
    request = pb.EmbedRequest(images=[picture(1)])
    _, call = stub.Embed.with_call(request, metadata=(("x-request-id", "order/7_of-2"),))
    assert id_of(call) == "order/7_of-2"


def test_calls_without_a_request_id_each_get_a_new_one(stub: EmbeddingServiceStub) -> None:
    ids = {id_of(stub.Embed.with_call(pb.EmbedRequest(images=[picture(1)]))[1]) for _ in range(3)}
    assert len(ids) == 3
    assert all(logs.is_valid_request_id(request_id) for request_id in ids)


@pytest.mark.parametrize("given", ["", "x" * 129, "a b"])
def test_an_id_that_would_spoil_the_log_is_replaced(stub: EmbeddingServiceStub, given: str) -> None:
    _, call = stub.Embed.with_call(pb.EmbedRequest(images=[picture(1)]), metadata=(("x-request-id", given),))
    assert id_of(call) != given
    assert logs.is_valid_request_id(id_of(call))


def test_a_failed_call_and_a_stream_get_their_request_id_as_well(stub: EmbeddingServiceStub) -> None:
    with pytest.raises(grpc.RpcError) as failed:
        stub.Embed(pb.EmbedRequest(), metadata=(("x-request-id", "mine"),))
    assert id_of(failed.value) == "mine"
    stream = stub.EmbedStream(iter([]), metadata=(("x-request-id", "its"),))
    assert list(stream) == []
    assert id_of(stream) == "its"


# --- Lines ---


def test_a_failed_call_is_one_line_with_its_reason(stub: EmbeddingServiceStub, log: pytest.LogCaptureFixture) -> None:
    with pytest.raises(grpc.RpcError):
        stub.Embed(pb.EmbedRequest(), metadata=(("x-request-id", "mine"), ("authorization", "Bearer secret")))
    wait_until(lambda: bool(log.records))
    [record] = log.records
    assert record.levelno == logging.INFO
    fields = vars(record)["fields"]
    assert (fields["method"], fields["code"]) == ("embedserve.v1.EmbeddingService/Embed", "INVALID_ARGUMENT")
    assert (fields["error"], fields["reason"]) == ("INVALID_ARGUMENT", "the call has no images")
    assert fields["peer"].startswith("ipv4:127.0.0.1:")
    assert fields["duration_ms"] > 0
    assert "secret" not in str(vars(record))


def test_a_successful_call_is_a_line_only_at_the_level_debug(
    stub: EmbeddingServiceStub, log: pytest.LogCaptureFixture
) -> None:
    stub.Embed(pb.EmbedRequest(images=[picture(1)]))
    wait_until(lambda: bool(log.records))
    assert [(record.levelno, vars(record)["fields"]["code"]) for record in log.records] == [(logging.DEBUG, "OK")]


def test_every_line_within_a_call_has_its_id(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(logs.TextFormatter().format(record))

    keeper = Keeper()
    monkeypatch.setattr(logging.getLogger("embedserve.server"), "handlers", [keeper])
    monkeypatch.setattr("embedserve.engine.embedder.Embedder.embed", lambda *_, **__: 1 / 0)
    request = pb.EmbedRequest(images=[picture(1)])
    with (
        serving(FakeEncoder()) as address,
        grpc.insecure_channel(address) as channel,
        pytest.raises(grpc.RpcError, match="INTERNAL"),
    ):
        EmbeddingServiceStub(channel).Embed(request, metadata=(("x-request-id", "mine"),))
    [line] = seen
    assert (
        "ERROR embedserve.server: bug in a call  method=embedserve.v1.EmbeddingService/Embed request_id=mine\n" in line
    )
    assert "ZeroDivisionError" in line


# --- Formats ---


@pytest.mark.parametrize("bad", ["", "x" * 129, "a b", "a\nb", "\x1b[31m", "é", b"bytes"])
def test_ids_that_could_be_mistaken_for_something_else_are_not_valid(bad: str | bytes) -> None:
    assert not logs.is_valid_request_id(bad)


def record_of(message: str, **fields: object) -> logging.LogRecord:
    record = logging.LogRecord("embedserve.access", logging.INFO, "file", 1, message, (), None)
    record.created, record.msecs = 1_700_000_000.25, 250.0
    record.fields = fields
    return record


def test_text_is_one_line_whatever_the_values_are() -> None:
    line = logs.TextFormatter().format(record_of("call", code="OK", reason='two\nlines "and" more', peer=""))
    assert line == (
        '2023-11-14T22:13:20.250Z INFO embedserve.access: call  code=OK reason="two\\nlines \\"and\\" more" peer=""'
    )


def test_json_is_one_object_including_the_fields() -> None:
    line = logs.JsonFormatter().format(record_of("call", code="OK", duration_ms=1.5, reason="two\nlines\ud800"))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "info",
        "logger": "embedserve.access",
        "message": "call",
        "code": "OK",
        "duration_ms": 1.5,
        "reason": "two\nlines\ud800",
    }


def test_everything_that_a_server_prints_is_json_if_requested(encoder_file: Path) -> None:
    with ServerProcess(str(encoder_file), "--log-format", "json", "--log-level", "info") as server:
        with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError):
            EmbeddingServiceStub(channel).Embed(pb.EmbedRequest(), metadata=(("x-request-id", "mine"),))
        assert server.terminate() == 0
    documents = [json.loads(line) for line in server.said]
    assert [document["message"] for document in documents][-1] == "stopped"
    [call] = [document for document in documents if document["logger"] == "embedserve.access"]
    assert (call["request_id"], call["code"]) == ("mine", "INVALID_ARGUMENT")
    assert {document["level"] for document in documents} == {"info"}
