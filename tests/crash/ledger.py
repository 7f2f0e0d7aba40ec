"""What a store has to hold after a crash: the calls of several writers, and what each of them had been promised.

Each writer has its own ids, collections and aliases, by a prefix in their names, and makes one call after another. So
of each writer the store holds what was there after the last call that was acknowledged to it, or after the one that
was under way: nothing older, nothing else, and nothing between the two.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from embedserve.store.local import LocalStore
from embedserve.types import EXTERNAL, Eq, Include, Item, Keep, Media, Range, SearchOptions

DIMENSION = 24
SHARED = "shared"
"""The collection that all writers write to."""

Stored = tuple[bytes, str, bytes]
"""Of one item: the vector's bytes, its metadata as JSON, the image's bytes."""


class Violation(AssertionError):
    """The store broke a promise."""


@dataclass
class World:
    """What is stored."""

    collections: dict[str, dict[str, Stored]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)

    def of(self, prefix: str) -> World:
        """The part of one writer."""
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


def make_item(id: str, number: int) -> Item:
    """Every item ever made is another one, and its metadata says which."""
    chance = np.random.default_rng(number)
    vector = chance.standard_normal(DIMENSION)
    media = Media(data=chance.bytes(4000), media_type="image/png") if number % 17 == 0 else None
    return Item(
        id=id,
        vector=(vector / np.linalg.norm(vector)).astype(np.float32),
        metadata={"number": number, "even": number % 2 == 0, "text": "x" * (number * 37 % 300)},
        content_sha256=chance.bytes(32),
        media=media,
    )


# --- Calls ---------------------------------------------------------------------------------------------------------


class Call(Protocol):
    """A call of a writer, and what it does to what is stored."""

    def make(self, store: LocalStore) -> None: ...

    def expect(self, world: World) -> None: ...


@dataclass(frozen=True)
class Create:
    name: str

    def make(self, store: LocalStore) -> None:
        store.create_collection(
            self.name, fingerprint=EXTERNAL, encoder_name="", dimension=DIMENSION, keep=Keep.ORIGINALS
        )

    def expect(self, world: World) -> None:
        world.collections[self.name] = {}


@dataclass(frozen=True)
class Drop:
    name: str

    def make(self, store: LocalStore) -> None:
        store.delete_collection(self.name)

    def expect(self, world: World) -> None:
        del world.collections[self.name]
        world.aliases = {alias: name for alias, name in world.aliases.items() if name != self.name}


@dataclass(frozen=True)
class Put:
    collection: str
    items: Sequence[Item]

    def make(self, store: LocalStore) -> None:
        store.upsert(self.collection, self.items)

    def expect(self, world: World) -> None:
        world.collections[self.collection].update({item.id: stored(item) for item in self.items})


@dataclass(frozen=True)
class Delete:
    collection: str
    ids: Sequence[str]

    def make(self, store: LocalStore) -> None:
        store.delete_items(self.collection, self.ids)

    def expect(self, world: World) -> None:
        for id in self.ids:
            world.collections[self.collection].pop(id, None)


@dataclass(frozen=True)
class SetAlias:
    alias: str
    collection: str

    def make(self, store: LocalStore) -> None:
        store.set_alias(self.alias, self.collection)

    def expect(self, world: World) -> None:
        if self.collection:
            world.aliases[self.alias] = self.collection
        else:
            del world.aliases[self.alias]


class Writer:
    """Calls of one writer, drawn by chance; ``worlds`` are its part after none, one, two … of them."""

    def __init__(self, number: int, seed: int) -> None:
        self.prefix = f"w{number}-"
        self.worlds = [World({SHARED: {}})]
        self.acknowledged = 0
        self._number = number
        self._chance = random.Random(f"{seed} {number}")
        self._made = 0

    @property
    def world(self) -> World:
        return self.worlds[-1]

    def next_call(self) -> Call:
        """The next one; what is expected after it is added to ``worlds``."""
        call = self._draw()
        world = self.world.copy()
        call.expect(world)
        self.worlds.append(world)
        return call

    def _draw(self) -> Call:
        chance, world = self._chance, self.world
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
        if kind < 0.50 and len(there) > 40:
            return Delete(collection, there[: len(there) // 2])
        # Of few ids, so that many items are replaced.
        ids = [f"{self.prefix}{chance.randrange(80):03}" for _ in range(chance.choice((1, 1, 2, 7, 30)))]
        return Put(collection, [self._item(id) for id in dict.fromkeys(ids)])

    def _item(self, id: str) -> Item:
        self._made += 1
        return make_item(id, self._made * 100 + self._number)


# --- Looking -------------------------------------------------------------------------------------------------------


def read_world(store: LocalStore) -> World:
    """Everything by the store's calls; what they say of each other has to agree."""
    world = World()
    for info in store.list_collections():
        items: dict[str, Stored] = {}
        count, token = 0, ""
        while True:
            page = store.list_items(
                info.name,
                page_size=50,
                page_token=token,
                filter=None,
                include=Include(metadata=True, vectors=True, media=True),
            )
            items.update({item.id: stored(item) for item in page.items})
            count += len(page.items)
            token = page.next_page_token
            if not token:
                break
        _demand(count == len(items), f"{info.name}: an id is listed twice")
        _demand(info.items == count, f"{info.name}: {info.items} items by its count, {count} listed")
        world.collections[info.name] = items
        world.aliases.update(dict.fromkeys(info.aliases, info.name))
        check_searches(store, info.name, items)
    return world


def check_searches(store: LocalStore, name: str, items: Mapping[str, Stored]) -> None:
    """Each item finds itself first, filters find what the metadata says, and nothing else is found."""
    if not items:
        return
    ids = list(items)
    queries = np.stack([_vector(items[id]) for id in ids])
    found = store.search(name, queries, SearchOptions(k=2, include_metadata=True), [None] * len(ids))
    for id, hits in zip(ids, found, strict=True):
        _demand(len(hits) == min(2, len(ids)), f"{name}: {len(hits)} hits")
        best = hits[0]
        same = best.id == id or items[best.id][0] == items[id][0]
        _demand(same and abs(best.score - 1) < 1e-5, f"{name}: a search for {id!r} finds {best.id!r} ({best.score})")
        for hit in hits:
            metadata = json.dumps(dict(hit.metadata), sort_keys=True)
            _demand(hit.id in items and items[hit.id][1] == metadata, f"{name}: the hit {hit.id!r} is not stored so")
    numbers = {id: json.loads(item[1])["number"] for id, item in items.items()}
    middle = sorted(numbers.values())[len(numbers) // 2]
    for condition, wanted in (
        (Eq("even", True), {id for id, number in numbers.items() if number % 2 == 0}),
        (Range("number", gte=middle), {id for id, number in numbers.items() if number >= middle}),
    ):
        (hits,) = store.search(name, queries[:1], SearchOptions(k=len(items), filter=condition), [None])
        _demand({hit.id for hit in hits} == wanted, f"{name}: the filter {condition} finds other items")


def check_promises(writers: Sequence[Writer], acknowledged: Sequence[int], begun: Sequence[int], world: World) -> None:
    """Compare what is stored with what each writer was promised.

    Args:
        writers: all of them.
        acknowledged: for each how many of its calls were acknowledged.
        begun: for each how many it had begun; one more at most.
        world: what is stored.
    """
    prefixes = tuple(writer.prefix for writer in writers)
    for name, items in world.collections.items():
        _demand(name == SHARED or name.startswith(prefixes), f"a collection {name!r} that nobody made")
        for id in items:
            _demand(id.startswith(prefixes), f"{name}: an item {id!r} that nobody sent")
    for writer, least, most in zip(writers, acknowledged, begun, strict=True):
        there = world.of(writer.prefix)
        allowed = writer.worlds[least : most + 1]
        if there not in allowed:
            raise Violation(f"writer {writer.prefix}, calls {least} to {most}: {difference(allowed[0], there)}")


def difference(wanted: World, there: World) -> str:
    """What differs, in few words."""
    said: list[str] = []
    if wanted.aliases != there.aliases:
        said.append(f"aliases {there.aliases} instead of {wanted.aliases}")
    for name in sorted(wanted.collections.keys() | there.collections.keys()):
        if name not in there.collections:
            said.append(f"no collection {name}")
        elif name not in wanted.collections:
            said.append(f"a collection {name} that should not be")
        else:
            a, b = wanted.collections[name], there.collections[name]
            for what, ids in (
                ("lost", a.keys() - b.keys()),
                ("too many", b.keys() - a.keys()),
                ("other content", {id for id in a.keys() & b.keys() if a[id] != b[id]}),
            ):
                if ids:
                    said.append(f"{name}: {what}: {sorted(ids)[:5]}{' …' if len(ids) > 5 else ''}")
    return "; ".join(said)


def _vector(item: Stored) -> NDArray[np.float32]:
    return np.frombuffer(item[0], np.float32)


def _demand(true: bool, otherwise: str) -> None:
    if not true:
        raise Violation(otherwise)
