"""A scripted server, and one interface to both clients, so that each rule is tested with both."""

from __future__ import annotations

import asyncio
import inspect
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from embedserve import AsyncClient, Client
from embedserve.types import Limits
from tests.client.fake_server import Connect, FakeServer, serving


class BlockingAsyncClient:
    """AsyncClient with the interface of Client: coroutines run to their end, and async iterators become iterators."""

    def __init__(self, target: str, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = AsyncClient(target, **options)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            if inspect.isasyncgen(result):
                return self._iterate(result)
            return self._runner.run(result)

        return call

    def _iterate(self, results: Any) -> Iterator[Any]:
        try:
            while True:
                try:
                    yield self._runner.run(results.__anext__())
                except StopAsyncIteration:
                    return
        finally:
            self._runner.run(results.aclose())

    def shut_down(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Makes a client for a target, in one run of each test for each of the two classes."""
    opened: list[Any] = []

    def make(target: str, **options: Any) -> Any:
        client = Client(target, **options) if request.param == "sync" else BlockingAsyncClient(target, **options)
        opened.append(client)
        return client

    yield make
    for client in opened:
        client.close() if isinstance(client, Client) else client.shut_down()


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with serving() as fake:
        yield fake


@pytest.fixture
def small_server() -> Iterator[FakeServer]:
    """Three images, four items, two queries in a call; 2,000 bytes in a message."""
    limits = Limits(
        max_images=3, max_items=4, max_queries=2, max_message_bytes=2000, max_image_bytes=1500, max_metadata_bytes=100
    )
    with serving(limits) as fake:
        yield fake


@pytest.fixture
def free_port() -> int:
    """A port on which no server listens."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port: int = probe.getsockname()[1]
        return port
