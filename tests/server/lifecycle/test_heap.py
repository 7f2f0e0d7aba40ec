"""When the heap is trimmed."""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedserve.server.lifecycle import memory

MIB = 1 << 20


def trims(monkeypatch: pytest.MonkeyPatch, sizes_mib: list[int], *, after_mib: int) -> list[int]:
    """The sizes at which the heap is trimmed, if trimming leaves ``after_mib``."""
    seen: Iterator[int] = iter(sizes_mib)
    trimmed: list[int] = []
    current = 0

    def resident_bytes() -> int:
        nonlocal current
        is_right_after_a_trim = bool(trimmed) and trimmed[-1] == current
        current = after_mib if is_right_after_a_trim else next(seen)
        return current * MIB

    monkeypatch.setattr(memory, "EVERY_S", 0)
    monkeypatch.setattr(memory, "TRIM_AFTER_BYTES", 64 * MIB)
    monkeypatch.setattr(memory, "_resident_bytes", resident_bytes)

    async def watch() -> None:
        with pytest.raises((StopIteration, RuntimeError)):
            await memory.trim_after_growth(lambda: trimmed.append(current))

    asyncio.run(watch())
    return trimmed


def test_the_heap_is_trimmed_after_growth_and_not_again_while_the_memory_is_in_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert trims(monkeypatch, [100, 130, 150, 164, 201, 210, 264, 266], after_mib=201) == [164, 266]


def test_growth_counts_from_the_smallest_size_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert trims(monkeypatch, [300, 310, 100, 150, 165], after_mib=100) == [165]


def test_trimming_works_where_the_system_has_it() -> None:
    trim = memory.heap_trimmer()
    if trim is not None:
        trim()


COUNT = """
import ctypes, re, sys, threading
from embedserve.server.lifecycle import memory
memory.usable_cores = lambda: 3
memory.few_arenas()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
all_there = threading.Barrier(20)
def allocate():
    all_there.wait()
    for _ in range(100):
        libc.malloc(1000)
    all_there.wait()
threads = [threading.Thread(target=allocate) for _ in range(20)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
out = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
libc.malloc_info(0, out)
libc.fclose(out)
print(len(re.findall("<heap nr=", open(sys.argv[1]).read())))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="needs glibc")
@pytest.mark.parametrize(("set_by_user", "arenas"), [({}, 3), ({"MALLOC_ARENA_MAX": "5"}, 5)])
def test_there_is_an_arena_for_each_core_unless_the_user_says_otherwise(
    set_by_user: dict[str, str], arenas: int, tmp_path: Path
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"} | set_by_user
    command = [sys.executable, "-c", COUNT, str(tmp_path / "info")]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert int(ran.stdout) == arenas
