"""A run of several writers on a recorded disk, and the check at each moment at which the power may fail."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from embedserve.errors import EmbedserveError
from embedserve.store.local.store import LocalStore
from tests.durability import thresholds
from tests.durability.adapter import Connection, path_of
from tests.durability.checks import check_promises, read_world
from tests.durability.disk import Disk, Mark, RecordingFiles, Replay, watched
from tests.durability.ledger import SHARED, Create, StoreDoor, Violation, Writer

CHECKPOINT_PAGES = 30
"""Pages in the log at which a commit moves them into the database; the default of 1000 would not be reached."""
_COPIES = 4


@dataclass
class Run:
    """A recorded run."""

    disk: Disk
    writers: list[Writer]
    setup_events: int
    """Number of events after which the shared collection was acknowledged."""
    segments: list[Path]
    """Copies of the segments of all collections, each of another moment: COPY/<uid>/<what is in segments>."""


@contextmanager
def recorded(disk: Disk, *, replaced: Callable[[str], str] = str) -> Iterator[None]:
    """Databases below the disk's root are written through the recording VFS, files and directories are watched."""
    name = f"recording-{id(disk)}"
    files = RecordingFiles(name, disk)
    real = sqlite3.connect

    def connect(database: str, **more: Any) -> Any:
        path = Path(path_of(database))
        if not disk.holds(str(path)):
            return real(database, **more)
        return Connection(path, name, checkpoint_pages=CHECKPOINT_PAGES, replaced=replaced)

    with pytest.MonkeyPatch.context() as patch, watched(disk):
        patch.setattr(sqlite3, "connect", connect)
        yield
    files.unregister()


def run_writers(root: Path, *, seed: int, calls: int, writers: int = 3, replaced: Callable[[str], str] = str) -> Run:
    """Let writers call a new store concurrently, with a restart in the middle, and record everything.

    Args:
        root: a new directory.
        seed: of the random calls.
        calls: per writer; a multiple of eight.
        writers: number of writers.
        replaced: changes statements on their way to SQLite.
    """
    root.mkdir()
    disk = Disk(root)
    people = [Writer(number, seed) for number in range(writers)]
    copies: list[Path] = []

    def copy_segments() -> None:
        copies.append(root.with_name(f"{root.name}-segments-{len(copies)}"))
        copies[-1].mkdir()
        for segments in root.glob("data/collections/*/segments"):
            _copy_while_it_changes(segments, copies[-1] / segments.parent.name)

    with recorded(disk, replaced=replaced), thresholds.lowered(few_deleted_at_once=True):
        with LocalStore.open(root / "data") as store:
            Create(SHARED).make(StoreDoor(store))
            setup_events = len(disk.events)
            for _ in range(_COPIES):
                _all_at_once(store, disk, people, calls // 2 // _COPIES)
                copy_segments()
        with LocalStore.open(root / "data") as store:
            for _ in range(_COPIES):
                _all_at_once(store, disk, people, calls // 2 // _COPIES)
                copy_segments()
    return Run(disk, people, setup_events, copies)


def _copy_while_it_changes(source: Path, target: Path) -> None:
    """Copy a directory, without files that are removed meanwhile."""
    for directory, _, names in os.walk(source):  # skips directories that were removed
        for name in sorted(names):
            path = Path(directory) / name
            try:
                (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target / path.relative_to(source))
            except FileNotFoundError:
                continue


def _all_at_once(store: LocalStore, disk: Disk, writers: Sequence[Writer], calls: int) -> None:
    failures: list[BaseException] = []

    def write(writer: Writer, number: int) -> None:
        try:
            for _ in range(calls):
                call = writer.next_call()
                disk.mark(number, len(writer.worlds) - 1, acknowledged=False)
                call.make(StoreDoor(store))
                disk.mark(number, len(writer.worlds) - 1, acknowledged=True)
                # Let segments be sealed in between.
                threading.Event().wait(0.003)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(writer, number)) for number, writer in enumerate(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


@dataclass
class Cuts:
    """What was found."""

    points: int = 0
    lost: list[str] = field(default_factory=list)
    """Violations: the moment and what was found."""


def other_segments(run: Run, data: Path, chance: random.Random) -> None:
    """Change the segments of each collection in ways that the store must tolerate, since they are a cache.

    They stay, are absent, lack a file, have a truncated one, are those of another moment, older or newer than the
    items, or a mixture of two moments.
    """
    for collection in sorted(data.glob("collections/*")):
        segments = collection / "segments"
        copies = [copy / collection.name for copy in run.segments if (copy / collection.name).is_dir()]
        what = chance.choice(("stay", "absent", "lack", "cut", "other", "mixed"))
        if what == "absent":
            shutil.rmtree(segments, ignore_errors=True)
        elif what in ("other", "mixed") and copies:
            if what == "other":
                shutil.rmtree(segments, ignore_errors=True)
            copy = chance.choice(copies)
            for path in sorted(copy.rglob("*")):
                if path.is_file() and (what == "other" or chance.random() < 0.5):
                    (segments / path.relative_to(copy)).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, segments / path.relative_to(copy))
        elif what in ("lack", "cut"):
            files = [path for path in sorted(segments.rglob("*")) if path.is_file()]
            if files:
                path = chance.choice(files)
                if what == "lack":
                    path.unlink()
                else:
                    path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size + 1)])


def cut_everywhere(
    run: Run,
    work: Path,
    *,
    seed: int,
    every: int = 1,
    cuts_each: int = 1,
    tampered: Callable[[Path, random.Random], None] = lambda data, chance: None,
) -> Cuts:
    """Cut the power after each event, from the creation of the data directory on, and check what is left.

    Args:
        run: what was recorded.
        work: a new directory for data directories.
        seed: chooses what is left of unsynced writes.
        every: 1 for all events; 3 for every third.
        cuts_each: number of power cuts at the same event, each with another choice.
        tampered: called with each data directory before it is opened, to change it.
    """
    found = Cuts()
    replay = Replay(run.disk)
    acknowledged, begun = [0] * len(run.writers), [0] * len(run.writers)
    work.mkdir()
    while replay.position < len(run.disk.events):
        event = replay.advance()
        if isinstance(event, Mark):
            (acknowledged if event.acknowledged else begun)[event.writer] = event.step
        if replay.position % every:
            continue
        for attempt in range(cuts_each):
            chance = random.Random(f"{seed} {replay.position} {attempt}")
            target = work / "disk"
            replay.cut(target, chance)
            tampered(target / "data", chance)
            found.points += 1
            try:
                with LocalStore.open(target / "data") as store:
                    world = read_world(StoreDoor(store))
                    if replay.position >= run.setup_events and SHARED not in world.collections:
                        raise Violation("no collection shared")
                    check_promises(run.writers, acknowledged, begun, world)
            except (EmbedserveError, Violation) as error:
                found.lost.append(f"seed {seed}, event {replay.position}, attempt {attempt}: {error}")
            shutil.rmtree(target)
    return found
