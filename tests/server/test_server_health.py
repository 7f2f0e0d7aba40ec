"""gRPC health checks and reflection: for each service, through the life of a server, and turned off."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import Any, cast

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from embedserve.server.app import SERVICES, Server
from embedserve.v1 import embedding_service_pb2 as pb
from embedserve.v1.embedding_service_pb2_grpc import EmbeddingServiceStub
from tests.fakes import FakeEncoder, picture
from tests.running import serving, wait_until

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def healths(channel: grpc.Channel) -> set[int]:
    """The health of the server and of each of its services."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    names = ("", *SERVICES)
    return {stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=20).status for name in names}


def test_every_service_serves_from_when_it_is_warm_until_the_server_drains() -> None:
    seen: list[set[int]] = []
    armed, entered, released = threading.Event(), threading.Event(), threading.Event()
    ports: list[int] = []

    def listening(server: Server) -> None:
        ports.append(server.port)

    def hold(images: np.ndarray) -> None:
        if not seen:  # during the warm-up
            with grpc.insecure_channel(f"127.0.0.1:{ports[0]}") as channel:
                seen.append(healths(channel))
        if armed.is_set():
            entered.set()
            assert released.wait(20)

    with ExitStack() as running:
        address = running.enter_context(serving(FakeEncoder(on_batch=hold), on_listening=listening))
        with grpc.insecure_channel(address) as channel:
            seen.append(healths(channel))
            armed.set()
            accepted = EmbeddingServiceStub(channel).Embed.future(pb.EmbedRequest(images=[picture(1)]), timeout=20)
            assert entered.wait(20)
            stopping = threading.Thread(target=running.close)
            stopping.start()
            wait_until(lambda: healths(channel) == {NOT_SERVING})
            released.set()
            accepted.result()
        stopping.join(20)
    assert seen == [{NOT_SERVING}, {SERVING}]


def test_a_service_that_does_not_exist_is_unknown(address: str) -> None:
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError, match="NOT_FOUND"):
        cast(Any, health_pb2_grpc.HealthStub(channel)).Check(health_pb2.HealthCheckRequest(service="a.B"), timeout=20)


def test_reflection_can_be_turned_off() -> None:
    with serving(FakeEncoder(), reflection=False) as address, grpc.insecure_channel(address) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
            list(stub.ServerReflectionInfo(iter([request]), timeout=20))
        assert healths(channel) == {SERVING}
