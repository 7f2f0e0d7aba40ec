"""A real server with more calls than it can serve, clients that vanish, and SIGTERM under load."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from embedserve import Client
from embedserve.engine.admission import Admission
from embedserve.errors import Overloaded
from embedserve.server.app import Server
from embedserve.types import Limits
from embedserve.v1 import collection_service_pb2 as collection_pb
from embedserve.v1 import embedding_service_pb2 as pb
from embedserve.v1.collection_service_pb2_grpc import CollectionServiceStub
from embedserve.v1.embedding_service_pb2_grpc import EmbeddingServiceStub
from tests.fakes import FakeEncoder, picture
from tests.running import ServerProcess, serving, wait_until

ONE = pb.EmbedRequest(images=[picture(1)])
MANY = pb.EmbedRequest(images=[picture(seed) for seed in range(64)])


class Steps:
    """Holds the encoder, once armed, and lets one batch after the other through when a test says so."""

    def __init__(self) -> None:
        self.armed = threading.Event()
        self.sizes: list[int] = []
        """Sizes of the batches that were let through."""
        self._entered, self._go = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, images: np.ndarray) -> None:
        if self.armed.is_set():
            self._entered.release()
            assert self._go.acquire(timeout=120)
            self.sizes.append(len(images))

    def hold(self) -> None:
        """Hold every batch from now on."""
        self._entered, self._go = threading.Semaphore(0), threading.Semaphore(0)
        self.armed.set()

    def wait_entered(self) -> None:
        assert self._entered.acquire(timeout=60)

    def step(self) -> None:
        """One more batch."""
        self._go.release()

    def release(self) -> None:
        """Hold nothing any more."""
        self.armed.clear()
        for _ in range(1000):
            self._go.release()


def images_in_flight(server: Server) -> int:
    return server._state.engine.admission.images


@pytest.fixture
def steps() -> Iterator[Steps]:
    held = Steps()
    yield held
    held.release()


def test_under_overload_what_is_let_in_is_answered_and_the_rest_refused_and_nothing_waits_for_nothing(
    steps: Steps,
) -> None:
    servers: list[Server] = []
    limits = Limits(max_queue_images=20)
    encoder = FakeEncoder(on_batch=steps, parallel_runs=1)
    codes: Counter[str] = Counter()
    with (
        serving(encoder, limits=limits, max_batch=4, on_listening=servers.append) as address,
        grpc.insecure_channel(address) as channel,
        ExitStack() as running,
    ):
        running.callback(steps.release)
        stub, images = EmbeddingServiceStub(channel), servers[0].metrics._images
        for wave in range(1, 4):
            steps.hold()
            calls = [stub.Embed.future(ONE, timeout=120) for _ in range(70)]
            wait_until(lambda calls=calls: sum(call.done() for call in calls) == 50)  # type: ignore[misc]
            assert images_in_flight(servers[0]) == 20
            steps.release()
            codes += Counter(call.code().name for call in calls)
            assert codes == {"OK": 20 * wave, "RESOURCE_EXHAUSTED": 50 * wave}
            wait_until(lambda: images_in_flight(servers[0]) == 0)
        outcomes = {name: images[name]._value.get() for name in ("embedded", "expired", "failed", "cancelled")}
        assert outcomes == {"embedded": codes["OK"], "expired": 0, "failed": 0, "cancelled": 0}


def test_of_calls_with_a_deadline_only_as_many_are_let_in_as_can_be_answered_in_time(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers: list[Server] = []
    let_in: list[tuple[float, float]] = []
    refused: list[tuple[float, float]] = []
    enter = Admission.enter

    def noting(self: Admission, images: int, size: int, *, expected_ms: float, remaining_ms: float | None) -> None:
        assert remaining_ms is not None
        try:
            enter(self, images, size, expected_ms=expected_ms, remaining_ms=remaining_ms)
        except Overloaded:
            refused.append((expected_ms, remaining_ms))
            raise
        if self.images > images:  # the first one is let in whatever is expected
            let_in.append((expected_ms, remaining_ms))

    warm = threading.Event()

    def encode(images: np.ndarray) -> None:
        if not warm.is_set():
            time.sleep(0.3 * len(images))  # how long an image takes is known from the warm-up
        steps(images)

    monkeypatch.setattr(Admission, "enter", noting)
    encoder = FakeEncoder(on_batch=encode, parallel_runs=1)
    with (
        serving(encoder, max_batch=1, on_listening=servers.append) as address,
        grpc.insecure_channel(address) as channel,
        ExitStack() as running,
    ):
        running.callback(steps.release)
        warm.set()
        steps.hold()  # nothing is answered before all have asked
        calls = [EmbeddingServiceStub(channel).Embed.future(ONE, timeout=60) for _ in range(300)]
        wait_until(lambda: len(let_in) + len(refused) == 299)
        assert images_in_flight(servers[0]) == 1 + len(let_in)
        steps.release()
        codes = Counter(call.code().name for call in calls)
    assert codes == {"OK": 1 + len(let_in), "RESOURCE_EXHAUSTED": len(refused)}
    # 0.8 × 60 s / 0.3 s = 160 are let in, fewer where the machine is slower.
    assert len(let_in) > 20
    assert len(refused) > 100
    assert all(expected_ms <= 0.8 * remaining_ms for expected_ms, remaining_ms in let_in)
    assert all(expected_ms > 0.8 * remaining_ms for expected_ms, remaining_ms in refused)


def test_a_caller_of_single_images_waits_for_a_few_images_and_not_for_bulk_calls_of_64(steps: Steps) -> None:
    servers: list[Server] = []
    encoder = FakeEncoder(on_batch=steps, parallel_runs=1)
    with serving(encoder, max_batch=1, on_listening=servers.append) as address, ExitStack() as running:
        bulk, other = (running.enter_context(grpc.insecure_channel(address)) for _ in range(2))
        running.callback(steps.release)
        steps.hold()
        calls = [EmbeddingServiceStub(bulk).Embed.future(MANY, timeout=60) for _ in range(2)]
        steps.wait_entered()
        wait_until(lambda: images_in_flight(servers[0]) == 128)
        for _ in range(3):
            single = EmbeddingServiceStub(other).Embed.future(ONE, timeout=120)
            wait_until(lambda: has_arrived(servers[0]))
            before = len(steps.sizes)
            while has_arrived(servers[0]):
                steps.step()
                steps.wait_entered()
            steps.step()  # the image is in the batch that has entered
            steps.wait_entered()
            assert len(single.result().results) == 1
            # One image was with the encoder; then each of the two bulk calls has a turn, and one may have just had it.
            assert len(steps.sizes) - before <= 6
        steps.release()
        assert all(len(call.result().results) == 64 for call in calls)


def has_arrived(server: Server) -> bool:
    """Whether the call of one image is queued."""
    flows = list(server._state.engine.embedder.batcher.queue._flows.values())
    return any(len(flow.calls[0].sources) == 1 for flow in flows)


def test_forty_calls_dropped_at_once_cost_at_most_one_batch_more(steps: Steps) -> None:
    servers: list[Server] = []
    encoder = FakeEncoder(on_batch=steps, parallel_runs=1)
    with serving(encoder, max_batch=8, on_listening=servers.append) as address, ExitStack() as running:
        channels = [
            running.enter_context(grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]))
            for _ in range(4)
        ]
        running.callback(steps.release)
        steps.hold()
        calls = [EmbeddingServiceStub(channels[number % 4]).Embed.future(ONE, timeout=60) for number in range(40)]
        steps.wait_entered()
        wait_until(lambda: images_in_flight(servers[0]) == 40)
        for call in calls:
            call.cancel()
        wait_until(lambda: images_in_flight(servers[0]) == 0)
        steps.release()
        assert len(EmbeddingServiceStub(channels[0]).Embed(ONE, timeout=60).results) == 1
        wait_until(lambda: servers[0]._state.engine.embedder.batcher.queue.in_flight == 0)
    assert len(steps.sizes) == 1  # the batch that the encoder had


CLIENT = """
import sys, threading, grpc
from embedserve.v1 import embedding_service_pb2 as pb
from embedserve.v1.embedding_service_pb2_grpc import EmbeddingServiceStub
from tests.fakes import picture
stub = EmbeddingServiceStub(grpc.insecure_channel(sys.argv[1]))
def images():
    while True:
        yield pb.EmbedStreamRequest(key="a", image=picture(1))
calls = [stub.Embed.future(pb.EmbedRequest(images=[picture(n) for n in range(64)])) for _ in range(3)]
for answer in stub.EmbedStream(images()):
    pass
"""


def test_a_client_that_is_killed_leaves_no_work_behind(steps: Steps) -> None:
    servers: list[Server] = []
    encoder = FakeEncoder(on_batch=steps, parallel_runs=1)
    with serving(encoder, max_batch=4, on_listening=servers.append) as address, ExitStack() as running:
        running.callback(steps.release)
        steps.hold()
        with subprocess.Popen([sys.executable, "-c", CLIENT, address]) as client:
            try:
                steps.wait_entered()
                wait_until(lambda: images_in_flight(servers[0]) >= 3 * 64 + 32)
            finally:
                client.kill()
        batcher = servers[0]._state.engine.embedder.batcher
        # Room in admission is released a moment before the images are taken back.
        wait_until(lambda: images_in_flight(servers[0]) == batcher.queue.waiting == batcher.queue.in_flight == 0)
        wait_until(lambda: servers[0]._call_limits.calls == 0)
        steps.release()
        with Client(address, timeout_s=20) as another:
            assert len(another.embed([picture(1)]).vectors) == 1
        wait_until(lambda: batcher.queue.in_flight == 0)
    assert len(steps.sizes) == 1  # the batch that the encoder had


# --- SIGTERM ---------------------------------------------------------------------------------------------------------


class Callers:
    """Closed loops of every kind of call, until the server refuses them."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address)
        self.answered: Counter[str] = Counter()
        self.ends: list[tuple[str, grpc.RpcError]] = []
        self.acknowledged: set[str] = set()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._until_refused, args=(kind, number))
            for kind in (self._unary, self._many, self._stream, self._upserts)
            for number in range(2)
        ]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a call has no end"
        self.channel.close()

    def _until_refused(self, kind: Any, number: int) -> None:
        try:
            while True:
                kind(number)
                with self._lock:
                    self.answered[kind.__name__] += 1
        except grpc.RpcError as error:
            with self._lock:
                self.ends.append((kind.__name__, error))

    def _unary(self, _: int) -> None:
        assert len(EmbeddingServiceStub(self.channel).Embed(ONE, timeout=60).results) == 1

    def _many(self, _: int) -> None:
        assert len(EmbeddingServiceStub(self.channel).Embed(MANY, timeout=60).results) == 64

    def _stream(self, _: int) -> None:
        requests = (pb.EmbedStreamRequest(key=str(key), image=picture(key % 5)) for key in range(1_000_000))
        for key, response in enumerate(EmbeddingServiceStub(self.channel).EmbedStream(requests, timeout=60)):
            assert response.key == str(key)
            assert response.result.HasField("vector")
            with self._lock:
                self.answered["stream"] += 1

    def _upserts(self, number: int) -> None:
        def requests() -> Iterator[collection_pb.UpsertStreamRequest]:
            for key in range(1_000_000):
                item = collection_pb.UpsertItem(id=f"{number}-{key}", image=picture(key % 5))
                yield collection_pb.UpsertStreamRequest(collection="photos", item=item)

        for response in CollectionServiceStub(self.channel).UpsertStream(requests(), timeout=60):
            with self._lock:
                self.acknowledged.add(response.result.id)


def test_sigterm_under_load_loses_no_call_that_was_taken_and_nothing_that_was_acknowledged(
    encoder_file: Path, tmp_path: Path
) -> None:
    arguments = (str(encoder_file), "--data", str(tmp_path / "data"))
    with ServerProcess(*arguments) as server:
        with Client(server.address) as client:
            client.create_collection("photos")
        callers = Callers(server.address)
        wait_until(lambda: min(callers.answered[kind] for kind in ("_unary", "_many", "stream")) >= 3)
        wait_until(lambda: len(callers.acknowledged) >= 100)
        assert server.terminate() == 0
        callers.join()
    for kind, error in callers.ends:
        said = f"{kind}: {error.code()}: {error.details()}"
        assert error.code() is grpc.StatusCode.UNAVAILABLE, said
        # Refused by the server, or never taken by it; nothing was cut off.
        assert "shutting down" in said or "failed to connect" in said or "GOAWAY" in said.upper(), said
    with ServerProcess(*arguments) as again, Client(again.address) as client:
        stored = {item.id for item in client.list_items("photos", page_size=1000)}
    assert callers.acknowledged <= stored
