"""How many calls a server has in flight, and what it does with slow senders."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any, cast

import grpc
import numpy as np
import pytest

from embedserve import Client
from embedserve.errors import Overloaded
from embedserve.server.calls import call_limits
from embedserve.server.calls.call_limits import CallLimits
from embedserve.types import Limits
from embedserve.v1 import embedding_service_pb2 as pb
from embedserve.v1.embedding_service_pb2_grpc import EmbeddingServiceStub
from tests.fakes import FakeEncoder, picture
from tests.running import serving, wait_until

EMBED = "/embedserve.v1.EmbeddingService/Embed"
MIB = 1 << 20


class Sender:
    """A client whose request arrives when a test says so."""

    def __init__(self, channel: grpc.Channel, request: bytes) -> None:
        self.send = threading.Event()
        start: Any = channel.stream_unary(EMBED, response_deserializer=pb.EmbedResponse.FromString)
        self.call = start.future(self._request(request), timeout=60)

    def _request(self, request: bytes) -> Iterator[bytes]:
        self.send.wait(60)
        yield request


def request_of(seed: int) -> bytes:
    return pb.EmbedRequest(images=[picture(seed)]).SerializeToString()


def test_more_calls_than_max_calls_are_refused_with_a_retry_time() -> None:
    entered, released = threading.Event(), threading.Event()
    armed = threading.Event()

    def hold(images: np.ndarray) -> None:
        if armed.is_set():
            entered.set()
            assert released.wait(20)

    with serving(FakeEncoder(on_batch=hold), limits=Limits(max_calls=1)) as address:
        armed.set()
        with grpc.insecure_channel(address) as channel, Client(address, timeout_s=20) as client:
            stub = EmbeddingServiceStub(channel)
            first = stub.Embed.future(pb.EmbedRequest(images=[picture(1)]), timeout=20)
            assert entered.wait(20)
            with pytest.raises(grpc.RpcError) as refused:
                stub.Embed(pb.EmbedRequest(images=[picture(2)]), timeout=20)
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "max_calls is 1" in str(refused.value.details())
            client.wait_ready()  # a full server still answers health checks
            released.set()
            assert first.result().results[0].HasField("vector")
            wait_until(lambda: not isinstance(tried(client), Overloaded))


def tried(client: Client) -> object:
    try:
        return client.embed([picture(3)])
    except Overloaded as error:
        return error


def test_more_calls_than_max_connection_calls_are_refused_on_that_connection_only() -> None:
    released = threading.Event()
    armed = threading.Event()
    running = threading.Semaphore(0)

    def hold(images: np.ndarray) -> None:
        if armed.is_set():
            running.release()
            assert released.wait(20)

    encoder = FakeEncoder(on_batch=hold, parallel_runs=8)
    with (
        serving(encoder, limits=Limits(max_connection_calls=2), max_batch=1) as address,
        grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel,
        grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as other_channel,
    ):
        stub, other = EmbeddingServiceStub(channel), EmbeddingServiceStub(other_channel)
        request = pb.EmbedRequest(images=[picture(0)])
        armed.set()
        calls = [stub.Embed.future(request, timeout=20) for _ in range(2)]
        for _ in calls:
            assert running.acquire(timeout=20)
        with pytest.raises(grpc.RpcError) as refused:
            stub.Embed(request, timeout=20)
        calls.append(other.Embed.future(request, timeout=20))
        assert running.acquire(timeout=20)
        released.set()
        for call in calls:
            assert call.result().results[0].HasField("vector")
        wait_until(lambda: stub.Embed.future(request, timeout=20).code() is grpc.StatusCode.OK)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "max_connection_calls is 2" in str(refused.value.details())


def test_a_request_that_does_not_arrive_ends_its_call_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_limits, "RECEIVE_TIMEOUT_S", 0.2)
    with serving(FakeEncoder()) as address, grpc.insecure_channel(address) as channel:
        slow = Sender(channel, request_of(1))
        assert EmbeddingServiceStub(channel).Embed(pb.EmbedRequest(images=[picture(2)]), timeout=20).results
        with pytest.raises(grpc.RpcError) as ended:
            slow.call.result()
        slow.send.set()
        assert EmbeddingServiceStub(channel).Embed(pb.EmbedRequest(images=[picture(2)]), timeout=20).results
    assert ended.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "request did not arrive" in str(ended.value.details())


def test_slow_senders_delay_others_only_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_limits, "_RECEIVE_TIMEOUT_WHILE_OTHERS_WAIT_S", 0.2)
    monkeypatch.setattr(call_limits, "_MIN_RECEIVING", 4)
    limits = Limits(max_message_bytes=MIB, max_queue_bytes=4 * MIB)  # four requests are received at a time
    with serving(FakeEncoder(), limits=limits) as address, grpc.insecure_channel(address) as channel:
        slow = [Sender(channel, request_of(seed)) for seed in range(4)]
        with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as other:
            stub = EmbeddingServiceStub(other)
            # Repeated until all slow ones are being received: then a call has to wait for one of them.
            ended: list[Sender] = []
            while not ended:
                assert stub.Embed(pb.EmbedRequest(images=[picture(1)]), timeout=20).results[0].HasField("vector")
                ended = [sender for sender in slow if sender.call.done()]
        for sender in slow:
            sender.send.set()
        codes = [sender.call.code() for sender in slow]
    # Only as many are ended as wait.
    assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == len(ended) == 1
    assert codes.count(grpc.StatusCode.OK) == 3


def test_a_client_that_hangs_up_while_it_waits_to_be_received_leaves_its_place_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(call_limits, "_MIN_RECEIVING", 4)

    class Context:
        def __init__(self) -> None:
            self.arrived = asyncio.Event()

        async def read(self) -> str:
            await self.arrived.wait()
            return "request"

    async def scenario() -> tuple[bool, list[str]]:
        limiter = CallLimits(Limits(max_message_bytes=MIB, max_queue_bytes=4 * MIB))
        contexts = [Context() for _ in range(6)]
        reading = [asyncio.create_task(limiter.receive(cast(Any, context))) for context in contexts]
        await asyncio.sleep(0)
        reading[4].cancel()
        contexts[5].arrived.set()
        await asyncio.sleep(0)
        waits = not reading[5].done()
        reading[0].cancel()  # releases its place at the same moment
        contexts[1].arrived.set()
        results = list(await asyncio.gather(reading[1], reading[5]))
        for context in contexts:
            context.arrived.set()
        await asyncio.gather(*reading, return_exceptions=True)
        again = [asyncio.create_task(limiter.receive(cast(Any, context))) for context in contexts[:4]]
        assert await asyncio.gather(*again) == ["request"] * 4
        return waits, results

    assert asyncio.run(scenario()) == (True, ["request", "request"])
