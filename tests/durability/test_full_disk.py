"""A server whose disk is full returns DISK_FULL, goes on answering, and takes writes again when there is room."""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest

from embedserve.client import Client
from embedserve.errors import DiskFull
from embedserve.store.local.reserve import Reserve
from embedserve.store.local.store import LocalStore
from tests.durability.checks import read_world
from tests.durability.ledger import SHARED, StoreDoor, make_item, stored
from tests.durability.over_grpc import ClientDoor, door_to
from tests.encoders import write_encoder_file
from tests.running import ServerProcess


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder_file(tmp_path_factory.mktemp("encoder") / "encoder.onnx")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    with mounted(tmp_path / "disk", "4m") as path:
        yield path


@pytest.fixture
def larger_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB, of which a store sets 1 MiB aside."""
    with mounted(tmp_path / "disk", "64m") as path:
        yield path


@contextmanager
def mounted(path: Path, size: str) -> Iterator[Path]:
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small file system needs root on Linux")
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], check=False)
    if done.returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(door: ClientDoor, first: int) -> tuple[dict[str, object], grpc.RpcError]:
    """Put batches of items until one is refused; what was acknowledged, and the refusal."""
    held: dict[str, object] = {}
    for number in range(first, first + 100_000):
        items = [make_item(f"w0-{number}-{part}", number * 100 + part, media=False) for part in range(50)]
        try:
            door.put(SHARED, items)
        except grpc.RpcError as error:
            return held, error
        held.update({item.id: stored(item) for item in items})
    raise AssertionError("it took everything")


def test_a_server_on_a_full_disk_refuses_writes_answers_reads_and_recovers(
    encoder_file: Path, small_disk: Path, count: Callable[..., None]
) -> None:
    data, ballast = small_disk / "data", small_disk / "ballast"
    ballast.write_bytes(bytes(1 << 20))
    with (
        ServerProcess(str(encoder_file), "--data", str(data), "--no-http") as running,
        door_to(running.address) as door,
    ):
        door.create(SHARED)
        held, refusal = fill(door, 0)
        assert refusal.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "no space left on the disk" in str(refusal.details())
        assert held
        world = read_world(door)
        assert world.collections[SHARED] == held
        ballast.unlink()
        more, refusal = fill(door, 100_000)
        assert refusal.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert more, "nothing was taken when there was room again"
        assert read_world(door).collections[SHARED] == held | more
        running.kill()
    shutil.copytree(data, small_disk.parent / "copy")
    with LocalStore.open(small_disk.parent / "copy") as store:
        assert read_world(StoreDoor(store)).collections[SHARED] == held | more
    count("full disk under a server", acknowledged_items=len(held | more), violations=0)


def test_a_server_whose_files_may_not_grow_refuses_writes_and_loses_nothing(encoder_file: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with (
        ServerProcess(str(encoder_file), "--data", str(data), "--no-http") as running,
        door_to(running.address) as door,
    ):
        door.create(SHARED)
        door.put(SHARED, [make_item("w0-first", 1, media=False)])
        resource.prlimit(running.pid, resource.RLIMIT_FSIZE, (600_000, resource.RLIM_INFINITY))
        held, refusal = fill(door, 0)
        assert refusal.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL)
        assert held
        resource.prlimit(running.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert set(read_world(door).collections[SHARED]) == {"w0-first", *held}
        door.put(SHARED, [make_item("w0-after", 2, media=False)])
        running.kill()
    with LocalStore.open(data) as store:
        items = read_world(StoreDoor(store)).collections[SHARED]
    assert set(items) == {"w0-first", "w0-after", *held}
    assert all(items[id] == item for id, item in held.items())


def test_a_server_whose_syncs_fail_promises_nothing_more_until_it_is_started_again(
    encoder_file: Path, tmp_path: Path, count: Callable[..., None]
) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("needs strace")
    data = tmp_path / "data"
    with (
        ServerProcess(str(encoder_file), "--data", str(data), "--no-http") as running,
        door_to(running.address) as door,
    ):
        door.create(SHARED)
        first = [make_item(f"w0-{number}", number, media=False) for number in range(20)]
        door.put(SHARED, first)
        inject = ["-f", "-p", str(running.pid), "-e", "trace=fdatasync,fsync", "-e", "inject=fdatasync,fsync:error=EIO"]
        with subprocess.Popen([strace, *inject], stderr=subprocess.PIPE, text=True) as tracing:
            assert tracing.stderr is not None
            if "attached" not in tracing.stderr.readline():
                tracing.kill()
                pytest.skip("strace may not attach to a process here")
            with pytest.raises(grpc.RpcError):
                door.put(SHARED, [make_item("w0-lost", 100, media=False)])
            tracing.terminate()
        for number in range(3):
            with pytest.raises(grpc.RpcError, match="takes no writes since a sync failed"):
                door.put(SHARED, [make_item(f"w0-later-{number}", 101 + number, media=False)])
        assert {id: item for id, item in read_world(door).collections[SHARED].items() if id != "w0-lost"} == {
            item.id: stored(item) for item in first
        }
        running.kill()
    with ServerProcess(str(encoder_file), "--data", str(data), "--no-http") as again, door_to(again.address) as door:
        door.put(SHARED, [make_item("w0-after", 200, media=False)])
        there = set(read_world(door).collections[SHARED])
    assert {item.id for item in first} | {"w0-after"} <= there <= {item.id for item in first} | {"w0-after", "w0-lost"}
    count("failing syncs under a server", violations=0)


# --- Started on a disk without a free byte ---------------------------------------------------------------------------


def fill_up(directory: Path) -> Path:
    """Leave no free byte on the disk of a directory; the file that takes them all."""
    ballast = directory / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            with suppress(OSError):
                while file.write(bytes(size)):
                    pass
    return ballast


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "stopped"])
def test_a_server_starts_on_a_full_disk_answers_reads_and_removes_without_free_space(
    encoder_file: Path, larger_disk: Path, killed: bool
) -> None:
    data, arguments = larger_disk / "data", (str(encoder_file), "--data", str(larger_disk / "data"), "--no-http")
    items = [make_item(f"w0-{number}", number, media=False) for number in range(50)]
    with ServerProcess(*arguments) as running, door_to(running.address) as door:
        for name in (SHARED, "w0c1"):
            door.create(name)
            door.put(name, items)
        if killed:
            running.kill()
        else:
            assert running.terminate() == 0
    assert (data / "RESERVE").stat().st_size == 1 << 20
    fill_up(larger_disk)
    with ServerProcess(*arguments) as running, door_to(running.address) as door, Client(running.address) as client:
        assert running.address, running.said
        world = read_world(door)
        assert world.collections == {name: {item.id: stored(item) for item in items} for name in (SHARED, "w0c1")}
        with pytest.raises(grpc.RpcError, match="no space left on the disk"):
            door.put(SHARED, [make_item(f"w0-{number + 100}", number, media=False) for number in range(1000)])
        assert client.delete_items(SHARED, [item.id for item in items[:10]]) == 10
        assert client.delete_items(SHARED, [item.id for item in items[10:20]]) == 10
        client.delete_collection("w0c1")
        assert [info.name for info in client.list_collections()] == [SHARED]
        door.put(SHARED, [make_item("w0-after", 1, media=False)])
        assert {"w0-after", "w0-20"} < set(read_world(door).collections[SHARED])
        running.kill()
    with LocalStore.open(data) as store:
        assert [info.name for info in store.list_collections()] == [SHARED]
        assert {"w0-after", "w0-20"} < set(read_world(StoreDoor(store)).collections[SHARED])


def test_collections_are_removed_one_after_another_from_a_full_disk(small_disk: Path) -> None:
    with LocalStore.open(small_disk / "data", background=False) as store:
        for number in range(5):
            StoreDoor(store).create(f"w0c{number}")
            StoreDoor(store).put(f"w0c{number}", [make_item(f"w0-{n}", n, media=False) for n in range(500)])
        ballast = fill_up(small_disk)
        for number in range(5):
            store.delete_collection(f"w0c{number}")
            with ballast.open("ab", buffering=0) as file, suppress(OSError):
                while file.write(bytes(4096)):
                    pass
        assert store.list_collections() == []


def test_all_items_are_removed_from_a_full_disk_a_hundred_at_a_time(
    larger_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"_SHARE": 4, "_MOST_BYTES": 16 << 20}.items():  # as on a disk of a gigabyte
        monkeypatch.setattr(f"embedserve.store.local.reserve.{name}", value)
    with LocalStore.open(larger_disk / "data", background=False) as store:
        door = StoreDoor(store)
        door.create(SHARED)
        items = [make_item(f"w0-{number:05}", number, media=False) for number in range(3000)]
        door.put(SHARED, items)
        random.Random(0).shuffle(items)
        ballast = fill_up(larger_disk)
        for start in range(0, len(items), 100):
            assert store.delete_items(SHARED, [item.id for item in items[start : start + 100]]) == 100
            with ballast.open("ab", buffering=0) as file, suppress(OSError):
                while file.write(bytes(4096)):
                    pass
        assert store.get_collection(SHARED).items == 0


def test_the_reserve_is_made_again_once_there_is_room(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedserve.store.local.reserve._AGAIN_S", 0.0)
    reserve, path = Reserve(small_disk), small_disk / "RESERVE"
    reserve.keep()
    size = path.stat().st_size
    ballast = fill_up(small_disk)
    answers = iter([DiskFull("no space left"), None])

    def remove() -> str:
        if (error := next(answers)) is not None:
            raise error
        return "removed"

    assert reserve.used_if_full(remove) == "removed"
    assert not path.exists()
    reserve.keep()
    assert not path.exists(), "it took the last space of the disk"
    ballast.unlink()
    reserve.keep()
    assert path.stat().st_size == size


def test_without_a_reserve_a_full_disk_is_reported(tmp_path: Path) -> None:
    def remove() -> None:
        raise DiskFull("no space left")

    with pytest.raises(DiskFull, match="no space left"):
        Reserve(tmp_path).used_if_full(remove)
