"""The calls of the tool against real servers: one of ours with a fake encoder, and one that answers by script."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedserve import Client, wire
from embedserve.client.access import access
from embedserve.errors import DeadlineExceeded, FailedPrecondition, Overloaded, Unavailable
from embedserve.loadtest import loops, requests, senders
from embedserve.loadtest.report import Run
from embedserve.loadtest.sweep import Plan, Rate, sweep
from embedserve.v1 import collection_service_pb2 as collection_pb
from embedserve.v1 import embedding_service_pb2 as embedding_pb
from embedserve.v1 import search_service_pb2 as search_pb
from tests.client import fake_server
from tests.client.fake_server import FakeServer
from tests.fakes import DIMENSION, FakeEncoder, picture
from tests.running import serving

IMAGES = [picture(seed) for seed in range(5)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(FakeEncoder(), tmp_path_factory.mktemp("server") / "data") as address:
        yield address


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with fake_server.serving() as fake:
        yield fake


def swept(
    address: str,
    load: requests.Load,
    *,
    clients: Sequence[int] = (),
    rates: Sequence[Rate] = (),
    seconds: float = 0.3,
    timeout_s: float = 20,
    connections: int = 1,
    stream: bool = False,
    max_outstanding: int = 1000,
    max_calls: int = 100_000,
) -> list[Run]:
    plan = Plan(
        clients=clients,
        rates=rates,
        seconds=seconds,
        warmup_s=0,
        timeout_s=timeout_s,
        connections=connections,
        stream=stream,
        max_outstanding=max_outstanding,
        max_calls=max_calls,
        seed=0,
    )

    async def main() -> list[Run]:
        target = access(address)
        return await sweep(target, load, plan, stop=asyncio.Event(), look=lambda name: nullcontext(lambda _: None))

    return loops.run(main())


def codes(runs: Sequence[Run]) -> set[str]:
    return {code for run in runs for code in run.measured.codes()}


# --- Against a server of ours ---


def test_closed_and_open_loops_embed_on_a_real_server(server: str) -> None:
    runs = swept(server, requests.embed(IMAGES, per_call=3), clients=[1, 4], rates=[Rate(60), Rate(0.5, is_share=True)])
    assert codes(runs) == {"OK"}
    assert [run.clients for run in runs] == [1, 4, None, None]
    best = max(run.measured.images_per_s for run in runs[:2])
    assert [run.rate for run in runs[2:]] == [60, 0.5 * best]
    assert [run.of_capacity for run in runs] == [None, None, None, 0.5]
    for run in runs:
        assert run.measured.server_ms()["total"] > 0


def test_a_stream_gives_every_image_its_own_answer(server: str) -> None:
    bad = requests.embed_stream([*IMAGES, b"no image"], 1)
    [run] = swept(server, bad, clients=[7], stream=True, connections=2, max_calls=60, seconds=20)
    # Every sixth number is the bad image: answers that were given to the wrong call would show.
    assert run.measured.codes() == {"OK": 50, "IMAGE_FORMAT": 10}


def test_a_stream_may_carry_several_images_in_a_message(server: str) -> None:
    load = requests.embed_stream([*IMAGES, b"no image"], 4)
    [run] = swept(server, load, clients=[3], stream=True, max_calls=9, seconds=20)
    # Twelve images in three messages: two of those messages have one bad image each, round and round.
    assert run.measured.codes() == {"IMAGE_FORMAT": 6, "OK": 3}
    assert run.measured.failed_images() == {"IMAGE_FORMAT": 6}


def test_one_bad_image_in_a_call_is_counted_by_its_code(server: str) -> None:
    load = requests.embed([*IMAGES[:3], b"no image"], per_call=4)
    [run] = swept(server, load, clients=[1], max_calls=5, seconds=20)
    assert run.measured.codes() == {"IMAGE_FORMAT": 5}
    assert run.measured.failed_images() == {"IMAGE_FORMAT": 5}
    assert run.measured.images_per_s > 0


def test_searches_by_image_and_by_vector_and_upserts(server: str) -> None:
    with Client(server) as client:
        client.create_collection("pictures")
        made_by = client.encoder().fingerprint
    items = [collection_pb.UpsertItem(image=image) for image in IMAGES]
    upserts = requests.upsert(items, 2, collection="pictures", made_by="", prefix="bench-")
    assert len(set(upserts.ids)) == len(upserts.ids) == 2 * len(upserts.requests)
    vectors = [
        search_pb.SearchQuery(vector=wire.vector_to_proto(row, wire.PACKED_F32))
        for row in np.eye(DIMENSION, dtype=np.float32)
    ]
    images = [search_pb.SearchQuery(image=image) for image in IMAGES]
    loads = [
        upserts,
        requests.search(images, 2, collection="pictures", k=3, made_by=""),
        requests.search(vectors, 1, collection="pictures", k=3, made_by=made_by),
    ]
    for load in loads:
        [run] = swept(server, load, clients=[2], max_calls=20, seconds=20)
        assert run.measured.codes() == {"OK": 20}, load.noun
        assert run.measured.images_per_s > 0
    with Client(server) as client:
        assert client.get_collection("pictures").items == 40


# --- Against a server that answers by script ---


@contextmanager
def held(fake: FakeServer) -> Iterator[threading.Event]:
    """While it is not set, no call of Embed is answered."""
    release = threading.Event()
    answer = fake.scripts["Embed"]

    def wait(request: Any) -> Any:
        release.wait(20)
        return answer(request)

    fake.on("Embed", wait)
    try:
        yield release
    finally:
        release.set()


def refuse(request: Any) -> Any:
    raise Overloaded("the queue is full", retry_after_ms=5)


def test_refusals_are_counted_by_the_code_that_the_server_gave(fake: FakeServer) -> None:
    fake.on("Embed", refuse)
    [run] = swept(fake.target, requests.embed(IMAGES, 1), clients=[1], max_calls=4, seconds=20)
    assert run.measured.codes() == {Overloaded.code: 4}
    assert run.measured.messages == {Overloaded.code: "the queue is full"}
    assert len(fake.asked("Embed")) == 4, "nothing is tried again: a load tool counts"


def test_a_call_that_is_not_answered_in_time_is_counted_as_such(fake: FakeServer) -> None:
    with held(fake):
        [run] = swept(fake.target, requests.embed(IMAGES, 1), clients=[2], max_calls=4, seconds=20, timeout_s=0.05)
    assert run.measured.codes() == {DeadlineExceeded.code: 4}


def test_what_is_due_while_the_server_holds_all_calls_is_not_sent(fake: FakeServer) -> None:
    with held(fake) as release:
        timer = threading.Timer(1, release.set)
        timer.start()
        [run] = swept(fake.target, requests.embed(IMAGES, 1), rates=[Rate(100)], seconds=0.5, max_outstanding=3)
        timer.join()
    counts = run.measured.codes()
    assert counts["OK"] == len(fake.asked("Embed")) == 3
    assert counts["NOT_SENT"] == sum(counts.values()) - 3 > 10


def test_a_share_of_no_throughput_is_refused_as_a_rate(fake: FakeServer) -> None:
    fake.on("Embed", refuse)
    with pytest.raises(FailedPrecondition, match="no rate that is 50%"):
        swept(fake.target, requests.embed(IMAGES, 1), clients=[1], rates=[Rate(0.5, is_share=True)], max_calls=2)


def test_each_connection_is_separate(fake: FakeServer) -> None:
    peers: set[str] = set()
    answer, handle = fake.scripts["Embed"], fake.handle

    def note(method: str, request: Any, context: Any) -> Any:
        peers.add(context.peer())
        return handle(method, request, context)

    fake.handle = note  # type: ignore[method-assign]
    fake.on("Embed", answer)
    swept(fake.target, requests.embed(IMAGES, 1), clients=[3], connections=3, max_calls=9, seconds=20)
    assert len(peers) == 3


def test_a_server_that_cannot_be_reached_is_named() -> None:
    async def main() -> None:
        await senders.connect(access("127.0.0.1:1"), 1, timeout_s=0.2)

    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
        loops.run(main())


def test_the_images_of_a_stream_that_fails_fail_with_it_and_the_next_ones_open_another(tmp_path: Path) -> None:
    load = requests.embed_stream(IMAGES, 1)

    async def main(address: str) -> list[str]:
        target = access(address)
        channels = await senders.connect(target, 1)
        streams = senders.Streams(channels, load, target, timeout_s=20)
        await streams.send(0)
        [stream] = streams._streams
        assert stream._reader is not None
        waiting = [asyncio.create_task(streams.send(number)) for number in range(3)]
        await asyncio.sleep(0)
        stream._reader.cancel()
        failed = [type(result).__name__ for result in await asyncio.gather(*waiting, return_exceptions=True)]
        await streams.send(4)
        await streams.close()
        await senders.close(channels)
        return failed

    with serving(FakeEncoder()) as address:
        assert loops.run(main(address)) == ["Unavailable"] * 3


# --- Requests ---


def test_in_calls_of_several_every_image_comes_equally_often() -> None:
    load = requests.embed(IMAGES, per_call=3)
    sent = [image for data in load.requests[:5] for image in embedding_pb.EmbedRequest.FromString(data).images]
    assert sent == IMAGES * 3


def test_requests_take_a_bounded_amount_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "MAX_BYTES", 10_000)
    assert sum(map(len, requests.embed([bytes(3_000)] * 50, 1).requests)) <= 10_000
    assert len(requests.embed([bytes(30_000)] * 50, 1).requests) == 1, "one there has to be"
