"""Client and example against a real server: the same answer through every door."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from embedserve import AsyncClient, Client
from embedserve.client import ItemInput, Query
from embedserve.encoder import offline
from embedserve.errors import CollectionNotFound, ImageUndecodable, ItemNotFound, Unavailable
from embedserve.types import Eq, Keep, Limits
from tests.fakes import DIMENSION, FakeEncoder, picture
from tests.running import serving
from tests.sizes import fast_retries

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/embed_and_search.py"


def test_both_clients_and_the_encoder_itself_give_the_same_vectors(server: str, client: Client) -> None:
    images = [picture(seed) for seed in range(150)]  # three calls

    async def embed() -> np.ndarray:
        async with AsyncClient(server) as client:
            return (await client.embed(images)).vectors

    here = np.stack(
        [np.asarray(vector) for vector in offline.embed(FakeEncoder(), [partial(bytes, i) for i in images])]
    )
    assert here.shape == (150, DIMENSION)
    assert np.array_equal(client.embed(images).vectors, here)
    assert np.array_equal(asyncio.run(embed()), here)


def test_a_bad_image_among_many_is_named_by_its_place(client: Client) -> None:
    images = [picture(seed) for seed in range(100)]
    images[70] = images[70][:50]
    with pytest.raises(ImageUndecodable, match=r"^image 71 of 100: the image is damaged"):
        client.embed(images)
    embeddings = client.embed(images, errors="keep")
    assert list(embeddings.errors) == [70]
    assert embeddings.errors[70].message.startswith("the image is damaged")
    assert np.flatnonzero(np.isnan(embeddings.vectors).any(axis=1)).tolist() == [70]


def test_the_life_of_a_collection_through_the_async_client(server: str, collection: str) -> None:
    async def live() -> None:
        async with AsyncClient(server) as client:
            await client.wait_ready()
            made = await client.create_collection(collection, keep=Keep.ORIGINALS)
            assert (made.items, made.keep) == (0, Keep.ORIGINALS)
            items = (
                ItemInput(id=f"{seed:03}", image=picture(seed), metadata={"odd": bool(seed % 2)}) for seed in range(130)
            )
            assert [result.error for result in await client.add(collection, items)] == [None] * 130
            assert [item.id async for item in client.list_items(collection, filter=Eq("odd", True), page_size=7)] == [
                f"{seed:03}" for seed in range(1, 130, 2)
            ]
            [first, missing] = await client.get_items(collection, ["000", "gone"], include_media=True)
            assert first is not None
            assert first.media is not None
            assert first.media.data == picture(0)
            assert missing is None
            [by_image, by_id] = await client.search_many(collection, [Query(image=picture(5)), Query(id="005")], k=3)
            assert isinstance(by_image, list)
            assert isinstance(by_id, list)
            assert by_image[0].id == "005"
            assert by_id[0].id == by_image[1].id
            with pytest.raises(ItemNotFound):
                await client.search(collection, id="gone")
            assert await client.delete_items(collection, [f"{seed:03}" for seed in range(129)] + ["gone"]) == 129
            assert (await client.get_collection(collection)).items == 1
            await client.delete_collection(collection)
            with pytest.raises(CollectionNotFound):
                await client.get_collection(collection)

    asyncio.run(live())


def test_more_than_the_queue_holds_is_embedded_all_the_same() -> None:
    # Five times four calls of 32 images want in at once, where 32 fit.
    with serving(FakeEncoder(), limits=Limits(max_queue_images=32)) as server:

        async def many() -> list[int]:
            images = [picture(1)] * 128
            async with AsyncClient(server) as client:
                results = await asyncio.gather(*(client.embed(images) for _ in range(5)))
                return [len(embeddings.vectors) for embeddings in results if not embeddings.errors]

        assert asyncio.run(many()) == [128] * 5


def test_a_server_that_has_stopped_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    fast_retries(monkeypatch)
    with serving(FakeEncoder()) as server:
        client = Client(server)
        client.wait_ready()
    with client, pytest.raises(Unavailable):
        client.embed([picture(1)])


def test_the_example_does_what_it_shows(server: str, client: Client, photos: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), str(photos), str(photos / "cats/a.png"), server],
        capture_output=True,
        text=True,
        timeout=60,
    )
    client.delete_collection("example")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "encoder fake: 16 numbers per image"
    assert lines[1] == "cosine of a.png and a.png: 1.0000"
    assert lines[2] == "collection example: 4 items"
    assert lines[4] == "  1.0000  cats/a.png"
    assert lines[7] == "most like the query in cats, by its vector:"
    assert lines[8] == "  1.0000  cats/a.png"
