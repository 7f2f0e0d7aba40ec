"""What a store must contain after a crash: the calls of several writers, and what was acknowledged to each of them.

Each writer has its own ids, collections and aliases, with a prefix in their names, and makes one call after another. So
the store contains of each writer the content after its last acknowledged call, or after the one in flight: nothing
older, nothing else, and nothing in between.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from embedserve.changes import MetadataChange
from embedserve.engine.unit_vectors import unit
from embedserve.store.local.store import LocalStore
from embedserve.types import (
    EXTERNAL,
    And,
    CollectionInfo,
    Eq,
    Filter,
    Hit,
    Include,
    Item,
    Keep,
    Media,
    Range,
    SearchOptions,
)

DIMENSION = 24
SHARED = "shared"
"""The collection that all writers write to."""

Stored = tuple[bytes, str, bytes]
"""An item: the bytes of its vector, its metadata as JSON, the bytes of its image."""


class Violation(AssertionError):
    """The store broke a promise."""


@dataclass
class World:
    """The content of a store."""

    collections: dict[str, dict[str, Stored]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)

    def of(self, prefix: str) -> World:
        """The content that one writer wrote."""
        collections = {name: dict(items) for name, items in self.collections.items() if name.startswith(prefix)}
        shared = self.collections.get(SHARED, {})
        collections[SHARED] = {id: item for id, item in shared.items() if id.startswith(prefix)}
        return World(collections, {alias: name for alias, name in self.aliases.items() if alias.startswith(prefix)})

    def copy(self) -> World:
        return World({name: dict(items) for name, items in self.collections.items()}, dict(self.aliases))


def stored(item: Item) -> Stored:
    assert item.vector is not None
    metadata = json.dumps(dict(item.metadata), sort_keys=True)
    return item.vector.tobytes(), metadata, item.media.data if item.media else b""


def make_item(id: str, number: int, *, media: bool = True) -> Item:
    """A unique item for each number, which is in its metadata."""
    chance = np.random.default_rng(number)
    vector = chance.standard_normal(DIMENSION)
    image = Media(data=chance.bytes(4000), media_type="image/png") if media and number % 17 == 0 else None
    return Item(
        id=id,
        vector=as_it_is_stored(vector),
        metadata={
            "number": number,
            "even": number % 2 == 0,
            "writer": number % 100,
            "text": "x" * (number * 37 % 300),
        },
        content_sha256=chance.bytes(32),
        media=image,
    )


def as_it_is_stored(vector: NDArray[np.float64]) -> NDArray[np.float32]:
    """A vector that a server does not change by a single bit when it normalizes it."""
    while True:
        made = unit(vector, DIMENSION)
        if np.array_equal(made, vector):
            return made
        vector = made.astype(np.float64)


# --- Calls ---------------------------------------------------------------------------------------------------------


class Door(Protocol):
    """How a store is reached: directly, or over gRPC."""

    def create(self, name: str) -> None: ...

    def drop(self, name: str) -> None: ...

    def put(self, collection: str, items: Sequence[Item]) -> None: ...

    def delete(self, collection: str, ids: Sequence[str]) -> None: ...

    def delete_matching(self, collection: str, filter: Filter) -> None: ...

    def update(self, collection: str, changes: Sequence[MetadataChange]) -> None: ...

    def set_alias(self, alias: str, collection: str) -> None: ...

    def collections(self) -> list[CollectionInfo]: ...

    def items(self, name: str) -> list[Item]: ...

    def search(self, name: str, queries: NDArray[np.float32], options: SearchOptions) -> list[list[Hit]]: ...


class StoreDoor:
    """Calls a store in this process."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store

    def create(self, name: str) -> None:
        self._store.create_collection(
            name,
            fingerprint=EXTERNAL,
            encoder_name="",
            dimension=DIMENSION,
            keep=Keep.ORIGINALS,
            index=index_of(name),
            filter_keys=keys_of(name),
        )

    def drop(self, name: str) -> None:
        self._store.delete_collection(name)

    def put(self, collection: str, items: Sequence[Item]) -> None:
        self._store.upsert(collection, items)

    def delete(self, collection: str, ids: Sequence[str]) -> None:
        self._store.delete_items(collection, ids)

    def delete_matching(self, collection: str, filter: Filter) -> None:
        for _ in self._store.delete_matching(collection, filter):
            pass

    def update(self, collection: str, changes: Sequence[MetadataChange]) -> None:
        if None in self._store.update_metadata(collection, changes, 1 << 14):
            raise Violation(f"{collection}: an item that was there is not found")

    def set_alias(self, alias: str, collection: str) -> None:
        self._store.set_alias(alias, collection)

    def collections(self) -> list[CollectionInfo]:
        return self._store.list_collections()

    def items(self, name: str) -> list[Item]:
        items: list[Item] = []
        token = ""
        everything = Include(metadata=True, vectors=True, media=True)
        while True:
            page = self._store.list_items(name, page_size=50, page_token=token, filter=None, include=everything)
            items += page.items
            token = page.next_page_token
            if not token:
                return items

    def search(self, name: str, queries: NDArray[np.float32], options: SearchOptions) -> list[list[Hit]]:
        return self._store.search(name, queries, options, [None] * len(queries))


def index_of(name: str) -> str:
    """Each kind of index occurs; the shared collection has "auto"."""
    return "auto" if name == SHARED else ("exact", "hnsw:m=16", "ivf:nlist=4")[int(name.rpartition("c")[2]) % 3]


def keys_of(name: str) -> tuple[str, ...]:
    """Half of the collections have a declared metadata key."""
    return ("number",) if name == SHARED or int(name.rpartition("c")[2]) % 2 == 0 else ()


class Call(Protocol):
    """A call of a writer, and its effect on the content."""

    def make(self, door: Door) -> None: ...

    def expect(self, world: World) -> None: ...


@dataclass(frozen=True)
class Create:
    name: str

    def make(self, door: Door) -> None:
        door.create(self.name)

    def expect(self, world: World) -> None:
        world.collections[self.name] = {}


@dataclass(frozen=True)
class Drop:
    name: str

    def make(self, door: Door) -> None:
        door.drop(self.name)

    def expect(self, world: World) -> None:
        del world.collections[self.name]
        world.aliases = {alias: name for alias, name in world.aliases.items() if name != self.name}


@dataclass(frozen=True)
class Put:
    collection: str
    items: Sequence[Item]

    def make(self, door: Door) -> None:
        door.put(self.collection, self.items)

    def expect(self, world: World) -> None:
        world.collections[self.collection].update({item.id: stored(item) for item in self.items})


@dataclass(frozen=True)
class Delete:
    collection: str
    ids: Sequence[str]

    def make(self, door: Door) -> None:
        door.delete(self.collection, self.ids)

    def expect(self, world: World) -> None:
        for id in self.ids:
            world.collections[self.collection].pop(id, None)


@dataclass(frozen=True)
class DeleteMatching:
    """Items are removed some at a time: a crash may leave any of them."""

    collection: str
    filter: Filter
    ids: Sequence[str]
    """Of the items that match."""

    def make(self, door: Door) -> None:
        door.delete_matching(self.collection, self.filter)

    def expect(self, world: World) -> None:
        for id in self.ids:
            world.collections[self.collection].pop(id, None)


@dataclass(frozen=True)
class Update:
    collection: str
    changes: Sequence[MetadataChange]

    def make(self, door: Door) -> None:
        door.update(self.collection, self.changes)

    def expect(self, world: World) -> None:
        items = world.collections[self.collection]
        for change in self.changes:
            vector, metadata, media = items[change.id]
            new = {} if change.replace else json.loads(metadata)
            for key in change.remove:
                new.pop(key, None)
            items[change.id] = vector, json.dumps({**new, **change.set}, sort_keys=True), media


@dataclass(frozen=True)
class SetAlias:
    alias: str
    collection: str

    def make(self, door: Door) -> None:
        door.set_alias(self.alias, self.collection)

    def expect(self, world: World) -> None:
        if self.collection:
            world.aliases[self.alias] = self.collection
        else:
            del world.aliases[self.alias]


class Writer:
    """Random calls of one writer; ``worlds`` are its content after none, one, two … of them.

    Args:
        number: of the writer; its names begin with it.
        seed: of the random calls.
        ids: number of ids in a collection; with few, many items are replaced.
        batches: possible numbers of items in a call.
        media: whether some items have an image.
    """

    def __init__(
        self, number: int, seed: int, *, ids: int = 80, batches: Sequence[int] = (1, 1, 2, 7, 30), media: bool = True
    ) -> None:
        self.prefix = f"w{number}-"
        self.worlds = [World({SHARED: {}})]
        self._number = number
        self._ids = ids
        self._batches = batches
        self._media = media
        self._chance = random.Random(f"{seed} {number}")
        self._made = 0

    def next_call(self) -> Call:
        """The next call; the expected content after each of its steps is added to ``worlds``."""
        call = self._draw()
        self.expect(call)
        return call

    def streams_next(self) -> bool:
        """Whether the next call is a stream."""
        return self._chance.random() < 0.1

    def settled(self, world: World) -> None:
        """Start the next calls from the current content."""
        self.worlds = [world]

    def next_stream(self) -> list[Put]:
        """Messages of a stream with distinct ids; the expected content after each is added to ``worlds``."""
        ids = self._chance.sample(range(self._ids), min(self._ids, self._chance.choice((20, 60, 200))))
        size = self._chance.choice((1, 3, 10))
        puts = [
            Put(SHARED, [self._item(f"{self.prefix}{id:03}") for id in ids[start : start + size]])
            for start in range(0, len(ids), size)
        ]
        for put in puts:
            self.expect(put)
        return puts

    def expect(self, call: Call) -> None:
        steps: list[Call] = [call]
        if isinstance(call, DeleteMatching) and call.ids:
            steps = [Delete(call.collection, [id]) for id in call.ids]
        for step in steps:
            world = self.worlds[-1].copy()
            step.expect(world)
            self.worlds.append(world)

    def _draw(self) -> Call:
        chance, world = self._chance, self.worlds[-1]
        own = [name for name in world.collections if name != SHARED]
        kind = chance.random()
        if kind < 0.07 and len(own) < 2:
            self._made += 1
            return Create(f"{self.prefix}c{self._made}")
        if kind < 0.11 and own:
            return Drop(chance.choice(own))
        if kind < 0.20 and own:
            return SetAlias(f"{self.prefix}a{chance.randrange(2)}", chance.choice(own))
        if kind < 0.23 and world.aliases:
            return SetAlias(chance.choice(sorted(world.aliases)), "")
        collection = chance.choice([SHARED, SHARED, *own])
        there = sorted(world.collections[collection])
        if kind < 0.42 and there:
            return Delete(collection, chance.sample(there, min(len(there), chance.choice((1, 2, 9)))))
        if kind < 0.47 and len(there) > self._ids // 2:
            return Delete(collection, there[: len(there) // 2])
        if kind < 0.54 and there:
            return self._delete_matching(collection, world.collections[collection])
        if kind < 0.68 and there:
            return self._update(collection, chance.sample(there, min(len(there), chance.choice((1, 2, 9)))))
        ids = [f"{self.prefix}{chance.randrange(self._ids):03}" for _ in range(chance.choice(self._batches))]
        return Put(collection, [self._item(id) for id in dict.fromkeys(ids)])

    def _delete_matching(self, collection: str, items: dict[str, Stored]) -> DeleteMatching:
        """Those of this writer's items with the lowest numbers."""
        numbers = {id: json.loads(item[1])["number"] for id, item in items.items()}
        below = sorted(numbers.values())[min(len(numbers) - 1, self._chance.choice((0, 2, 8)))]
        mine = And((Eq("writer", self._number), Range("number", lt=below)))
        return DeleteMatching(collection, mine, [id for id, number in numbers.items() if number < below])

    def _update(self, collection: str, ids: Sequence[str]) -> Update:
        changes = []
        for id in ids:
            self._made += 1
            number = self._made * 100 + self._number
            values = {"number": number, "even": number % 2 == 0}
            if self._chance.random() < 0.3:
                changes.append(MetadataChange(id, {**values, "writer": self._number}, replace=True))
            else:
                changes.append(MetadataChange(id, values, remove=self._chance.choice(((), ("text", "none")))))
        return Update(collection, changes)

    def _item(self, id: str) -> Item:
        self._made += 1
        return make_item(id, self._made * 100 + self._number, media=self._media)
