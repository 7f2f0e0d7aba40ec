"""Where work on collections runs: nothing that waits on the event loop, reads and writes in separate threads."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedserve.engine.engine import Engine
from embedserve.engine.inputs import NewItem, VectorQuery
from embedserve.errors import CollectionNotFound, EmbedserveError, FailedPrecondition, LimitExceeded
from embedserve.store.local.store import LocalStore
from embedserve.types import CollectionInfo, Hit, Include, Item, Limits, SearchOptions
from tests.fakes import FakeEncoder

VECTOR = np.array([1, 0, 0, 0], np.float32)


class WatchedStore(LocalStore):
    """Writes wait for ``released``; reads of a collection's files are counted."""

    released: threading.Event
    looks: int

    def get_collection(self, name: str) -> CollectionInfo:
        self.looks += 1
        return super().get_collection(name)

    def upsert(self, collection: str, items: Any, *, uid: str = "") -> None:
        assert self.released.wait(30)
        super().upsert(collection, items, uid=uid)


async def started(directory: Path, limits: Limits | None = None) -> tuple[Engine, WatchedStore]:
    store = WatchedStore.open(directory)
    store.released, store.looks = threading.Event(), 0
    store.released.set()
    engine = await Engine.start(FakeEncoder(), store, limits=limits)
    await engine.collections.create("outside", external=True, dimension=4)
    store.upsert("outside", [Item(id="first", vector=VECTOR)])
    return engine, store


def ids(hits: list[Hit] | EmbedserveError) -> list[str]:
    assert isinstance(hits, list)
    return [hit.id for hit in hits]


def test_reads_are_answered_while_every_writer_waits_for_the_disk(tmp_path: Path) -> None:
    async def check() -> None:
        engine, store = await started(tmp_path)
        store.released.clear()
        writes = [
            asyncio.create_task(engine.items.upsert("outside", [NewItem(id=str(number), vector=VECTOR)]))
            for number in range(40)
        ]
        await asyncio.sleep(0)
        async with asyncio.timeout(20):
            _, [hits] = await engine.searcher.search("outside", [VectorQuery(VECTOR)], SearchOptions())
            _, [item] = await engine.items.get("outside", ["first"], Include())
            assert (await engine.collections.list_all())[0].items == 1
        assert ids(hits) == ["first"]
        assert isinstance(item, Item)
        assert not any(write.done() for write in writes)
        store.released.set()
        await asyncio.gather(*writes)
        assert (await engine.collections.get("outside")).items == 41
        await engine.close()

    asyncio.run(check())


def test_no_call_reads_files_for_the_identity_of_a_collection(tmp_path: Path) -> None:
    async def check() -> None:
        engine, store = await started(tmp_path)
        await engine.items.upsert("outside", [NewItem(id="second", vector=VECTOR)])
        await engine.searcher.search("outside", [VectorQuery(VECTOR)], SearchOptions(include_vectors=True))
        await engine.items.get("outside", ["second"], Include(vectors=True))
        await engine.items.list_page("outside", page_size=0, page_token="", filter=None, include=Include())
        assert store.looks == 0
        await engine.close()

    asyncio.run(check())


def test_vectors_of_more_hits_than_fit_a_message_are_refused_if_there_are_as_many(tmp_path: Path) -> None:
    async def check() -> None:
        engine, store = await started(tmp_path, Limits(max_message_bytes=100))
        options = SearchOptions(k=50, include_vectors=True)
        _, [hits] = await engine.searcher.search("outside", [VectorQuery(VECTOR)], options)
        assert ids(hits) == ["first"]
        store.upsert("outside", [Item(id=str(number), vector=VECTOR) for number in range(20)])
        with pytest.raises(LimitExceeded, match="have 336 bytes"):
            await engine.searcher.search("outside", [VectorQuery(VECTOR)], options)
        await engine.close()

    asyncio.run(check())


def test_the_store_tells_the_identity_by_name_and_alias(tmp_path: Path) -> None:
    async def check() -> None:
        engine, _ = await started(tmp_path)
        await engine.collections.set_alias("live", "outside")
        assert engine.collections.identity("live") == engine.collections.identity("outside")
        assert engine.collections.identity("live").dimension == 4
        with pytest.raises(CollectionNotFound):
            engine.collections.identity("missing")
        await engine.close()
        without = await Engine.start(FakeEncoder())
        with pytest.raises(FailedPrecondition, match="no data directory"):
            without.collections.identity("live")
        await without.close()

    asyncio.run(check())
