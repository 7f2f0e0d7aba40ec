"""Several servers behind one client: calls in turn, past those that are down, each with its own certificate."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from embedserve import AsyncClient, Client
from embedserve.errors import InvalidInput, Unavailable
from embedserve.v1 import collection_service_pb2 as collection_pb
from tests.certificates import Authority
from tests.client.fake_server import Connect, FakeServer, serving
from tests.fakes import FakeEncoder, picture
from tests.running import serving as serving_really
from tests.sizes import fast_retries
from tests.waiting import wait_until

MANY = [bytes([number]) for number in range(1, 200)]


@pytest.fixture
def pair() -> Iterator[tuple[FakeServer, FakeServer]]:
    with serving() as one, serving() as other:
        yield one, other


def test_calls_go_to_the_servers_in_turn(connect: Connect, pair: tuple[FakeServer, FakeServer]) -> None:
    client = connect([fake.target for fake in pair])
    wait_until(lambda: bool(client.server_info() and all(fake.requests for fake in pair)))
    for fake in pair:
        fake.requests.clear()
    for _ in range(10):
        client.server_info()
    assert [len(fake.requests) for fake in pair] == [5, 5]


def test_a_text_with_commas_is_a_list_too(connect: Connect, pair: tuple[FakeServer, FakeServer]) -> None:
    client = connect(",".join(fake.target for fake in pair))
    wait_until(lambda: bool(client.server_info() and all(fake.requests for fake in pair)))


def test_a_server_that_is_down_gets_no_calls_until_it_is_back(connect: Connect, free_port: int) -> None:
    with serving() as up:
        client = connect([f"localhost:{free_port}", up.target], timeout_s=20)
        for _ in range(10):
            client.server_info()
        assert len(up.asked("GetServerInfo")) == 10
        with serving(port=free_port) as back:
            wait_until(lambda: bool(client.server_info() and back.requests))
        for _ in range(10):  # and it is down again
            client.server_info()


def test_a_call_that_must_not_be_made_twice_is_made_again_where_no_server_has_seen_it(
    connect: Connect, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast_retries(monkeypatch)
    with serving() as up:
        up.on("DeleteCollection", lambda _: collection_pb.DeleteCollectionResponse())
        for order in ([f"localhost:{free_port}", up.target], [up.target, f"localhost:{free_port}"]):
            client = connect(order)
            for _ in range(2):
                client.delete_collection("photos")
        assert len(up.asked("DeleteCollection")) == 4


def test_bulk_goes_on_at_the_other_server_when_one_goes_away(connect: Connect) -> None:
    with serving() as other, ExitStack() as stack:
        one = stack.enter_context(serving())
        client = connect([one.target, other.target], timeout_s=20)
        got: list[Any] = []
        for number, vector in enumerate(client.embed_each(MANY)):
            got.append(vector[1])
            if number == 40:
                stack.close()
        assert got == list(range(1, 200))


def test_if_no_server_answers_all_addresses_are_named(
    connect: Connect, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast_retries(monkeypatch)
    with pytest.raises(Unavailable, match=rf"no server answers at localhost:{free_port}, 127.0.0.1:{free_port}"):
        connect([f"localhost:{free_port}", f"127.0.0.1:{free_port}"]).list_collections()


def test_a_token_is_sent_in_clear_text_only_if_all_servers_are_on_this_machine(
    connect: Connect, pair: tuple[FakeServer, FakeServer]
) -> None:
    with pytest.raises(InvalidInput, match="everyone on the way"):
        connect(["localhost", "gpu-box"], token="a-token-of-this-test")
    connect([fake.target for fake in pair], token="a-token-of-this-test").server_info()
    assert [token for fake in pair for token in fake.authorizations] == ["Bearer a-token-of-this-test"]


def test_each_server_is_known_by_the_name_in_its_own_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ours")
    by_name, by_address = authority.issue("localhost"), authority.issue("127.0.0.1")
    with (
        serving_really(FakeEncoder(), **by_name.server) as one,
        serving_really(FakeEncoder(), **by_address.server) as other,
    ):
        names = [f"localhost:{one.rpartition(':')[2]}", f"127.0.0.1:{other.rpartition(':')[2]}"]
        with Client(names, ca=authority.file) as client:
            for _ in range(6):
                assert len(client.embed([picture(1)]).vectors) == 1

        async def scenario() -> None:
            async with AsyncClient(names, ca=authority.file) as client:
                await client.wait_ready(20)
                for _ in range(6):
                    assert (await client.server_info()).provider

        asyncio.run(scenario())
