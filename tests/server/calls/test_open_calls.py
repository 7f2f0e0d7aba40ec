"""Health and reflection: bounded although they need no token, and never in the way of a probe."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from embedserve.server.app import Server
from embedserve.server.calls import open_calls
from embedserve.v1 import embedding_service_pb2 as pb
from embedserve.v1.embedding_service_pb2_grpc import EmbeddingServiceStub
from tests.fakes import FakeEncoder, picture
from tests.running import serving, wait_until

ASK = health_pb2.HealthCheckRequest()
WATCH = "/grpc.health.v1.Health/Watch"
CHECK = "/grpc.health.v1.Health/Check"
OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)


class Watched:
    """A server whose event loop is known."""

    def __init__(self, server: Server) -> None:
        self.address = ""
        self.loop = asyncio.get_running_loop()
        self.health, self.open_calls = server._health, server._open_calls

    def set_health(self, *, serving: bool) -> None:
        self.loop.call_soon_threadsafe(partial(self.health.set, serving=serving))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    monkeypatch.setattr(open_calls, "MAX_CALLS", 8)
    monkeypatch.setattr(open_calls, "MAX_CONNECTION_CALLS", 5)
    found: list[Watched] = []
    with serving(FakeEncoder(), on_listening=lambda server: found.append(Watched(server))) as address:
        found[0].address = address
        yield found[0]


def health(channel: grpc.Channel) -> Any:
    return health_pb2_grpc.HealthStub(channel)


def test_watches_on_one_connection_are_bounded(server: Watched) -> None:
    with grpc.insecure_channel(server.address) as channel:
        watches = [health(channel).Watch(ASK, timeout=60) for _ in range(5)]
        assert [next(watch).status for watch in watches] == [1] * 5
        with pytest.raises(grpc.RpcError) as refused:
            next(health(channel).Watch(ASK, timeout=60))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        watches[0].cancel()
        wait_until(lambda: len(server.open_calls) == 4)
        assert next(health(channel).Watch(ASK, timeout=60)).status == 1


def test_when_all_watches_are_taken_the_oldest_ends_and_a_new_one_and_a_check_are_answered(
    server: Watched,
) -> None:
    with ExitStack() as running:
        channels = [running.enter_context(grpc.insecure_channel(server.address, OWN_CONNECTION)) for _ in range(3)]
        watches = []
        for channel in channels:
            for _ in range(4):
                watches.append(health(channel).Watch(ASK, timeout=60))
                assert next(watches[-1]).status == 1
        for watch in watches[:4]:
            with pytest.raises(grpc.RpcError) as ended:
                list(watch)
            assert ended.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "oldest" in str(ended.value.details())
        assert health(channels[0]).Check(ASK, timeout=20).status == 1
        assert len(server.open_calls) == 7


def test_calls_that_never_send_their_request_end_and_leave_room_for_checks(
    server: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_calls, "RECEIVE_TIMEOUT_S", 0.2)
    silent = threading.Event()

    def nothing() -> Iterator[bytes]:
        silent.wait(60)
        yield from ()

    with grpc.insecure_channel(server.address) as channel:
        for path in (CHECK, WATCH):
            call: Any = channel.stream_stream(path)
            with pytest.raises(grpc.RpcError) as ended:
                list(call(nothing(), timeout=60))
            assert ended.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        silent.set()
        assert health(channel).Check(ASK, timeout=20).status == 1


def test_a_watcher_that_does_not_read_holds_up_no_change_of_the_status(server: Watched) -> None:
    """And one that leaves takes no other with it."""
    with grpc.insecure_channel(server.address) as channel:
        leaving, staying, unread = (health(channel).Watch(ASK, timeout=60) for _ in range(3))
        assert next(leaving).status == next(staying).status == 1
        leaving.cancel()
        wait_until(lambda: len(server.open_calls) == 2)
        for status in (2, 1) * 50:
            server.set_health(serving=status == 1)
            assert next(staying).status == status
        unread.cancel()


def test_names_that_are_no_services_are_not_found_and_can_be_watched(server: Watched) -> None:
    other = health_pb2.HealthCheckRequest(service="other")
    with grpc.insecure_channel(server.address) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            health(channel).Check(other, timeout=20)
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        watch = health(channel).Watch(other, timeout=20)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        watch.cancel()
        named = health_pb2.HealthCheckRequest(service="embedserve.v1.SearchService")
        assert health(channel).Check(named, timeout=20).status == 1


def test_reflection_is_bounded_with_them_and_a_call_that_is_no_message_is_refused(server: Watched) -> None:
    released = threading.Event()

    def asked() -> Iterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        released.wait(60)

    with grpc.insecure_channel(server.address) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        streams = [stub.ServerReflectionInfo(asked(), timeout=60) for _ in range(5)]
        for stream in streams:
            assert len(next(stream).list_services_response.service) > 4
        with pytest.raises(grpc.RpcError) as refused:
            next(stub.ServerReflectionInfo(asked(), timeout=60))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        released.set()
        wait_until(lambda: len(server.open_calls) == 0)
        nonsense: Any = channel.unary_unary(CHECK)
        with pytest.raises(grpc.RpcError) as undecodable:
            nonsense(b"\xff\xff\xff", timeout=20)
        assert undecodable.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert len(EmbeddingServiceStub(channel).Embed(pb.EmbedRequest(images=[picture(1)]), timeout=20).results) == 1
