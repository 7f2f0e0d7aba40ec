"""After a power cut at any moment, all acknowledged writes exist in the reopened store, and none exists partially."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from embedserve.store.local import lock
from tests.durability import power
from tests.durability.disk import Disk, Replay, Sync
from tests.durability.power import cut_everywhere, other_segments, run_writers

Count = Callable[..., None]


@pytest.mark.slow
def test_no_power_cut_loses_what_was_acknowledged(
    work: Path, seed: int, thorough: int, count: Count, caplog: pytest.LogCaptureFixture
) -> None:
    points, lost = 0, []
    for number in range(seed, seed + thorough):
        run = run_writers(work / f"recorded-{number}", seed=number, calls=24)
        found = cut_everywhere(run, work / f"cuts-{number}", seed=number, cuts_each=2 if thorough > 1 else 1)
        points += found.points
        lost += found.lost
    count("power loss", points=points, violations=len(lost))
    assert lost == []
    assert points >= 1000
    # Listed segments are completely on disk: nothing has to be rebuilt.
    assert [record.getMessage() for record in caplog.records if record.name == "embedserve.store"] == []


def test_after_a_power_cut_segments_may_be_damaged_or_of_any_moment(
    work: Path, seed: int, thorough: int, count: Count
) -> None:
    points, lost = 0, []
    for number in range(seed + 1000, seed + 1000 + thorough):
        run = run_writers(work / f"recorded-{number}", seed=number, calls=16)

        def tampered(data: Path, chance: random.Random) -> None:
            other_segments(run, data, chance)  # noqa: B023

        found = cut_everywhere(
            run, work / f"cuts-{number}", seed=number, every=3 if thorough == 1 else 1, tampered=tampered
        )
        points += found.points
        lost += found.lost
    count("power loss with other segments", points=points, violations=len(lost))
    assert lost == []
    assert points >= 100


# --- The simulator can fail ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_with_a_sync_at_checkpoints_only_acknowledged_items_are_lost(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def weaker(statement: str) -> str:
        return "PRAGMA synchronous = NORMAL" if statement == "PRAGMA synchronous = FULL" else statement

    monkeypatch.setattr(power, "CHECKPOINT_PAGES", 1000)
    run = run_writers(work / "recorded", seed=1, calls=24, replaced=weaker)
    found = cut_everywhere(run, work / "cuts", seed=1, every=3)
    assert len(found.lost) > found.points / 3
    assert any(": lost: w" in line for line in found.lost)


def test_without_a_sync_of_the_directory_above_the_whole_data_directory_is_lost(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_sync_names", lambda directory: None)
    run = run_writers(work / "recorded", seed=1, calls=8)
    found = cut_everywhere(run, work / "cuts", seed=1, every=10)
    assert len(found.lost) > found.points / 10


def after_a_cut(disk: Disk, target: Path, seeds: int) -> set[tuple[tuple[str, bytes], ...]]:
    """What may be on the disk after all events: names and contents."""
    replay = Replay(disk)
    while replay.position < len(disk.events):
        replay.advance()
    seen = set()
    for seed in range(seeds):
        replay.cut(target / str(seed), random.Random(seed))
        files = sorted((target / str(seed)).iterdir())
        seen.add(tuple((path.name, path.read_bytes()) for path in files))
    return seen


def test_unsynced_writes_may_be_partially_on_disk_and_synced_ones_are_completely(work: Path) -> None:
    disk = Disk(work / "disk")
    file = disk.node(str(work / "disk/file"))
    disk.wrote(file, 0, b"a" * 1024)
    disk.synced(file, len(disk.events))
    disk.synced(disk.root, len(disk.events))
    disk.wrote(file, 512, b"b" * 1024)
    (work / "cuts").mkdir()
    left = after_a_cut(disk, work / "cuts", 100)
    assert {name for state in left for name, _ in state} == {"file"}
    contents = {content for state in left for _, content in state}
    assert all(content[:512] == b"a" * 512 for content in contents)
    assert {content[512:1024] for content in contents} == {b"a" * 512, b"b" * 512}
    assert {b"b" * 512, b""} < {content[1024:] for content in contents}


def test_a_sync_covers_only_what_was_written_before_it_began(work: Path) -> None:
    disk = Disk(work / "disk")
    file = disk.node(str(work / "disk/file"))
    disk.synced(disk.root, len(disk.events))
    before = len(disk.events)
    disk.wrote(file, 0, b"late")
    disk.synced(file, before)
    assert isinstance(disk.events[-1], Sync)
    (work / "cuts").mkdir()
    assert (("file", b""),) in after_a_cut(disk, work / "cuts", 50)


def test_a_name_may_be_missing_until_its_directory_is_synced(work: Path) -> None:
    disk = Disk(work / "disk")
    file = disk.node(str(work / "disk/file"))
    disk.wrote(file, 0, b"content")
    disk.synced(file, len(disk.events))
    (work / "cuts").mkdir()
    assert after_a_cut(disk, work / "cuts", 50) == {(), (("file", b"content"),)}
