"""What a server does with calls in flight when it stops."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from embedserve.errors import InternalError
from embedserve.v1 import embedding_service_pb2 as pb
from embedserve.v1.embedding_service_pb2_grpc import EmbeddingServiceStub
from tests.fakes import FakeEncoder, picture
from tests.running import serving


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


def test_an_encoder_that_fails_its_warm_up_releases_the_data_directory(tmp_path: Path) -> None:
    def fail(images: np.ndarray) -> None:
        raise InternalError("the encoder does not run here")

    with pytest.raises(InternalError, match="does not run here"), serving(FakeEncoder(on_batch=fail), tmp_path):
        pass
    with serving(FakeEncoder(), tmp_path) as address, grpc.insecure_channel(address) as channel:
        info = EmbeddingServiceStub(channel).GetServerInfo(pb.GetServerInfoRequest(), timeout=20)
    assert info.has_collections
