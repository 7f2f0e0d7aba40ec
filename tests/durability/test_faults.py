"""Each write, sync, truncation, opening and removal of a file of SQLite fails; no acknowledged write is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import apsw
import pytest

from embedserve.errors import DiskFull, EmbedserveError, StoreError
from embedserve.store.local.store import LocalStore
from tests.durability import thresholds
from tests.durability.checks import difference, read_world
from tests.durability.faults import Fault, Operation, failing
from tests.durability.ledger import SHARED, Call, Create, Put, StoreDoor, Violation, World, Writer, make_item

CALLS = 8
"""Calls in each of two runs of a store."""


class Player:
    """Makes calls while the disk fails, and checks everything after each call that failed.

    Args:
        data: the data directory.
        fault: what fails.
        seed: of the random calls.
    """

    def __init__(self, data: Path, fault: Fault, seed: int) -> None:
        self.allowed = [World()]
        """What may be stored: one world, or two after a call with an unknown outcome."""
        self._data = data
        self._fault = fault
        self._writer = Writer(0, seed)

    def live(self) -> None:
        """Open the store, make calls, close it."""
        try:
            store = LocalStore.open(self._data)
        except EmbedserveError:
            self._fault.end()
            store = LocalStore.open(self._data)
        with store:
            door = StoreDoor(store)
            self.look(door, "after a start")
            if SHARED not in self.allowed[0].collections and not self._survives(door, Create(SHARED)):
                return
            self._writer.settled(self.allowed[0].copy())
            for _ in range(CALLS):
                call = self._writer.next_call()
                if not self._survives(door, call):
                    return
                self._writer.settled(self.allowed[0].copy())

    def look(self, door: StoreDoor, when: str) -> None:
        """Check that the content is allowed; from now on only this content is."""
        there = read_world(door)
        if there not in self.allowed:
            raise Violation(f"{when}: {' or '.join(difference(world, there) for world in self.allowed)}")
        self.allowed = [there]

    def _survives(self, door: StoreDoor, call: Call) -> bool:
        """Make a call, again if it failed; False if the store must be opened again first."""
        before = self.allowed[0]
        after = before.copy()
        call.expect(after)
        try:
            call.make(door)
        except DiskFull:
            self.look(door, "after a write to a full disk")
            self._fault.end()
            return self._survives(door, call)
        except StoreError as error:
            self.allowed = [before, after]
            self.look(door, f"after {error}")
            if self._fault.operation != "sync":
                return self._survives(door, call) if self.allowed == [before] else True
            made_anew = isinstance(call, Create) and "items.sqlite" in error.message
            if made_anew:
                return self._survives(door, call)
            # What is on disk of the write is unknown until the next start; until then nothing more is acknowledged.
            self._is_refused(door, call)
            self.allowed = [before, after]
            return False
        self.allowed = [after]
        if self._fault.hits:
            self.look(door, "after a call that was acknowledged")
        return True

    def _is_refused(self, door: StoreDoor, call: Call) -> None:
        try:
            call.make(door)
        except StoreError:
            return
        raise Violation(f"after a failed sync {type(call).__name__} was acknowledged")


def play(data: Path, fault: Fault, seed: int) -> None:
    """Two runs of a store on a failing disk, then a third on a working one.

    Raises:
        Violation: a promise was broken.
    """
    player = Player(data, fault, seed)
    with thresholds.lowered(), failing(data, fault):
        player.live()
        player.live()
    with LocalStore.open(data) as store:
        player.look(StoreDoor(store), "in the end")


CASES: dict[str, tuple[Operation, int, bool]] = {
    "a bad write": ("write", apsw.SQLITE_IOERR_WRITE, False),
    "a full disk": ("write", apsw.SQLITE_FULL, True),
    "a failed sync": ("sync", apsw.SQLITE_IOERR_FSYNC, False),
    "a failed cut": ("truncate", apsw.SQLITE_IOERR_TRUNCATE, False),
    "a file that does not open": ("open", apsw.SQLITE_CANTOPEN, False),
    "a file that does not go": ("delete", apsw.SQLITE_IOERR_DELETE, False),
}


@pytest.mark.parametrize(("operation", "code", "lasting"), CASES.values(), ids=CASES.keys())
def test_after_any_failure_of_the_disk_acknowledged_writes_can_be_read(
    work: Path, seed: int, thorough: int, count: Callable[..., None], operation: Operation, code: int, lasting: bool
) -> None:
    nothing = Fault(operation, 0, code)
    play(work / "well", nothing, seed)
    total = nothing.counts[operation]
    hits, broken = 0, []
    for nth in range(1, total + 1, 1 if thorough > 1 else max(1, total // 8)):
        fault = Fault(operation, nth, code, lasting=lasting)
        try:
            play(work / str(nth), fault, seed)
        except (EmbedserveError, Violation) as error:
            broken.append(f"seed {seed}, {operation} {nth} of {total}: {type(error).__name__}: {error}")
        hits += fault.hits > 0
    count("failing disk", faults=hits, violations=len(broken))
    assert broken == []
    assert hits > 0


def test_a_store_on_a_disk_that_is_full_for_a_while_answers_reads_and_takes_writes_again(work: Path) -> None:
    fault = Fault("write", 0, apsw.SQLITE_FULL)
    with failing(work, fault), LocalStore.open(work / "data") as store:
        door = StoreDoor(store)
        door.create(SHARED)
        door.put(SHARED, [make_item(f"w0-{number:03}", number) for number in range(20)])
        before = read_world(door)
        fault.begin()
        for number in range(5):
            with pytest.raises(DiskFull, match="no space left on the disk"):
                Put(SHARED, [make_item(f"w0-{number:03}", 100 + number), make_item("w0-new", 7)]).make(door)
            assert read_world(door) == before
        with pytest.raises(DiskFull):
            door.create("w0-c1")
        fault.end()
        door.put(SHARED, [make_item("w0-new", 7)])
        door.create("w0-c1")
    with LocalStore.open(work / "data") as store:
        after = read_world(StoreDoor(store))
    assert set(after.collections[SHARED]) == {*before.collections[SHARED], "w0-new"}
    assert after.collections["w0-c1"] == {}
