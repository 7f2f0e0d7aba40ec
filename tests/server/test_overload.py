"""What a server does in overload, with clients that hang up, and with its own bugs."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from embedserve import Client
from embedserve.engine.admission import Admission
from embedserve.engine.embedder import Embedder
from embedserve.engine.timings import Timings
from embedserve.errors import CollectionNotFound, DeadlineExceeded, InternalError, Overloaded
from embedserve.images import codec, preprocess
from embedserve.types import Keep, Limits
from embedserve.v1 import embedding_service_pb2 as pb
from embedserve.v1.embedding_service_pb2_grpc import EmbeddingServiceStub
from tests.fakes import FakeEncoder, picture
from tests.running import serving


class Held:
    """Keeps the encoder busy, once it is armed, until it is released."""

    def __init__(self) -> None:
        self.armed, self.entered, self.released = threading.Event(), threading.Event(), threading.Event()

    def __call__(self, images: np.ndarray) -> None:
        if self.armed.is_set():
            self.entered.set()
            assert self.released.wait(20)


def details_of(error: grpc.RpcError) -> dict[str, Any]:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    found: dict[str, Any] = {}
    for detail in status.details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo):
            if detail.Is(kind.DESCRIPTOR):
                message = kind()
                detail.Unpack(message)
                found[kind.DESCRIPTOR.name] = message
    return found


def test_a_full_server_refuses_at_once_with_a_retry_time() -> None:
    held = Held()
    with serving(FakeEncoder(on_batch=held, parallel_runs=1), limits=Limits(max_queue_images=2)) as address:
        held.armed.set()
        with grpc.insecure_channel(address) as channel:
            stub = EmbeddingServiceStub(channel)
            in_flight = stub.Embed.future(pb.EmbedRequest(images=[picture(1), picture(2)]), timeout=20)
            assert held.entered.wait(20)
            with pytest.raises(grpc.RpcError) as refused:
                stub.Embed(pb.EmbedRequest(images=[picture(3)]), timeout=20)
            held.released.set()
            assert len(in_flight.result().results) == 2
            assert len(stub.Embed(pb.EmbedRequest(images=[picture(3)]), timeout=20).results) == 1
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    details = details_of(refused.value)
    assert details["ErrorInfo"].reason == "OVERLOADED"
    assert details["RetryInfo"].retry_delay.ToMilliseconds() >= 1


def test_waiting_images_of_a_cancelled_call_are_never_encoded() -> None:
    held = Held()
    encoder = FakeEncoder(on_batch=held, parallel_runs=1)
    with serving(encoder, max_batch=1) as address:
        warm = len(encoder.batch_sizes)
        held.armed.set()
        with grpc.insecure_channel(address) as channel:
            stub = EmbeddingServiceStub(channel)
            call = stub.Embed.future(pb.EmbedRequest(images=[picture(seed) for seed in range(20)]), timeout=20)
            assert held.entered.wait(20)
            call.cancel()
            given_up = time.monotonic() + 20
            while stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=20).images_in_flight:
                assert time.monotonic() < given_up, "the cancelled call keeps its place"
            held.armed.clear()
            held.released.set()
            assert stub.Embed(pb.EmbedRequest(images=[picture(99)]), timeout=20).results[0].HasField("vector")
    assert len(encoder.batch_sizes) - warm == 2  # the image that was being encoded, and that of the later call


def test_an_image_whose_deadline_has_passed_is_not_decoded() -> None:
    async def scenario() -> list[object]:
        encoder = FakeEncoder()
        embedder = await Embedder.start(encoder, admission=Admission(Limits()))
        warm = len(encoder.batch_sizes)
        flow = object()
        results = await embedder.submit([picture(1)], keep=Keep.NONE, deadline=0.0, timings=Timings(), flow=flow)
        await embedder.close()
        return [*results, len(encoder.batch_sizes) - warm]

    [error, batches] = asyncio.run(scenario())
    assert isinstance(error, DeadlineExceeded)
    assert batches == 0


def admit(admission: Admission, images: int = 1) -> None:
    admission.enter(images, 10 * images, expected_ms=0.0, remaining_ms=None)


def test_a_call_that_finds_no_room_is_refused_and_a_stream_waits_for_it() -> None:
    async def scenario() -> list[bool]:
        admission = Admission(Limits(max_queue_images=1))
        admit(admission)
        with pytest.raises(Overloaded):
            admit(admission)
        waiting = [asyncio.create_task(admission.enter_stream(1, 10)) for _ in range(2)]
        await asyncio.sleep(0)
        waiting[0].cancel()  # leaves the room to the other
        await asyncio.sleep(0)
        admission.leave(1, 10)
        await waiting[1]
        return [task.cancelled() for task in waiting]

    assert asyncio.run(scenario()) == [True, False]


def test_streams_are_admitted_in_order_and_before_new_calls_but_only_to_half_of_the_room() -> None:
    async def scenario() -> tuple[list[int], int]:
        admission = Admission(Limits(max_queue_images=8))
        admit(admission, 8)
        order: list[int] = []

        async def stream(number: int) -> None:
            await admission.enter_stream(2, 20)
            order.append(number)

        streams = [asyncio.create_task(stream(number)) for number in range(3)]
        await asyncio.sleep(0)
        admission.leave(4, 40)
        with pytest.raises(Overloaded):
            admit(admission)  # two streams have got the room
        admission.leave(4, 40)
        admit(admission, 4)  # the third stream would exceed half of the room
        await asyncio.sleep(0)
        in_before, images = list(order), admission.images
        admission.leave_stream(2, 20)
        await asyncio.gather(*streams)
        assert order == [0, 1, 2]
        return in_before, images

    assert asyncio.run(scenario()) == ([0, 1], 8)


def test_a_stream_that_is_cancelled_at_the_moment_of_its_admission_releases_its_room() -> None:
    async def scenario() -> tuple[int, int]:
        admission = Admission(Limits(max_queue_images=1))
        admit(admission)
        waiting = asyncio.create_task(admission.enter_stream(1, 10))
        await asyncio.sleep(0)
        admission.leave(1, 10)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        return admission.images, admission.bytes

    assert asyncio.run(scenario()) == (0, 0)


def test_small_calls_do_not_take_the_room_that_a_stream_waits_for() -> None:
    async def scenario() -> int:
        admission = Admission(Limits(max_queue_images=16))
        admit(admission, 8)
        for _ in range(8):
            admit(admission)
        stream = asyncio.create_task(admission.enter_stream(4, 40))
        await asyncio.sleep(0)
        refused = 0
        for _ in range(100):  # one call leaves and another arrives, again and again
            if stream.done():
                break
            admission.leave(1, 10)
            try:
                admit(admission)
            except Overloaded:
                refused += 1
            await asyncio.sleep(0)
        assert stream.done()
        return refused

    assert asyncio.run(scenario()) == 4


def test_a_call_that_could_not_be_answered_in_time_is_refused_unless_nothing_is_in_flight() -> None:
    admission = Admission(Limits())
    admission.enter(1, 10, expected_ms=5000.0, remaining_ms=100.0)
    with pytest.raises(Overloaded, match="deadline is in 100 ms") as refused:
        admission.enter(1, 10, expected_ms=5000.0, remaining_ms=100.0)
    assert refused.value.retry_after_ms == 5000 - 80
    admission.enter(1, 10, expected_ms=70.0, remaining_ms=100.0)
    assert admission.images == 2


def test_a_call_that_could_never_be_admitted_is_refused_as_too_large_and_not_as_overload() -> None:
    with serving(FakeEncoder(), limits=Limits(max_queue_images=2)) as address, Client(address) as client:
        request = pb.EmbedRequest(images=[picture(n) for n in range(3)])
        with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as refused:
            EmbeddingServiceStub(channel).Embed(request, timeout=20)
        assert len(client.embed([picture(n) for n in range(5)]).vectors) == 5
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details_of(refused.value)["ErrorInfo"].reason == "LIMIT_EXCEEDED"


def test_an_image_that_raises_in_the_encoder_fails_alone_and_reveals_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    marked = preprocess.load(FakeEncoder().metadata.preprocess, picture(2))

    def fail_on_marked(images: np.ndarray) -> None:
        if any(np.array_equal(image, marked) for image in images):
            raise ZeroDivisionError("secret")

    with serving(FakeEncoder(on_batch=fail_on_marked)) as address, grpc.insecure_channel(address) as channel:
        images = [picture(1), picture(2), picture(3)]
        response = EmbeddingServiceStub(channel).Embed(pb.EmbedRequest(images=images), timeout=20)
    assert [result.WhichOneof("result") for result in response.results] == ["vector", "error", "vector"]
    assert response.results[1].error.code == grpc.StatusCode.INTERNAL.value[0]
    assert "secret" not in str(response)
    assert "secret" in caplog.text


def test_an_image_for_which_memory_runs_out_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    decode = codec.decode

    def without_memory(data: bytes, *rest: Any, **more: Any) -> np.ndarray:
        if data == picture(2):
            raise MemoryError
        return decode(data, *rest, **more)

    monkeypatch.setattr(codec, "decode", without_memory)
    with serving(FakeEncoder()) as address, Client(address) as client:
        outcome = client.embed([picture(1), picture(2), picture(3)], errors="keep")
    assert {position: type(error) for position, error in outcome.errors.items()} == {1: InternalError}


def test_bytes_that_are_not_a_message_are_an_invalid_argument_and_not_unknown() -> None:
    with serving(FakeEncoder()) as address, grpc.insecure_channel(address) as channel:
        unary: Any = channel.unary_unary("/embedserve.v1.EmbeddingService/Embed")
        with pytest.raises(grpc.RpcError) as refused:
            unary(b"\xff\xff\xff", timeout=20)
        stream: Any = channel.stream_stream("/embedserve.v1.EmbeddingService/EmbedStream")
        with pytest.raises(grpc.RpcError) as refused_in_stream:
            list(stream(iter([b"\xff\xff\xff"]), timeout=20))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refused_in_stream.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_name_of_any_length_leaves_the_error_readable(tmp_path: Path) -> None:
    with serving(FakeEncoder(), tmp_path) as address, Client(address) as client, pytest.raises(CollectionNotFound):
        client.get_collection("é" * 100_000)


def test_a_message_above_the_limit_is_refused() -> None:
    with (
        serving(FakeEncoder(), limits=Limits(max_message_bytes=10_000)) as address,
        grpc.insecure_channel(address) as channel,
        pytest.raises(grpc.RpcError) as refused,
    ):
        EmbeddingServiceStub(channel).Embed(pb.EmbedRequest(images=[bytes(20_000)]), timeout=20)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
