"""Answers that are large: refused before they cost much, written without messages, and taken in time."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from embedserve import AsyncClient, Client, ItemInput, Query
from embedserve.errors import EmbedserveError, LimitExceeded
from embedserve.server.app import Server
from embedserve.server.calls import responses, untaken
from embedserve.types import Limits, Metadata
from embedserve.v1 import collection_service_pb2 as collections_pb
from embedserve.v1 import common_pb2
from embedserve.v1 import search_service_pb2 as search_pb
from embedserve.v1.collection_service_pb2_grpc import CollectionServiceStub
from embedserve.v1.search_service_pb2_grpc import SearchServiceStub
from tests.fakes import FakeEncoder
from tests.running import serving, wait_until
from tests.server.test_abuse import PREFACE, frame

KIB = 1 << 10
METADATA: Metadata = {
    "text": "ü\x00\x01\n" * 20, "n": 5, "x": 0.5, "yes": True, "list": ["a", ""], "none": [], "long": "y" * 3000
}  # fmt: skip
COUNT = 60


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Server]]:
    """A server whose messages have at most 100 KiB, with items of about 3 KiB."""
    found: list[Server] = []
    limits = Limits(max_message_bytes=100 * KIB, max_image_bytes=100 * KIB)
    data = tmp_path_factory.mktemp("answers")
    with serving(FakeEncoder(), data, limits=limits, on_listening=found.append) as address, Client(address) as client:
        client.create_collection("items", external=True, dimension=4)
        vectors = np.random.default_rng(3).standard_normal((COUNT, 4)).astype(np.float32)
        for result in client.add(
            "items", [ItemInput(id=f"{n:03}", vector=vectors[n], metadata=METADATA) for n in range(COUNT)]
        ):
            assert result.error is None
        yield address, found[0]


@pytest.fixture
def address(servers: tuple[str, Server]) -> str:
    return servers[0]


def queries(count: int) -> list[search_pb.SearchQuery]:
    vectors = np.random.default_rng(count).standard_normal((count, 4)).astype("<f4")
    return [search_pb.SearchQuery(vector=common_pb2.Vector(packed_f32=vector.tobytes())) for vector in vectors]


def same(one: Any, other: Any) -> bool:
    """Whether two responses are equal but for the time that they took."""
    for response in (one, other):
        if "timings" in response.DESCRIPTOR.fields_by_name:
            response.ClearField("timings")
    return bool(one == other)


@pytest.mark.parametrize("encoding", common_pb2.VectorEncoding.values())
def test_a_response_written_as_bytes_is_the_message(
    address: str, monkeypatch: pytest.MonkeyPatch, encoding: Any
) -> None:
    bad = search_pb.SearchQuery(item_id="missing")
    search = search_pb.SearchRequest(
        collection="items", queries=[*queries(3), bad, search_pb.SearchQuery(item_id="001")], k=4,
        include_metadata=True, include_vectors=True, vector_encoding=encoding,
    )  # fmt: skip
    get = collections_pb.GetItemsRequest(
        collection="items", ids=["001", "missing", "002", "001"], include_metadata=True, include_vectors=True,
        vector_encoding=encoding,
    )  # fmt: skip
    page = collections_pb.ListItemsRequest(
        collection="items", page_size=3, include_metadata=True, include_vectors=True, vector_encoding=encoding
    )
    with grpc.insecure_channel(address) as channel:
        calls: list[Callable[[], Any]] = [
            lambda: SearchServiceStub(channel).Search(search, timeout=20),
            lambda: CollectionServiceStub(channel).GetItems(get, timeout=20),
            lambda: CollectionServiceStub(channel).ListItems(page, timeout=20),
        ]
        expected = [call() for call in calls]
        monkeypatch.setattr(responses, "_LARGE_BYTES", 0)
        monkeypatch.setattr("embedserve.store.local.collection.hits.EAGER_BYTES", 0)
        monkeypatch.setattr("embedserve.store.local.records.view.EAGER_BYTES", 0)
        encoded = [call() for call in calls]
    assert len(expected[0].results) == 5
    assert expected[0].results[3].HasField("error")
    assert dict(encoded[1].results[0].item.metadata) == dict(expected[1].results[0].item.metadata)
    assert all(same(one, other) for one, other in zip(expected, encoded, strict=True))


def test_an_answer_that_fits_no_message_is_refused_and_says_what_to_ask_less_of(
    servers: tuple[str, Server],
) -> None:
    address, server = servers
    with grpc.insecure_channel(address) as channel:
        for call in (
            lambda: SearchServiceStub(channel).Search(
                search_pb.SearchRequest(collection="items", queries=queries(16), k=50, include_metadata=True),
                timeout=20,
            ),
            lambda: CollectionServiceStub(channel).GetItems(
                collections_pb.GetItemsRequest(
                    collection="items", ids=[f"{n:03}" for n in range(COUNT)], include_metadata=True
                ),
                timeout=20,
            ),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                call()
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "max_message_bytes is 102400" in str(refused.value.details())
    wait_until(lambda: server._state.engine.answers.held == 0)
    assert not server._state.engine.answers.open


def test_list_items_gives_shorter_pages_rather_than_none(address: str) -> None:
    with Client(address) as client:
        items = list(client.list_items("items", page_size=1000))
        assert [item.id for item in items] == [f"{n:03}" for n in range(COUNT)]
        assert items[0].metadata == METADATA


def kinds(answers: list[Any]) -> list[object]:
    return [len(answer) if isinstance(answer, list) else type(answer) for answer in answers]


def test_search_many_asks_again_for_fewer_queries(servers: tuple[str, Server]) -> None:
    address, _ = servers
    vectors = np.random.default_rng(5).standard_normal((40, 4)).astype(np.float32)
    asked = [Query(vector=vector) for vector in vectors]
    asked[7] = Query(vector=vectors[7, :3])  # refused alone

    async def asynchronously(k: int) -> list[Any]:
        async with AsyncClient(address) as client:
            return await client.search_many("items", asked, k=k, errors="keep")

    with Client(address) as client:
        for answers in (client.search_many("items", asked, k=20, errors="keep"), asyncio.run(asynchronously(20))):
            expected: list[object] = [20] * 40
            expected[7] = type(answers[7])
            assert kinds(answers) == expected
            assert isinstance(answers[7], EmbedserveError)
            one = client.search("items", vector=vectors[33], k=20)
            assert answers[33] == one  # in its place
        # Even one alone is too large: an error in the place of each, and not without end.
        for answers in (
            client.search_many("items", asked[:5], k=60, errors="keep"),
            asyncio.run(asynchronously(60))[:5],
        ):
            assert kinds(answers) == [LimitExceeded] * 5
        with pytest.raises(LimitExceeded):
            client.search("items", vector=vectors[0], k=60)


def test_get_items_asks_again_for_fewer_ids(address: str) -> None:
    ids = [*(f"{n:03}" for n in range(COUNT)), "missing", "001"]

    async def asynchronously() -> list[Any]:
        async with AsyncClient(address) as client:
            client._calls.known_limits = Limits(max_items=1000)  # as if metadata could not be so large
            return await client.get_items("items", ids)

    with Client(address) as client:
        client._calls.known_limits = Limits(max_items=1000)
        for items in (client.get_items("items", ids), asyncio.run(asynchronously())):
            assert [None if item is None else item.id for item in items] == [*ids[:COUNT], None, "001"]


def test_splitting_remembers_what_was_too_much(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    with Client(address) as client:
        client._calls.known_limits = Limits(max_queries=64, max_message_bytes=10**6)
        search = client._calls.stubs.search.Search
        asked = [Query(id=f"{n % COUNT:03}") for n in range(256)]

        class Counted:
            def __call__(self, request: search_pb.SearchRequest, **more: Any) -> Any:
                calls.append(len(request.queries))
                return search(request, **more)

            def future(self, request: search_pb.SearchRequest, **more: Any) -> Any:
                calls.append(len(request.queries))
                return search.future(request, **more)

        monkeypatch.setattr(client._calls.stubs.search, "Search", Counted())
        answers = client.search_many("items", asked, k=10)
    assert kinds(answers) == [10] * 256
    # Four calls of 64 are in flight before the first is refused; then halves, down to 2 or 3 queries.
    assert sum(count == 64 for count in calls) == 4
    assert len(calls) <= 256 // 2 + 4 + 10


class Unread:
    """HTTP/2 by hand: a call whose response has a flow-control window of zero."""

    def __init__(self, address: str, method: str, request: bytes) -> None:
        import socket

        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=20)
        self._socket.sendall(PREFACE + frame(4, 0, 0, struct.pack(">HI", 4, 0)))
        fields = [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", method.encode()),
            (b":authority", b"test"),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
        ]
        block = b"".join(b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in fields)
        self._socket.sendall(frame(1, 4, 1, block))
        self._socket.sendall(frame(0, 1, 1, b"\0" + struct.pack(">I", len(request)) + request))

    def close(self) -> None:
        self._socket.close()


def test_an_answer_that_nobody_takes_holds_room_and_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedserve.engine.answers._SMALL_BYTES", 1000)
    monkeypatch.setattr("embedserve.engine.answers._LONGEST_WAIT_S", 0.05)
    monkeypatch.setattr(untaken, "_LOOK_S", 0.02)
    found: list[Server] = []
    limits = Limits(max_answer_bytes=100 * KIB, max_message_bytes=60 * KIB, max_image_bytes=60 * KIB)
    with (
        serving(FakeEncoder(), tmp_path, limits=limits, on_listening=found.append) as address,
        Client(address) as client,
    ):
        client.create_collection("items", external=True, dimension=4)
        vectors = np.random.default_rng(3).standard_normal((10, 4)).astype(np.float32)
        client.add("items", [ItemInput(id=f"{n}", vector=vectors[n], metadata=METADATA) for n in range(10)])
        answers = found[0]._state.engine.answers
        request = collections_pb.GetItemsRequest(
            collection="items", ids=[f"{n}" for n in range(10)], include_metadata=True
        )
        method = "/embedserve.v1.CollectionService/GetItems"
        with closing(Unread(address, method, request.SerializeToString())):
            wait_until(lambda: 30 * KIB < answers.held < 40 * KIB)
            with pytest.raises(grpc.RpcError) as refused:
                client._calls.stubs.collections.GetItems(request, timeout=20)
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "max_answer_bytes is 102400" in str(refused.value.details())
            assert client.get_collection("items").items == 10
            monkeypatch.setattr(untaken, "TAKE_TIMEOUT_S", 0.0)
            monkeypatch.setattr(untaken, "_TAKE_TIMEOUT_WHILE_OTHERS_WAIT_S", 0.0)
            wait_until(lambda: answers.held == 0)
            wait_until(lambda: found[0]._call_limits.calls == 0)
            assert len(client.get_items("items", ["1"])) == 1
