"""Compares the content of a store with the ledger of what was acknowledged."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from embedserve.types import Eq, Filter, Range, SearchOptions
from tests.durability.ledger import SHARED, Door, Stored, Violation, World, Writer, index_of, stored


def read_world(door: Door) -> World:
    """The whole content, read with all calls, whose answers must be consistent."""
    world = World()
    for info in door.collections():
        listed = door.items(info.name)
        items = {item.id: stored(item) for item in listed}
        _demand(len(listed) == len(items), f"{info.name}: an id is listed twice")
        _demand(info.items == len(listed), f"{info.name}: {info.items} items by its count, {len(listed)} listed")
        world.collections[info.name] = items
        world.aliases.update(dict.fromkeys(info.aliases, info.name))
        check_searches(door, info.name, items)
    return world


def thorough_search(name: str, k: int, filter: Filter | None = None) -> SearchOptions:
    """Parameters with which approximate search examines everything, so that it must find every item."""
    kind = index_of(name).partition(":")[0]
    return SearchOptions(k=k, filter=filter, ef=1000 if kind == "hnsw" else 0, nprobe=64 if kind == "ivf" else 0)


def check_searches(door: Door, name: str, items: Mapping[str, Stored]) -> None:
    """Each item finds itself first, filters match the metadata, and nothing else is found."""
    if not items:
        return
    ids = list(items)
    queries = np.stack([np.frombuffer(items[id][0], np.float32) for id in ids])
    found = door.search(name, queries, thorough_search(name, 2))
    for id, hits in zip(ids, found, strict=True):
        _demand(len(hits) == min(2, len(ids)), f"{name}: {len(hits)} hits of {len(ids)} items")
        best = hits[0]
        for hit in hits:
            metadata = json.dumps(dict(hit.metadata), sort_keys=True)
            _demand(hit.id in items and items[hit.id][1] == metadata, f"{name}: the hit {hit.id!r} is not stored so")
        same = best.id == id or items[best.id][0] == items[id][0]
        _demand(same and abs(best.score - 1) < 1e-5, f"{name}: a search for {id!r} finds {best.id!r} ({best.score})")
    numbers = {id: json.loads(item[1])["number"] for id, item in items.items()}
    middle = sorted(numbers.values())[len(numbers) // 2]
    for condition, wanted in (
        (Eq("even", True), {id for id, number in numbers.items() if number % 2 == 0}),
        (Range("number", gte=middle), {id for id, number in numbers.items() if number >= middle}),
    ):
        (hits,) = door.search(name, queries[:1], thorough_search(name, 1000, condition))
        _demand(
            len(hits) == min(1000, len(wanted)) and {hit.id for hit in hits} <= wanted,
            f"{name}: the filter {condition} finds other items",
        )


def check_promises(writers: Sequence[Writer], acknowledged: Sequence[int], begun: Sequence[int], world: World) -> None:
    """Compare the content with what was acknowledged to each writer.

    Args:
        writers: all of them.
        acknowledged: for each the number of its acknowledged calls.
        begun: for each the number of calls begun: one more, or any number of messages of a stream more.
        world: the content.
    """
    prefixes = tuple(writer.prefix for writer in writers)
    for name, items in world.collections.items():
        _demand(name == SHARED or name.startswith(prefixes), f"a collection {name!r} that no writer created")
        for id in items:
            _demand(id.startswith(prefixes), f"{name}: an item {id!r} that no writer sent")
    for writer, least, most in zip(writers, acknowledged, begun, strict=True):
        there = world.of(writer.prefix)
        # Messages of a stream are written independently of each other, but each of them completely.
        reached = writer.worlds[least]
        for before, after in pairwise(writer.worlds[least : most + 1]):
            if there != reached and _shows(there, before, after):
                reached = _with_change(reached, before, after)
        if there != reached:
            raise Violation(f"writer {writer.prefix}, calls {least} to {most}: {difference(reached, there)}")


def difference(wanted: World, there: World) -> str:
    """The difference, in a few words."""
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
                    said.append(f"{name}: {what}: {', '.join(_beside(id, a, b) for id in sorted(ids)[:5])}")
    return "; ".join(said)


def _beside(id: str, wanted: Mapping[str, Stored], there: Mapping[str, Stored]) -> str:
    """The expected and the actual item: the number in its metadata, and some of its vector."""
    texts = [f"{items[id][1][:60]} {items[id][0][:8].hex()}" if id in items else "none" for items in (wanted, there)]
    return f"{id} ({texts[1]} instead of {texts[0]})"


def _shows(there: World, before: World, after: World) -> bool:
    """Whether a call has left any trace."""
    if there.aliases == after.aliases != before.aliases:
        return True
    if there.collections.keys() == after.collections.keys() != before.collections.keys():
        return True
    return any(
        there.collections.get(name, {}).get(id) == after.collections.get(name, {}).get(id)
        for name, id in _changed(before, after)
    )


def _changed(before: World, after: World) -> list[tuple[str, str]]:
    """Collections and ids of items that a call changes."""
    changed = []
    for name in before.collections.keys() & after.collections.keys():
        old, new = before.collections[name], after.collections[name]
        changed += [(name, id) for id in old.keys() | new.keys() if old.get(id) != new.get(id)]
    return changed


def _with_change(world: World, before: World, after: World) -> World:
    """A world after the call that turns ``before`` into ``after``."""
    made = World(
        {
            name: dict(world.collections.get(name, {}) if name in before.collections else items)
            for name, items in after.collections.items()
        },
        dict(after.aliases),
    )
    for name, id in _changed(before, after):
        if id in after.collections[name]:
            made.collections[name][id] = after.collections[name][id]
        else:
            made.collections[name].pop(id, None)
    return made


def _demand(true: bool, otherwise: str) -> None:
    if not true:
        raise Violation(otherwise)
