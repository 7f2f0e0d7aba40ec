"""The metrics add up to what the clients saw, however a call ends."""

from __future__ import annotations

import asyncio
import re
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import grpc
import numpy as np
import pytest

from embedserve import Client
from embedserve.client import ItemInput
from embedserve.engine.engine import Engine
from embedserve.errors import DiskFull, StoreError
from embedserve.observer import Observer
from embedserve.server.app import Server
from embedserve.server.interceptor import is_late
from embedserve.server.telemetry.metrics import Metrics
from embedserve.store.protocol import VectorStore
from embedserve.types import CollectionInfo, Keep, Limits, Recall
from embedserve.v1 import embedding_service_pb2 as pb
from embedserve.v1.embedding_service_pb2_grpc import EmbeddingServiceStub
from embedserve.wanted import ALWAYS, Wanted
from tests.fakes import FakeEncoder, picture
from tests.running import serving, wait_until
from tests.waiting import until


@contextmanager
def counted(encoder: FakeEncoder, **settings: object) -> Iterator[tuple[str, Callable[..., float]]]:
    """A server's address, and a function that returns a sample of its metrics, 0 if there is none."""
    servers: list[Server] = []
    with serving(encoder, on_listening=servers.append, **settings) as address:  # type: ignore[arg-type]

        def sample(metric: str, **labels: str) -> float:
            return servers[0].metrics.registry.get_sample_value(metric, labels) or 0.0

        yield address, sample


def calls_of(sample: Callable[..., float], method: str) -> dict[str, float]:
    codes = [code.name for code in grpc.StatusCode]
    found = {code: sample("embedserve_requests_total", method=method, code=code) for code in codes}
    return {code: count for code, count in found.items() if count}


def test_every_call_is_counted_once_with_the_code_that_its_client_saw() -> None:
    released = threading.Event()

    def hold(images: np.ndarray) -> None:
        if (images == 0).all():  # the black picture waits for the end of the test
            released.wait(20)

    limits = replace(Limits(), max_message_bytes=200_000, max_images=4)
    with counted(FakeEncoder(on_batch=hold), limits=limits) as (address, sample):
        seen = asyncio.run(_calls_of_every_kind(address, picture_of_nothing(), sample))
        wait_until(lambda: sample("embedserve_requests_in_flight") == 0)  # the server has noticed all hang-ups
        released.set()
        assert {"OK", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "CANCELLED"} <= seen.keys()
        # gRPC itself ends a call with too large a message, and tells the server only that it has ended.
        seen["CANCELLED"] += seen.pop("RESOURCE_EXHAUSTED")
        total = sum(seen.values())
        counted_here = Counter(calls_of(sample, "Embed"))
        assert counted_here["DEADLINE_EXCEEDED"] > 0
        assert sample("embedserve_cancelled_total") == counted_here["CANCELLED"]
        assert with_hang_ups(counted_here) == with_hang_ups(seen)
        assert sample("embedserve_request_duration_seconds_count", method="Embed") == total


def with_hang_ups(codes: Counter[str]) -> dict[str, float]:
    """A client hangs up when its deadline passes, so the server may mistake the reason; only the sum is exact."""
    hang_ups = {"CANCELLED", "DEADLINE_EXCEEDED"}
    return {**{code: codes[code] for code in codes.keys() - hang_ups}, "sum": sum(codes[code] for code in hang_ups)}


@pytest.mark.parametrize(
    ("remaining_s", "after_s", "late"),
    [
        (0.0, 1.0, True),
        (0.019, 2.0, True),
        (0.9, 99.1, True),
        (0.5, 0.5, False),
        (3.0, 97.0, False),
        (None, 9.0, False),
    ],
)
def test_a_client_that_hangs_up_just_before_its_deadline_has_waited_for_it(
    remaining_s: float | None, after_s: float, late: bool
) -> None:
    assert is_late(remaining_s, after_s) is late


def picture_of_nothing() -> bytes:
    from io import BytesIO

    from PIL import Image

    out = BytesIO()
    Image.new("RGB", (40, 40)).save(out, "PNG")
    return out.getvalue()


async def _calls_of_every_kind(address: str, stuck: bytes, sample: Callable[..., float]) -> Counter[str]:
    """Calls that end in each way, some while they wait for the ``stuck`` picture; how often each code was seen."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = EmbeddingServiceStub(channel)
        good, bad = pb.EmbedRequest(images=[picture(1)]), pb.EmbedRequest()
        many, huge = pb.EmbedRequest(images=[picture(1)] * 5), pb.EmbedRequest(images=[bytes(300_000)])
        waiting = pb.EmbedRequest(images=[stuck])
        await asyncio.gather(*(stub.Embed(good) for _ in range(5)))
        calls = [stub.Embed(request) for request in (bad, many, huge, bad)]
        calls += [stub.Embed(waiting, timeout=timeout_s) for timeout_s in (0.3, 0.51, 0.777)]
        cancelled = [stub.Embed(waiting, timeout=timeout_s) for timeout_s in [20, None] * 10]
        codes = [await call.code() for call in calls]
        await until(lambda: sample("embedserve_requests_in_flight") >= len(cancelled))
        for call in cancelled:
            call.cancel()
        codes += [await call.code() for call in cancelled]
    return Counter(["OK"] * 5 + [code.name for code in codes])


def test_a_stream_is_one_call() -> None:
    with counted(FakeEncoder()) as (address, sample), grpc.insecure_channel(address) as channel:
        stub = EmbeddingServiceStub(channel)
        requests = [pb.EmbedStreamRequest(key=str(seed), image=picture(seed)) for seed in range(5)]
        assert len(list(stub.EmbedStream(iter(requests)))) == 5
        ended = threading.Event()

        def endless() -> Iterator[pb.EmbedStreamRequest]:
            yield requests[0]
            ended.wait(20)

        stream = stub.EmbedStream(endless())
        next(stream)
        assert sample("embedserve_requests_in_flight") == 1
        stream.cancel()
        ended.set()
        wait_until(lambda: sample("embedserve_requests_in_flight") == 0)
        assert calls_of(sample, "EmbedStream") == {"OK": 1, "CANCELLED": 1}


def test_methods_that_do_not_exist_share_one_series() -> None:
    with counted(FakeEncoder()) as (address, sample), grpc.insecure_channel(address) as channel:
        for name in ("Drop", "Tables"):
            with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
                cast(Any, channel.unary_unary(f"/embedserve.v1.EmbeddingService/{name}"))(b"")
        assert calls_of(sample, "other") == {"UNIMPLEMENTED": 2}


def test_refused_calls_are_counted_by_reason() -> None:
    with counted(FakeEncoder(), limits=replace(Limits(), max_images=1)) as (address, sample):
        with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError):
            EmbeddingServiceStub(channel).Embed(pb.EmbedRequest(images=[picture(1)] * 2))
        wait_until(lambda: sample("embedserve_rejected_total", reason="LIMIT_EXCEEDED") == 1)


def test_calls_without_a_token_are_counted_and_get_their_request_id(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"read {'r' * 32}\n")
    tokens.chmod(0o600)
    with counted(FakeEncoder(), tokens=tokens) as (address, sample), grpc.insecure_channel(address) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            EmbeddingServiceStub(channel).Embed(pb.EmbedRequest(), metadata=(("x-request-id", "mine"),))
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert ("x-request-id", "mine") in [tuple(cast(Any, pair)) for pair in refused.value.trailing_metadata()]
        for path in ("/embedserve.v1.EmbeddingService/Embed", "/made.up.Service/Embed"):
            with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
                cast(Any, channel.unary_unary(path))(b"")
        wait_until(lambda: sample("embedserve_requests_in_flight") == 0)
        assert calls_of(sample, "Embed") == {"UNAUTHENTICATED": 2}
        assert calls_of(sample, "other") == {"UNAUTHENTICATED": 1}
        assert sample("embedserve_rejected_total", reason="UNAUTHENTICATED") == 3


def test_every_method_of_every_service_has_its_series_from_the_start() -> None:
    with counted(FakeEncoder()) as (_, sample):
        assert sample("embedserve_ready") == 1
    for method in ("Embed", "EmbedStream", "Search", "Upsert", "UpsertStream", "ListCollections"):
        registry = Metrics([f"/embedserve.v1.AService/{method}"]).registry
        assert registry.get_sample_value("embedserve_requests_total", {"method": method, "code": "OK"}) == 0


def test_images_in_flight_and_the_encoder_are_read_at_the_scrape() -> None:
    entered, released = threading.Event(), threading.Event()
    armed = threading.Event()

    def hold(images: np.ndarray) -> None:
        if armed.is_set():
            entered.set()
            released.wait(20)

    with counted(FakeEncoder(on_batch=hold)) as (address, sample), grpc.insecure_channel(address) as channel:
        assert sample("embedserve_queue_images") == sample("embedserve_queue_bytes") == 0
        armed.set()
        call = EmbeddingServiceStub(channel).Embed.future(pb.EmbedRequest(images=[picture(1), picture(2)]), timeout=20)
        assert entered.wait(20)
        assert sample("embedserve_queue_images") == 2
        assert sample("embedserve_queue_bytes") == len(picture(1)) + len(picture(2))
        assert sample("embedserve_queue_limit_images") == Limits().max_queue_images
        released.set()
        call.result()
        info = {"name": "fake", "provider": "CPUExecutionProvider", "fingerprint": "fa" * 32}
        assert sample("embedserve_encoder_info", **info, dimension="16", precision="fp32") == 1


def test_a_batch_is_one_inference_and_a_wait_for_each_image() -> None:
    metrics = Metrics([])
    metrics.on_batch([0.0002, 0.02, 3.0], inference_s=0.04)
    read = metrics.registry.get_sample_value
    assert read("embedserve_batch_size_sum") == 3
    assert read("embedserve_batch_size_count") == 1
    assert read("embedserve_stage_duration_seconds_count", {"stage": "inference"}) == 1
    assert read("embedserve_stage_duration_seconds_count", {"stage": "queue"}) == 3
    assert read("embedserve_stage_duration_seconds_bucket", {"stage": "queue", "le": "0.00025"}) == 1
    assert read("embedserve_stage_duration_seconds_bucket", {"stage": "queue", "le": "0.025"}) == 2


def test_everything_that_an_engine_reports_is_counted() -> None:
    metrics = Metrics([])
    metrics.on_image("embedded")
    metrics.on_image("expired")
    metrics.on_decoded(0.003)
    metrics.on_rejected(7)
    metrics.on_store("search", 0.001)
    metrics.on_sealed(1000, 2.0, "hnsw")
    metrics.on_sealed(500, 200.0, "hnsw")
    metrics.on_index_rebuilt("damaged")
    read = metrics.registry.get_sample_value
    assert read("embedserve_images_total", {"outcome": "embedded"}) == 1
    assert read("embedserve_images_total", {"outcome": "refused"}) == 0
    assert read("embedserve_rejected_images_total") == 7
    assert read("embedserve_index_built_rows_total", {"kind": "hnsw"}) == 1500
    assert read("embedserve_index_build_duration_seconds_bucket", {"kind": "hnsw", "le": "2.5"}) == 1
    assert read("embedserve_index_build_duration_seconds_bucket", {"kind": "hnsw", "le": "250.0"}) == 2
    assert read("embedserve_index_rebuilt_total", {"reason": "damaged"}) == 1
    for stage in ("decode", "search"):
        assert read("embedserve_stage_duration_seconds_count", {"stage": stage}) == 1
    told = {name for name in vars(Observer) if name.startswith("on_")}
    assert told <= vars(Metrics).keys()


def test_label_values_without_end_become_one_series() -> None:
    metrics = Metrics([])
    for number in range(100):
        metrics.on_index_rebuilt(f"reason {number}")
    [family] = [family for family in metrics.registry.collect() if family.name == "embedserve_index_rebuilt"]
    counts = {sample.labels["reason"]: sample.value for sample in family.samples if sample.name.endswith("_total")}
    assert len(counts) < 20
    assert counts["other"] == 100 - (len(counts) - 1)


class StoreOfOne(VectorStore):
    """Has one collection, ``info``; reading its state waits until ``ready``."""

    info = CollectionInfo(
        name="photos",
        fingerprint="fa" * 32,
        encoder_name="fake",
        dimension=16,
        keep=Keep.NONE,
        created_unix_s=0.0,
        items=90,
        disk_bytes=12_000,
        target_recall=0.97,
        recall=Recall(value=0.985, queries=50, real=True, measured_unix_s=0.0),
        building=True,
        segments=3,
        unsealed=20,
        deleted=7,
    )

    def __init__(self) -> None:
        self.ready = threading.Event()
        self.reads = 0

    def list_collections(self, wanted: Wanted = ALWAYS) -> list[CollectionInfo]:
        self.reads += 1
        assert self.ready.wait(30)
        return [self.info, replace(self.info, name="exact", recall=None)]

    def close(self) -> None:
        pass


def test_the_gauges_of_collections_show_the_last_state_and_a_slow_disk_delays_no_scrape(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("embedserve.server.telemetry.gauges._REFRESH_TIMEOUT_S", 0.05)

    async def check() -> None:
        store, metrics = cast(Any, StoreOfOne)(), Metrics([])
        engine = await Engine.start(FakeEncoder(), store)
        metrics.read_from(engine, ready=lambda: True)

        def sample(name: str, collection: str = "photos") -> float | None:
            return metrics.registry.get_sample_value(f"embedserve_collection_{name}", {"collection": collection})

        async with asyncio.timeout(10):
            for _ in range(3):
                await metrics.refresh_collections()
        assert store.reads == 1
        assert sample("items") is None
        store.ready.set()
        while sample("items") is None:
            await metrics.refresh_collections()
        names = ("items", "unsealed_items", "dead_rows", "segments", "building", "recall", "target_recall")
        assert [sample(name) for name in names] == [90, 20, 7, 3, 1, 0.985, 0.97]
        assert sample("disk_bytes") == 12_000
        assert sample("items", "exact") == 90
        assert sample("recall", "exact") is None
        await engine.close()
        await metrics.refresh_collections()
        assert sample("items") is None

    asyncio.run(check())


def test_a_scrape_shows_how_many_items_a_collection_has(tmp_path: Path) -> None:
    servers: list[Server] = []
    with serving(FakeEncoder(), tmp_path, http=True, on_listening=servers.append) as address, Client(address) as client:
        client.create_collection("photos")
        client.add("photos", [ItemInput(id=str(seed), image=picture(seed)) for seed in range(3)])
        with urllib.request.urlopen(f"{servers[0].http_url}/metrics", timeout=20) as answer:
            lines = answer.read().decode().splitlines()
    assert 'embedserve_collection_items{collection="photos"} 3.0' in lines
    assert 'embedserve_collection_target_recall{collection="photos"} 0.95' in lines


def test_writes_that_the_disk_refuses_are_counted_by_reason() -> None:
    metrics = Metrics([])
    for code in (DiskFull("").code, StoreError("").code, StoreError("").code):
        metrics.on_error(code)
    read = metrics.registry.get_sample_value
    assert read("embedserve_rejected_total", {"reason": "DISK_FULL"}) == 1
    assert read("embedserve_rejected_total", {"reason": "STORE"}) == 2


def test_counting_from_many_threads_loses_nothing() -> None:
    metrics = Metrics([])

    def count() -> None:
        for _ in range(2000):
            metrics.on_image("embedded")
            metrics.on_decoded(0.001)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert metrics.registry.get_sample_value("embedserve_images_total", {"outcome": "embedded"}) == 8000
    assert metrics.registry.get_sample_value("embedserve_stage_duration_seconds_count", {"stage": "decode"}) == 8000


def test_every_admitted_image_has_one_outcome() -> None:
    limits = replace(Limits(), max_queue_images=4)
    with counted(FakeEncoder(), limits=limits) as (address, sample), grpc.insecure_channel(address) as channel:
        stub = EmbeddingServiceStub(channel)
        stub.Embed(pb.EmbedRequest(images=[picture(1), b"no image", picture(2)]))
        requests = [pb.EmbedStreamRequest(key=str(seed), image=picture(seed)) for seed in range(5)]
        assert len(list(stub.EmbedStream(iter(requests)))) == 5
        outcomes = {name: sample("embedserve_images_total", outcome=name) for name in ("embedded", "refused", "failed")}
        assert outcomes == {"embedded": 7, "refused": 1, "failed": 0}
        assert sample("embedserve_batch_size_sum") == 7
        assert sample("embedserve_stage_duration_seconds_count", stage="decode") == 8


def test_images_of_calls_refused_in_overload_are_counted() -> None:
    entered, released, armed = threading.Event(), threading.Event(), threading.Event()

    def hold(images: np.ndarray) -> None:
        if armed.is_set():
            entered.set()
            released.wait(20)

    limits = replace(Limits(), max_queue_images=4)
    with counted(FakeEncoder(on_batch=hold), limits=limits) as (address, sample):
        with grpc.insecure_channel(address) as channel:
            stub = EmbeddingServiceStub(channel)
            armed.set()
            accepted = stub.Embed.future(pb.EmbedRequest(images=[picture(1)] * 3), timeout=20)
            assert entered.wait(20)
            with pytest.raises(grpc.RpcError, match="RESOURCE_EXHAUSTED"):
                stub.Embed(pb.EmbedRequest(images=[picture(1)] * 2))
            released.set()
            accepted.result()
        wait_until(lambda: sample("embedserve_rejected_total", reason="OVERLOADED") == 1)
        assert sample("embedserve_rejected_images_total") == 2


def test_the_documented_metrics_are_the_real_ones(tmp_path: Path) -> None:
    page = Path(__file__).resolve().parents[3] / "docs/operations.md"
    rows = re.findall(r"^\| `(embedserve_\w+)` \| (\w+) \| (.*?) \| (.*) \|$", page.read_text("utf-8"), re.MULTILINE)
    servers: list[Server] = []
    with (
        serving(FakeEncoder(), tmp_path, http=True, on_listening=servers.append) as address,
        Client(address) as client,
    ):
        client.create_collection("photos")
        servers[0].metrics.on_sealed(1, 1.0, "hnsw")
        servers[0].metrics.on_index_rebuilt("damaged")
        urllib.request.urlopen(f"{servers[0].http_url}/metrics", timeout=20).close()
        families = list(servers[0].metrics.registry.collect())
    there = []
    for family in families:
        if family.name.startswith("embedserve_"):
            suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
            labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
            if family.name == "embedserve_collection_recall":
                labels = ["collection"]  # it has samples once it has been measured
            kind = "gauge" if family.type == "info" else family.type
            there.append((family.name + suffix, kind, ", ".join(labels) or "–", family.documentation))
    assert rows == there, "\n".join(f"| `{name}` | {' | '.join(rest)} |" for name, *rest in there)
