"""What a server does with calls in flight when it stops."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from embedserve.errors import InternalError
from embedserve.server.app import Server
from embedserve.server.lifecycle import arrivals
from embedserve.server.lifecycle.arrivals import Arrivals
from embedserve.server.lifecycle.state import ServerState
from embedserve.v1 import embedding_service_pb2 as pb
from embedserve.v1.embedding_service_pb2_grpc import EmbeddingServiceStub
from tests.fakes import FakeEncoder, picture
from tests.running import serving, wait_until
from tests.waiting import until


def test_an_accepted_call_is_answered_and_later_ones_are_refused() -> None:
    armed, entered, released = threading.Event(), threading.Event(), threading.Event()

    def hold(images: np.ndarray) -> None:
        if armed.is_set():
            entered.set()
            assert released.wait(20)

    with ExitStack() as running:
        address = running.enter_context(serving(FakeEncoder(on_batch=hold)))
        with grpc.insecure_channel(address) as channel:
            stub = EmbeddingServiceStub(channel)
            health: Any = health_pb2_grpc.HealthStub(channel)
            armed.set()
            accepted = stub.Embed.future(pb.EmbedRequest(images=[picture(1)]), timeout=20)
            assert entered.wait(20)
            stopping = threading.Thread(target=running.close)
            stopping.start()
            given_up = time.monotonic() + 20
            while health.Check(health_pb2.HealthCheckRequest(), timeout=20).status == 1:
                assert time.monotonic() < given_up, "the server still says that it serves"
            with pytest.raises(grpc.RpcError) as refused:
                stub.Embed(pb.EmbedRequest(images=[picture(2)]), timeout=20)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            assert stopping.is_alive()
            released.set()
            assert accepted.result().results[0].HasField("vector")
        stopping.join(20)
        assert not stopping.is_alive()


def test_idle_streams_do_not_delay_the_stop() -> None:
    ended = threading.Event()

    def idle() -> Iterator[pb.EmbedStreamRequest]:
        yield pb.EmbedStreamRequest(key="a", image=picture(1))
        ended.wait(20)

    with ExitStack() as running:
        address = running.enter_context(serving(FakeEncoder()))  # its grace time is ten seconds
        with grpc.insecure_channel(address) as channel:
            stream = EmbeddingServiceStub(channel).EmbedStream(idle(), timeout=20)
            assert next(stream).key == "a"
            watch = cast(Any, health_pb2_grpc.HealthStub(channel)).Watch(health_pb2.HealthCheckRequest(), timeout=20)
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            running.close()
            with pytest.raises(grpc.RpcError) as end:
                next(stream)
            ended.set()
    assert end.value.code() is grpc.StatusCode.UNAVAILABLE
    assert end.value.details() == "the server is shutting down"  # ended by us, not by gRPC at the end of the grace time


def test_callers_that_call_again_at_once_are_told_and_none_is_cancelled() -> None:
    """The server's goodbye crosses with no call: each caller has one there when it is said."""
    answered = 0
    ends: Counter[tuple[str, str]] = Counter()
    ask, one = health_pb2.HealthCheckRequest(), pb.EmbedRequest(images=[picture(1)])

    async def call_until_it_is_gone(channel: grpc.aio.Channel, *, check: bool) -> None:
        nonlocal answered
        health: Any = health_pb2_grpc.HealthStub(channel)
        embed = EmbeddingServiceStub(channel).Embed
        while True:
            try:
                await (health.Check(ask, timeout=60) if check else embed(one, timeout=60))
                answered += 1
            except grpc.RpcError as error:
                said = str(error.details())
                ends[error.code().name, said if "shutting down" in said else "other"] += 1
                if "shutting down" not in said:
                    return

    async def scenario(address: str, stop: Callable[[], None]) -> None:
        own = (("grpc.use_local_subchannel_pool", 1),)
        channels = [grpc.aio.insecure_channel(address, own) for _ in range(4)]
        callers = [
            asyncio.create_task(call_until_it_is_gone(channels[number % 4], check=number % 8 == 7))
            for number in range(160)
        ]
        await until(lambda: answered >= 400)
        await asyncio.to_thread(stop)
        await asyncio.gather(*callers)
        for channel in channels:
            await channel.close()

    with ExitStack() as running:
        asyncio.run(scenario(running.enter_context(serving(FakeEncoder())), running.close))
    assert ends["UNAVAILABLE", "the server is shutting down"] >= 140
    assert {code for code, _ in ends} == {"UNAVAILABLE"}


def test_a_request_that_is_still_on_its_way_is_refused_at_the_end_and_not_cancelled() -> None:
    arrived = threading.Event()

    def never() -> Iterator[bytes]:
        arrived.wait(60)
        yield b""

    with ExitStack() as running:
        servers: list[Server] = []
        address = running.enter_context(serving(FakeEncoder(), on_listening=servers.append))
        with grpc.insecure_channel(address) as channel:
            begin: Any = channel.stream_unary("/embedserve.v1.EmbeddingService/Embed")
            call = begin.future(never(), timeout=60)
            wait_until(lambda: servers[0]._call_limits.calls == 1)
            running.close()
            assert call.code() is grpc.StatusCode.UNAVAILABLE
            assert call.details() == "the server is shutting down"
            arrived.set()


def test_calls_are_held_until_none_has_arrived_for_a_while_and_no_longer_than_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 100.0
    slept: list[float] = []
    monkeypatch.setattr(time, "monotonic", lambda: now_s)

    async def scenario(arriving_until_s: float) -> float:
        nonlocal now_s
        now_s = 100.0
        calls = Arrivals()
        calls.last_s = now_s

        async def sleep(seconds: float) -> None:
            nonlocal now_s
            slept.append(seconds)
            now_s += seconds
            if now_s <= arriving_until_s:
                calls.last_s = now_s - 0.01

        monkeypatch.setattr(asyncio, "sleep", sleep)
        await calls.hold()
        assert calls.held is not None
        assert not calls.held.is_set()
        calls.release()
        assert calls.held.is_set()
        return now_s - 100.0

    assert asyncio.run(scenario(0.0)) == pytest.approx(arrivals.QUIET_S)
    assert asyncio.run(scenario(100.45)) == pytest.approx(0.45, abs=0.15)
    assert asyncio.run(scenario(200.0)) == pytest.approx(arrivals.HOLD_AT_MOST_S, abs=arrivals.QUIET_S)


def test_a_server_without_calls_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def sleep(seconds: float) -> None:
        raise AssertionError("it waits")

    monkeypatch.setattr(asyncio, "sleep", sleep)
    asyncio.run(Arrivals().hold())


def test_an_encoder_that_fails_its_warm_up_releases_the_data_directory(tmp_path: Path) -> None:
    def fail(images: np.ndarray) -> None:
        raise InternalError("the encoder does not run here")

    with pytest.raises(InternalError, match="does not run here"), serving(FakeEncoder(on_batch=fail), tmp_path):
        pass
    with serving(FakeEncoder(), tmp_path) as address, grpc.insecure_channel(address) as channel:
        info = EmbeddingServiceStub(channel).GetServerInfo(pb.GetServerInfoRequest(), timeout=20)
    assert info.has_collections


# --- Beyond the grace time ---


def test_calls_that_outlive_the_grace_time_end_as_unavailable() -> None:
    armed, entered, released = threading.Event(), threading.Event(), threading.Event()

    def hold(images: np.ndarray) -> None:
        if armed.is_set():
            entered.set()
            assert released.wait(20)

    def one() -> Iterator[pb.EmbedStreamRequest]:
        yield pb.EmbedStreamRequest(key="a", image=picture(1))

    with ExitStack() as running:
        address = running.enter_context(serving(FakeEncoder(on_batch=hold), grace_s=0.2))
        with grpc.insecure_channel(address) as channel:
            stub = EmbeddingServiceStub(channel)
            armed.set()
            call = stub.Embed.future(pb.EmbedRequest(images=[picture(1)]), timeout=20)
            stream = stub.EmbedStream(one(), timeout=20)
            assert entered.wait(20)
            stopping = threading.Thread(target=running.close)
            stopping.start()
            for ended in (call.result, stream.__next__):
                with pytest.raises(grpc.RpcError) as refused:
                    ended()
                assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
                assert refused.value.details() == "the server is shutting down"
            released.set()
            stopping.join(20)
            assert not stopping.is_alive()


def test_a_call_that_its_caller_ends_is_not_called_unavailable() -> None:
    async def scenario() -> None:
        state = ServerState()

        async def call() -> None:
            with state.call():
                await asyncio.Event().wait()

        left = asyncio.create_task(call())
        await asyncio.sleep(0)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        await state.drain(20)  # nothing is in flight any more

    asyncio.run(scenario())
