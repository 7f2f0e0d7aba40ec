"""Health follows the encoder, even if it breaks while the server runs."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from typing import Any, cast

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from embedserve import Client
from embedserve.server.app import Server
from embedserve.server.lifecycle import encoder_health
from tests.fakes import FakeEncoder, picture
from tests.running import serving, wait_until


class Breakable:
    """Fails while it is broken: on everything, or on images of one kind."""

    def __init__(self) -> None:
        self.broken = threading.Event()
        self.only_black = threading.Event()

    def __call__(self, images: np.ndarray) -> None:
        if self.broken.is_set() and (not self.only_black.is_set() or (images == 0).all()):
            raise RuntimeError("an illegal memory access was encountered")


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_health, "EVERY_S", 0.02)


def health_of(address: str) -> int:
    with grpc.insecure_channel(address) as channel:
        return cast(Any, health_pb2_grpc.HealthStub(channel)).Check(health_pb2.HealthCheckRequest(), timeout=20).status


def test_an_encoder_that_fails_on_everything_is_not_serving_until_it_recovers() -> None:
    encoder = Breakable()
    servers: list[Server] = []
    with (
        serving(FakeEncoder(on_batch=encoder), http=True, on_listening=servers.append) as address,
        Client(address) as client,
    ):
        assert health_of(address) == health_pb2.HealthCheckResponse.SERVING
        encoder.broken.set()
        client.embed([picture(seed) for seed in range(4)], errors="keep")
        wait_until(lambda: health_of(address) == health_pb2.HealthCheckResponse.NOT_SERVING)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{servers[0].http_url}/readyz", timeout=20)
        assert refused.value.code == 503
        assert b"failing" in refused.value.read()
        refused.value.close()
        encoder.broken.clear()
        wait_until(lambda: health_of(address) == health_pb2.HealthCheckResponse.SERVING)
        assert not client.embed([picture(1)]).errors


def test_images_that_the_encoder_fails_on_are_not_mistaken_for_a_broken_encoder() -> None:
    encoder = Breakable()
    encoder.only_black.set()
    encoder.broken.set()
    black = FakeEncoder().metadata.preprocess.size_px
    with serving(FakeEncoder(on_batch=encoder)) as address, Client(address) as client:
        outcome = client.embed([blank(black)] * 8, errors="keep")
        assert len(outcome.errors) == 8
        for _ in range(20):
            assert health_of(address) == health_pb2.HealthCheckResponse.SERVING


def blank(side_px: int) -> bytes:
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (side_px, side_px)).save(out, "PNG")
    return out.getvalue()
