"""What a server does with more than it can do, with callers who leave, and with its own bugs."""

from __future__ import annotations

import asyncio
import threading
import time

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from embedserve.embedder import Embedder, Timings
from embedserve.errors import DeadlineExceeded, Overloaded
from embedserve.types import Keep, Limits
from embedserve.v1 import embedding_service_pb2 as pb
from embedserve.v1.embedding_service_pb2_grpc import EmbeddingServiceStub
from tests.fakes import FakeEncoder, picture
from tests.running import serving


class Held:
    """Keeps the encoder busy, once it is told to, until it is released."""

    def __init__(self) -> None:
        self.armed, self.entered, self.released = threading.Event(), threading.Event(), threading.Event()

    def __call__(self, images: np.ndarray) -> None:
        if self.armed.is_set():
            self.entered.set()
            assert self.released.wait(20)


def details_of(error: grpc.RpcError) -> dict[str, object]:
    status = rpc_status.from_call(error)
    found: dict[str, object] = {}
    for detail in status.details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo):
            if detail.Is(kind.DESCRIPTOR):
                message = kind()
                detail.Unpack(message)
                found[kind.DESCRIPTOR.name] = message
    return found


def test_a_full_server_refuses_at_once_and_says_when_to_try_again() -> None:
    held = Held()
    with serving(FakeEncoder(on_batch=held, parallel_runs=1), limits=Limits(max_queue_images=2)) as address:
        held.armed.set()
        with grpc.insecure_channel(address) as channel:
            stub = EmbeddingServiceStub(channel)
            under_way = stub.Embed.future(pb.EmbedRequest(images=[picture(1), picture(2)]), timeout=20)
            assert held.entered.wait(20)
            with pytest.raises(grpc.RpcError) as refused:
                stub.Embed(pb.EmbedRequest(images=[picture(3)]), timeout=20)
            held.released.set()
            assert len(under_way.result().results) == 2
            assert len(stub.Embed(pb.EmbedRequest(images=[picture(3)]), timeout=20).results) == 1
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    details = details_of(refused.value)
    assert details["ErrorInfo"].reason == "OVERLOADED"
    assert details["RetryInfo"].retry_delay.ToMilliseconds() >= 1


def test_what_a_cancelled_call_had_waiting_is_never_encoded() -> None:
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
    assert len(encoder.batch_sizes) - warm == 2  # the image that was being encoded, and the later call's


def test_an_image_out_of_time_is_not_decoded() -> None:
    async def scenario() -> list[object]:
        encoder = FakeEncoder()
        embedder = await Embedder.start(encoder, limits=Limits())
        warm = len(encoder.batch_sizes)
        results = await embedder.embed([picture(1)], keep=Keep.NONE, deadline=0.0, timings=Timings())
        await embedder.close()
        return [*results, len(encoder.batch_sizes) - warm]

    [error, batches] = asyncio.run(scenario())
    assert isinstance(error, DeadlineExceeded)
    assert batches == 0


def test_a_stream_waits_for_room_where_a_call_is_refused() -> None:
    held = Held()

    async def scenario() -> tuple[bool, int]:
        embedder = await Embedder.start(FakeEncoder(on_batch=held, parallel_runs=1), limits=Limits(max_queue_images=1))
        held.armed.set()

        def embed(wait: bool) -> asyncio.Task:
            return asyncio.create_task(
                embedder.embed([picture(1)], keep=Keep.NONE, deadline=None, timings=Timings(), wait=wait)
            )

        first = embed(wait=False)
        await asyncio.to_thread(held.entered.wait, 20)
        [refused] = await asyncio.gather(embed(wait=False), return_exceptions=True)
        waiting = embed(wait=True)
        held.released.set()
        await first
        results = await waiting
        await embedder.close()
        return isinstance(refused, Overloaded), len(results)

    assert asyncio.run(scenario()) == (True, 1)


def test_a_caller_who_stops_waiting_for_room_leaves_it_to_others() -> None:
    held = Held()

    async def scenario() -> int:
        embedder = await Embedder.start(FakeEncoder(on_batch=held, parallel_runs=1), limits=Limits(max_queue_images=1))
        held.armed.set()

        def embed() -> asyncio.Task:
            return asyncio.create_task(
                embedder.embed([picture(1)], keep=Keep.NONE, deadline=None, timings=Timings(), wait=True)
            )

        first = embed()
        await asyncio.to_thread(held.entered.wait, 20)
        leaves, stays = embed(), embed()
        await asyncio.sleep(0)
        leaves.cancel()
        held.released.set()
        await asyncio.gather(first, stays)
        await embedder.close()
        return embedder.admission.images

    assert asyncio.run(scenario()) == 0


def test_a_bug_is_internal_and_does_not_show_its_inside() -> None:
    class Broken(FakeEncoder):
        def encode(self, images: np.ndarray) -> np.ndarray:
            if len(self.batch_sizes) >= 2:  # past the warm-up
                raise ZeroDivisionError("secret")
            return super().encode(images)

    with serving(Broken()) as address, grpc.insecure_channel(address) as channel:
        response = EmbeddingServiceStub(channel).Embed(pb.EmbedRequest(images=[picture(1)]), timeout=20)
    assert response.results[0].error.code == grpc.StatusCode.INTERNAL.value[0]


def test_a_message_above_the_limit_is_refused() -> None:
    with (
        serving(FakeEncoder(), limits=Limits(max_message_bytes=10_000)) as address,
        grpc.insecure_channel(address) as channel,
        pytest.raises(grpc.RpcError) as refused,
    ):
        EmbeddingServiceStub(channel).Embed(pb.EmbedRequest(images=[bytes(20_000)]), timeout=20)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
