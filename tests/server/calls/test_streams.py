from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import grpc
import pytest

from embedserve import Client
from embedserve.engine.admission import Admission
from embedserve.errors import Unavailable
from embedserve.server.calls.streams import Cost, ReadAhead, ordered
from embedserve.types import Limits
from embedserve.v1 import collection_service_pb2 as collection_pb
from embedserve.v1 import embedding_service_pb2 as pb
from embedserve.v1.collection_service_pb2_grpc import CollectionServiceStub
from embedserve.v1.embedding_service_pb2_grpc import EmbeddingServiceStub
from tests.fakes import FakeEncoder, picture
from tests.running import serving


def read_ahead(
    window: int, admission: Admission | None = None, readers: set[asyncio.Task[Any]] | None = None
) -> ReadAhead[int]:
    return ReadAhead(
        window=window,
        admission=admission or Admission(Limits()),
        cost_of=lambda _: Cost(1, 1, 10),
        readers=set() if readers is None else readers,
    )


async def numbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


def done(number: int) -> tuple[str, asyncio.Future[int]]:
    """Work that is done as soon as it is begun."""
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    future.set_result(number)
    return f"key {number}", future


class Jobs:
    """Work on each request, which is done when a test says so."""

    def __init__(self) -> None:
        self.futures: list[asyncio.Future[int]] = []

    def begin(self, number: int) -> tuple[int, asyncio.Future[int]]:
        self.futures.append(asyncio.get_running_loop().create_future())
        return number, self.futures[-1]


async def same(group: list[Any]) -> list[Any]:
    """The responses are what was begun, with its result."""
    return group


async def settle() -> None:
    """Let every task run as far as it can."""
    for _ in range(50):
        await asyncio.sleep(0)


def test_responses_come_in_the_order_of_the_requests_whichever_is_done_first() -> None:
    async def scenario() -> list[tuple[int, int]]:
        jobs = Jobs()
        results = asyncio.ensure_future(collect(ordered(numbers(6), jobs.begin, same, read_ahead(6))))
        await settle()
        for number in (5, 1, 3, 0, 4, 2):
            jobs.futures[number].set_result(number * 10)
            await settle()
        return await results

    assert asyncio.run(scenario()) == [(number, number * 10) for number in range(6)]


async def collect(results: AsyncIterator[Sequence[Any]]) -> list[Any]:
    return [result async for group in results for result in group]


def test_no_more_than_the_window_is_in_flight() -> None:
    async def scenario() -> list[int]:
        jobs = Jobs()
        results = asyncio.ensure_future(collect(ordered(numbers(12), jobs.begin, same, read_ahead(5))))
        running = []
        for answered in range(12):
            await settle()
            running.append(len(jobs.futures) - answered)
            jobs.futures[answered].set_result(answered)
        assert len(await results) == 12
        return running

    assert asyncio.run(scenario()) == [5] * 8 + [4, 3, 2, 1]


def test_work_of_a_closed_stream_is_cancelled() -> None:
    async def scenario() -> list[bool]:
        jobs = Jobs()
        results = ordered(numbers(4), jobs.begin, same, read_ahead(4))
        first = asyncio.ensure_future(anext(results))
        await settle()
        jobs.futures[0].set_result(0)
        assert await first == [(0, 0)]
        await cast(Any, results).aclose()
        return [future.cancelled() for future in jobs.futures]

    assert asyncio.run(scenario()) == [False, True, True, True]


def test_what_reading_raises_is_raised_after_what_was_read() -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise ConnectionError("gone")

    async def scenario() -> list[Sequence[Any]]:
        results = ordered(broken(), done, same, read_ahead(2))
        got = [await anext(results)]
        with pytest.raises(ConnectionError, match="gone"):
            await anext(results)
        return got

    assert asyncio.run(scenario()) == [[("key 1", 1)]]


def test_results_that_are_ready_together_are_finished_together_while_others_begin() -> None:
    async def scenario() -> tuple[list[list[int]], int]:
        jobs, groups, go_on = Jobs(), [], asyncio.Event()

        async def finish(group: list[tuple[int, int]]) -> list[int]:
            groups.append([number for number, _ in group])
            await go_on.wait()
            return [number for number, _ in group]

        results = ordered(numbers(8), jobs.begin, finish, read_ahead(6))
        first = asyncio.ensure_future(anext(results))
        await settle()
        for number in (1, 2, 0):
            jobs.futures[number].set_result(number)
        await settle()
        for number in (3, 4):  # while the first group is being finished
            jobs.futures[number].set_result(number)
        await settle()
        begun = len(jobs.futures)
        go_on.set()
        assert await first == [0, 1, 2]
        assert await anext(results) == [3, 4]
        await cast(Any, results).aclose()
        return groups, begun

    groups, begun = asyncio.run(scenario())
    assert groups == [[0, 1, 2], [3, 4]]
    assert begun == 6


def test_a_stream_is_read_no_further_than_admission_has_room_for() -> None:
    async def scenario() -> tuple[int, int, list[int]]:
        admission = Admission(Limits(max_queue_images=6))
        taken = 0

        async def requests() -> AsyncIterator[int]:
            nonlocal taken
            async for number in numbers(20):
                taken += 1
                yield number

        jobs = Jobs()
        results = asyncio.ensure_future(collect(ordered(requests(), jobs.begin, same, read_ahead(16, admission))))
        await settle()
        taken_before, held_before = taken, admission.images
        for number in range(20):
            jobs.futures[number].set_result(number)
            await settle()
        assert admission.images == admission.bytes == 0
        return taken_before, held_before, [number for number, _ in await results]

    taken, held, results = asyncio.run(scenario())
    assert held == 3  # half of the room; the other half is for calls
    assert taken == 4  # one more has been read, and waits for admission
    assert results == list(range(20))


def test_responses_that_are_not_read_stall_their_own_stream_and_take_no_room() -> None:
    async def scenario() -> tuple[int, int, int]:
        admission, jobs = Admission(Limits()), Jobs()
        results = ordered(numbers(20), jobs.begin, same, read_ahead(4, admission))
        first = asyncio.ensure_future(anext(results))
        await settle()
        held = admission.images
        for future in jobs.futures:
            future.set_result(0)
        await first
        await settle()
        begun, held_then = len(jobs.futures), admission.images
        await cast(Any, results).aclose()
        assert admission.images == admission.bytes == 0
        return held, held_then, begun

    assert asyncio.run(scenario()) == (4, 0, 4)


def test_a_stream_that_ends_while_it_waits_for_room_leaves_nothing_behind() -> None:
    async def scenario() -> tuple[int, int]:
        admission, jobs = Admission(Limits(max_queue_images=8)), Jobs()
        results = ordered(numbers(20), jobs.begin, same, read_ahead(16, admission))
        first = asyncio.ensure_future(anext(results))
        await settle()
        assert admission.images == 4  # the fifth waits for room
        jobs.futures[0].set_result(0)
        await first
        await settle()
        await cast(Any, results).aclose()
        await settle()
        after = admission.images
        others = await collect(ordered(numbers(6), done, same, read_ahead(16, admission)))
        assert len(others) == 6
        return after, admission.images

    assert asyncio.run(scenario()) == (0, 0)


def test_what_finishing_raises_ends_the_stream() -> None:
    async def broken(group: list[Any]) -> list[Any]:
        raise ConnectionError("the disk is gone")

    async def scenario() -> int:
        admission = Admission(Limits())
        with pytest.raises(ConnectionError, match="the disk is gone"):
            await collect(ordered(numbers(6), done, broken, read_ahead(4, admission)))
        return admission.images

    assert asyncio.run(scenario()) == 0


def test_a_draining_server_answers_what_was_read_and_then_ends_the_stream() -> None:
    async def scenario() -> list[int]:
        readers: set[asyncio.Task[Any]] = set()

        async def requests() -> AsyncIterator[int]:
            yield 1
            yield 2
            await asyncio.Event().wait()  # an idle client

        results = ordered(requests(), done, same, read_ahead(4, readers=readers))
        got: list[int] = []
        while len(got) < 2:
            got += [number for _, number in await anext(results)]
        for reader in list(readers):
            reader.cancel()
        with pytest.raises(Unavailable, match="shutting down"):
            await anext(results)
        return got

    assert asyncio.run(scenario()) == [1, 2]


def test_an_unknown_encoding_fails_one_response_of_a_stream() -> None:
    requests = [
        pb.EmbedStreamRequest(key=str(n), image=picture(n), vector_encoding=cast(Any, 99 * (n == 1))) for n in range(3)
    ]
    with serving(FakeEncoder()) as address, grpc.insecure_channel(address) as channel:
        responses = list(EmbeddingServiceStub(channel).EmbedStream(iter(requests), timeout=30))
    assert [response.result.WhichOneof("result") for response in responses] == ["vector", "error", "vector"]


def test_an_upsert_stream_fits_a_server_with_little_room(tmp_path: Path) -> None:
    requests = (
        collection_pb.UpsertStreamRequest(
            collection="photos", item=collection_pb.UpsertItem(id=str(n), image=picture(n))
        )
        for n in range(12)
    )
    limits = Limits(max_queue_images=2, max_images=4)
    with serving(FakeEncoder(), tmp_path, limits=limits) as address, Client(address) as client:
        client.create_collection("photos")
        with grpc.insecure_channel(address) as channel:
            responses = list(CollectionServiceStub(channel).UpsertStream(requests, timeout=30))
    assert [response.result.id for response in responses] == [str(n) for n in range(12)]


def test_an_embed_stream_answers_in_order_and_continues_after_a_bad_image() -> None:
    images = [picture(seed) if seed % 7 else b"bad" for seed in range(100)]
    with serving(FakeEncoder()) as address, grpc.insecure_channel(address) as channel:
        requests = (pb.EmbedStreamRequest(key=f"k{n}", image=image) for n, image in enumerate(images))
        responses = list(EmbeddingServiceStub(channel).EmbedStream(requests, timeout=30))
        [expected] = EmbeddingServiceStub(channel).Embed(pb.EmbedRequest(images=[images[50]]), timeout=30).results
    assert [response.key for response in responses] == [f"k{n}" for n in range(100)]
    assert [n for n, response in enumerate(responses) if response.result.HasField("error")] == list(range(0, 100, 7))
    assert responses[50].result.vector == expected.vector


def test_an_upsert_stream_acknowledges_every_item_and_stores_it(tmp_path: Path) -> None:
    def requests() -> Iterator[collection_pb.UpsertStreamRequest]:
        for seed in range(60):
            item = collection_pb.UpsertItem(id=f"{seed:02}", image=picture(seed) if seed != 30 else b"bad")
            yield collection_pb.UpsertStreamRequest(collection="photos", item=item)

    with serving(FakeEncoder(), tmp_path) as address, Client(address) as client:
        client.create_collection("photos")
        with grpc.insecure_channel(address) as channel:
            responses = list(CollectionServiceStub(channel).UpsertStream(requests(), timeout=30))
        stored = [item.id for item in client.list_items("photos")]
    assert [response.index for response in responses] == list(range(60))
    assert [response.result.id for response in responses if response.result.HasField("id")] == stored
    assert stored == [f"{seed:02}" for seed in range(60) if seed != 30]


def test_an_upsert_stream_to_a_missing_collection_fails_as_a_whole(tmp_path: Path) -> None:
    with serving(FakeEncoder(), tmp_path) as address, grpc.insecure_channel(address) as channel:
        request = collection_pb.UpsertStreamRequest(collection="no", item=collection_pb.UpsertItem(image=picture(1)))
        with pytest.raises(grpc.RpcError) as failed:
            list(CollectionServiceStub(channel).UpsertStream(iter([request]), timeout=30))
    assert failed.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_message_of_several_images_has_a_result_for_each_and_a_bad_one_fails_alone() -> None:
    groups = [[picture(0), b"bad", picture(2)], [picture(3)], [b"bad"]]
    with serving(FakeEncoder()) as address, grpc.insecure_channel(address) as channel:
        stub = EmbeddingServiceStub(channel)
        requests = (pb.EmbedStreamRequest(key=f"k{n}", images=images) for n, images in enumerate(groups))
        responses = list(stub.EmbedStream(requests, timeout=30))
        expected = stub.Embed(pb.EmbedRequest(images=groups[0]), timeout=30)
    assert [response.key for response in responses] == ["k0", "k1", "k2"]
    assert [[result.WhichOneof("result") for result in response.results] for response in responses] == [
        ["vector", "error", "vector"],
        ["vector"],
        ["error"],
    ]
    assert list(responses[0].results) == list(expected.results)
    assert responses[0].encoder == expected.encoder
    assert not any(response.HasField("result") for response in responses)


def test_a_message_that_is_refused_as_a_whole_says_why_once_and_the_stream_continues(tmp_path: Path) -> None:
    image = picture(0)
    embeds = [
        pb.EmbedStreamRequest(key="many", images=[image] * 5),
        pb.EmbedStreamRequest(key="both", image=image, images=[image]),
        pb.EmbedStreamRequest(key="good", images=[image] * 4),
    ]
    item = collection_pb.UpsertItem(id="a", image=image)
    upserts = [
        collection_pb.UpsertStreamRequest(collection="photos", items=[item] * 5),
        collection_pb.UpsertStreamRequest(collection="photos", item=item, items=[item]),
        collection_pb.UpsertStreamRequest(collection="photos", items=[item] * 4),
    ]
    with serving(FakeEncoder(), tmp_path, limits=Limits(max_images=4)) as address, Client(address) as client:
        client.create_collection("photos")
        with grpc.insecure_channel(address) as channel:
            embedded = list(EmbeddingServiceStub(channel).EmbedStream(iter(embeds), timeout=30))
            upserted = list(CollectionServiceStub(channel).UpsertStream(iter(upserts), timeout=30))
    assert [response.result.error.message for response in embedded] == [
        "5 images in one message; max_images is 4",
        "the message has both image and images",
        "",
    ]
    assert [response.result.error.message for response in upserted] == [
        "5 images in one message; max_images is 4",
        "the message has both item and items",
        "",
    ]
    responses: list[Any] = [*embedded, *upserted]
    assert [len(response.results) for response in responses] == [0, 0, 4, 0, 0, 4]
    assert [response.index for response in upserted] == [0, 5, 6]


def test_an_embed_stream_for_another_encoder_is_refused() -> None:
    request = pb.EmbedStreamRequest(image=picture(1), encoder_fingerprint="12" * 32)
    with (
        serving(FakeEncoder()) as address,
        grpc.insecure_channel(address) as channel,
        pytest.raises(grpc.RpcError) as failed,
    ):
        list(EmbeddingServiceStub(channel).EmbedStream(iter([request]), timeout=30))
    assert failed.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_if_an_id_occurs_twice_in_a_stream_the_later_item_counts(tmp_path: Path) -> None:
    def message(*numbers: int) -> collection_pb.UpsertStreamRequest:
        items = [collection_pb.UpsertItem(id="a", image=picture(number)) for number in numbers]
        for item, number in zip(items, numbers, strict=True):
            item.metadata["n"].int64_value = number
        return collection_pb.UpsertStreamRequest(collection="photos", items=items)

    requests = [message(1), message(2, 3), *(message(number) for number in range(4, 40))]
    with serving(FakeEncoder(), tmp_path) as address, Client(address) as client:
        client.create_collection("photos")
        with grpc.insecure_channel(address) as channel:
            list(CollectionServiceStub(channel).UpsertStream(iter(requests), timeout=30))
        [item] = client.list_items("photos")
    assert item.metadata == {"n": 39}


def test_a_stream_has_no_more_images_in_flight_than_its_window_however_large_its_messages() -> None:
    async def scenario() -> int:
        admission, most = Admission(Limits()), 0

        def begin(number: int) -> tuple[int, asyncio.Future[None]]:
            nonlocal most
            most = max(most, admission.images)
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_soon(future.set_result, None)
            return number, future

        for window in (16, 4):
            sevens: ReadAhead[int] = ReadAhead(
                window=window, admission=admission, cost_of=lambda _: Cost(7, 7, 10), readers=set()
            )
            assert [number for number, _ in await collect(ordered(numbers(50), begin, same, sevens))] == list(range(50))
        assert admission.images == 0
        return most

    assert asyncio.run(scenario()) == 14
