"""A data directory, ways to damage its files, and how a store reacts."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import pytest

from embedserve.errors import EmbedserveError
from embedserve.store.local.store import LocalStore
from embedserve.store.local.upkeep import maintenance
from embedserve.types import Include
from tests.durability import thresholds
from tests.durability.checks import check_searches, difference
from tests.durability.ledger import SHARED, Stored, StoreDoor, Violation, World, make_item, stored

PAGE = 4096


@dataclass(frozen=True)
class Original:
    """An undamaged data directory and its content."""

    data: Path
    worlds: list[World]
    """The content after each write; the last is the current one."""

    @property
    def world(self) -> World:
        return self.worlds[-1]


def make_original(folder: Path) -> tuple[Original, Original]:
    """A directory that was closed, and one of a killed server, whose logs were not moved into the databases."""
    names = [SHARED, "w0-c1", "w0-c2"]  # exact, graph, lists
    worlds = [World({name: {} for name in names}, {"w0-a0": "w0-c1", "w0-a1": SHARED})]
    with thresholds.lowered(), pytest.MonkeyPatch.context() as patch, ExitStack() as closing:
        patch.setattr(maintenance, "_LOOK_S", 3600)  # no background change during the copy
        store = closing.enter_context(LocalStore.open(folder / "closed"))
        door = StoreDoor(store)
        for name in names:
            door.create(name)
        door.set_alias("w0-a0", "w0-c1")
        door.set_alias("w0-a1", SHARED)
        for number in range(24):
            world = worlds[-1].copy()
            name = names[number % 3]
            items = [
                make_item(f"w0-{chosen:03}", number * 100 + chosen) for chosen in range(number * 5, number * 5 + 30)
            ]
            door.put(name, items)
            world.collections[name].update({item.id: stored(item) for item in items})
            gone = [item.id for item in items[:4]]
            worlds.append(world)
            door.delete(name, gone)
            world = world.copy()
            for id in gone:
                del world.collections[name][id]
            worlds.append(world)
            if number == 17:
                store.maintain()
        shutil.copytree(folder / "closed", folder / "killed", ignore=shutil.ignore_patterns("*-shm"))
    return Original(folder / "closed", worlds), Original(folder / "killed", worlds)


Damage = Callable[[Path], None]


def damages(size: int, chance: random.Random, positions: int) -> Iterator[tuple[str, Damage]]:
    """Ways to damage a file of this size.

    Args:
        size: of the file.
        chance: chooses bits and pages.
        positions: number of bits that are flipped; half as many pages are zeroed.
    """
    yield "removed", lambda path: path.unlink()
    for kept in sorted({0, size // 2, size // 2 // PAGE * PAGE, max(0, size - 1)}):
        yield f"cut to {kept} of {size} bytes", partial(_cut, kept=kept)
    if not size:
        return
    for _ in range(positions):
        bit = chance.randrange(size * 8)
        yield f"bit {bit % 8} of byte {bit // 8} of {size} turned", partial(_turn, bit=bit)
    for page in chance.sample(range((size - 1) // PAGE + 1), min((size - 1) // PAGE + 1, positions // 2)):
        yield f"page {page} of {(size - 1) // PAGE + 1} zeroed", partial(_zero, page=page)


def _cut(path: Path, kept: int) -> None:
    path.write_bytes(path.read_bytes()[:kept])


def _turn(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def _zero(path: Path, page: int) -> None:
    content = bytearray(path.read_bytes())
    content[page * PAGE : (page + 1) * PAGE] = bytes(len(content[page * PAGE : (page + 1) * PAGE]))
    path.write_bytes(content)


@dataclass
class Outcome:
    """How a store reacted to a damaged directory."""

    refused: list[str]
    """Error messages of the start or of a call."""
    wrong: list[str]
    """Wrong answers."""
    missing: list[str]
    """Incomplete answers without an error."""
    without_image: list[str]
    """Items whose image is missing without an error."""
    world: World | None
    """The content; None if the store refused to answer."""


def look(data: Path, truth: World) -> Outcome:
    """Open a store and read everything."""
    outcome = Outcome([], [], [], [], None)
    try:
        store = LocalStore.open(data)
    except EmbedserveError as error:
        outcome.refused.append(error.message)
        return outcome
    with store:
        door = StoreDoor(store)
        try:
            infos = {info.name: info for info in door.collections()}
        except EmbedserveError as error:
            outcome.refused.append(error.message)
            return outcome
        outcome.world = World({}, {alias: name for name, info in infos.items() for alias in info.aliases})
        for name in infos:
            items = truth.collections.get(name)
            if items is None:
                outcome.wrong.append(f"a collection {name!r}")
                continue
            try:
                there = {item.id: stored(item) for item in door.items(name)}
            except EmbedserveError as error:
                outcome.refused.append(error.message)
            else:
                outcome.world.collections[name] = there
                outcome.without_image += [id for id, item in there.items() if _lacks_image(item, items.get(id))]
                there = {id: items[id] if _lacks_image(item, items.get(id)) else item for id, item in there.items()}
                if any(items.get(id) != item for id, item in there.items()):
                    outcome.wrong.append(difference(World({name: items}), World({name: there})))
                elif there != items or infos[name].items != len(items):
                    outcome.missing.append(f"{name}: {len(there)} listed, {infos[name].items} counted of {len(items)}")
            for some in batched(items, 25):
                try:
                    got = store.get_items(name, some, Include(metadata=True, vectors=True, media=True))
                except EmbedserveError as error:
                    outcome.refused.append(error.message)
                    continue
                for id, item in zip(some, got, strict=True):
                    if item is None:
                        outcome.missing.append(f"{name}: {id!r} is not found by its id")
                    elif stored(item) != items[id] and not _lacks_image(stored(item), items[id]):
                        outcome.wrong.append(f"{name}: {id!r} is another item")
            try:
                check_searches(door, name, items)
            except EmbedserveError as error:
                outcome.refused.append(error.message)
            except Violation as error:
                outcome.missing.append(str(error))
        if outcome.world.aliases != truth.aliases or infos.keys() != truth.collections.keys():
            outcome.wrong.append(f"collections {sorted(infos)}, aliases {outcome.world.aliases}")
    return outcome


def _lacks_image(there: Stored, wanted: Stored | None) -> bool:
    return wanted is not None and there[:2] == wanted[:2] and bool(wanted[2]) and not there[2]


def batched(ids: Iterable[str], size: int) -> Iterator[list[str]]:
    """In lists of this length."""
    rest = iter(ids)
    while some := list(islice(rest, size)):
        yield some
