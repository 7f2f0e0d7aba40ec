"""Bulk methods of both clients against a real server: bad images, restarts, slow and vanishing clients."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from embedserve import AsyncClient, Client
from embedserve.client import AddResult, ItemInput
from embedserve.errors import CollectionNotFound, EncoderMismatch, ImageError
from tests.fakes import FakeEncoder, picture
from tests.running import ServerProcess, serving

PICTURES = [picture(seed) for seed in range(50)]


def is_idle(client: Client) -> bool:
    """Wait until the server has no images in flight."""
    given_up = time.monotonic() + 20
    while time.monotonic() < given_up:
        if client.server_info().images_in_flight == 0:
            return True
        threading.Event().wait(0.01)
    return False


def test_one_bad_image_among_many_is_one_error(tmp_path: Path) -> None:
    images = [b"bad" if number % 37 == 5 else PICTURES[number % 50] for number in range(300)]
    bad = [number for number in range(300) if number % 37 == 5]
    with serving(FakeEncoder(), tmp_path) as address, Client(address) as client:
        client.create_collection("photos")
        embedded = client.embed(images, errors="keep")
        items = [ItemInput(id=f"{n:03}", image=image) for n, image in enumerate(images)]
        added = client.add("photos", items, errors="keep")
        stored = {item.id: item.vector for item in client.list_items("photos", include_vectors=True, page_size=1000)}
        [alone] = client.embed([PICTURES[7]]).vectors
    assert list(embedded.errors) == bad
    assert all(isinstance(error, ImageError) for error in embedded.errors.values())
    assert [number for number, result in enumerate(added) if result.error is not None] == bad
    assert list(stored) == [f"{number:03}" for number in range(300) if number not in bad]
    assert np.array_equal(embedded.vectors[7], alone)
    assert all(np.allclose(embedded.vectors[int(id)], np.asarray(vector), atol=1e-6) for id, vector in stored.items())


def test_if_an_id_occurs_again_the_later_item_counts(tmp_path: Path) -> None:
    items = [ItemInput(id=str(n % 20), image=PICTURES[n % 50], metadata={"n": n}) for n in range(400)]
    with serving(FakeEncoder(), tmp_path) as address, Client(address) as client:
        client.create_collection("photos")
        assert client.add("photos", items) == [AddResult(str(item.id)) for item in items]
        stored = {item.id: item.metadata["n"] for item in client.list_items("photos")}
    assert stored == {str(n % 20): n for n in range(380, 400)}


def test_a_stream_to_a_collection_that_is_missing_or_of_another_encoder_is_refused(tmp_path: Path) -> None:
    items = [ItemInput(id=str(n), image=PICTURES[n % 50]) for n in range(200)]

    async def both(address: str) -> None:
        async with AsyncClient(address) as client:
            with pytest.raises(CollectionNotFound):
                await client.add("none", items)
            with pytest.raises(EncoderMismatch):
                await client.embed(PICTURES, encoder_fingerprint="12" * 32)

    with serving(FakeEncoder(), tmp_path) as address, Client(address) as client:
        with pytest.raises(CollectionNotFound):
            client.add("none", items)
        with pytest.raises(EncoderMismatch):
            client.embed(PICTURES, encoder_fingerprint="12" * 32)
        asyncio.run(both(address))
        assert is_idle(client)


def test_a_client_that_breaks_off_leaves_nothing_running_on_the_server(tmp_path: Path) -> None:
    async def break_off(address: str) -> None:
        async with AsyncClient(address) as client:
            results = client.embed_each(PICTURES * 20)
            async for _ in results:
                break
            await cast(Any, results).aclose()

    with serving(FakeEncoder(), tmp_path) as address, Client(address) as client:
        client.create_collection("photos")
        results = client.embed_each(PICTURES * 20)
        next(results)
        cast(Any, results).close()
        added = client.add_each("photos", (ItemInput(image=image) for image in PICTURES * 20))
        next(added)
        cast(Any, added).close()
        asyncio.run(break_off(address))
        assert is_idle(client)
        assert client.get_collection("photos").items < 500


def test_a_client_that_takes_results_slowly_slows_the_server_down() -> None:
    encoder, taken = FakeEncoder(), 0

    def images() -> Iterator[bytes]:
        nonlocal taken
        for number in range(2000):
            taken += 1
            yield PICTURES[number % 50]

    with serving(encoder) as address, Client(address) as client:
        warm_up = sum(encoder.batch_sizes)
        results = client.embed_each(images())
        next(results)
        threading.Event().wait(0.2)  # time enough for the server to embed all of them
        assert taken < 200
        assert sum(encoder.batch_sizes) - warm_up < 200
        assert sum(1 for _ in results) == 1999


@pytest.mark.parametrize("end", ["kill", "terminate"])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_server_that_restarts_in_between_has_every_item_once(
    encoder_file: Path, tmp_path: Path, kind: str, end: str
) -> None:
    count, data, results = 3000, str(tmp_path / "data"), []
    first = ServerProcess(str(encoder_file), "--data", data)
    port = int(first.address.rpartition(":")[2])
    reached = threading.Event()

    def items() -> Iterator[ItemInput]:
        for number in range(count):
            if number == 1000:
                reached.set()
            yield ItemInput(image=PICTURES[number % 50], metadata={"n": number})

    async def add() -> None:
        async with AsyncClient(first.address) as client:
            results.extend(await client.add("photos", items()))

    def run() -> None:
        if kind == "async":
            asyncio.run(add())
        else:
            with Client(first.address) as client:
                results.extend(client.add("photos", items()))

    with first:
        with Client(first.address) as client:
            client.create_collection("photos")
        adding = threading.Thread(target=run)
        adding.start()
        assert reached.wait(60)
        getattr(first, end)()
    with ServerProcess(str(encoder_file), "--data", data, "--port", str(port)) as second:
        adding.join(60)
        assert not adding.is_alive()
        assert [result.error for result in results] == [None] * count
        with Client(second.address) as client:
            stored = {item.id: item.metadata["n"] for item in client.list_items("photos", page_size=1000)}
    assert stored == {result.id: number for number, result in enumerate(results)}
