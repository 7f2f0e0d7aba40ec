"""A writer is killed during its work; what was acknowledged to it exists."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from embedserve.store.local.store import LocalStore
from embedserve.types import SearchOptions
from tests.store.store_cases import EVERYTHING, all_ids, found, new_collection, unit

WRITER = """
import json, sys
from pathlib import Path
import numpy as np
from embedserve.store.local.store import LocalStore
from embedserve.types import Item

def item(id, number):
    vector = np.array([1, number, number * number % 97, 1], np.float64)
    return Item(id=id, vector=(vector / np.linalg.norm(vector)).astype(np.float32), metadata={"number": number})

first = int(sys.argv[2])
with LocalStore.open(Path(sys.argv[1])) as store:
    for number in range(first, first + 1_000_000):
        ids = [f"{number:07}-{part}" for part in range(7)]
        store.upsert("photos", [*(item(id, number) for id in ids), item("newest", number)])
        print(json.dumps(["put", number]), flush=True)
        if number % 3 == 0:
            store.delete_items("photos", ids[:2])
            print(json.dumps(["deleted", number]), flush=True)
"""


def killed_writer(data: Path, first: int, after_s: float) -> list[tuple[str, int]]:
    """The writes that were acknowledged to a killed writer."""
    command = [sys.executable, "-c", WRITER, str(data), str(first)]
    ledger: list[tuple[str, int]] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ledger.append(tuple(json.loads(process.stdout.readline())))
        timer = threading.Timer(after_s, process.kill)
        timer.start()
        # A line without its end was truncated by the kill, before or after the acknowledgement: it does not count.
        ledger += [tuple(json.loads(line)) for line in process.stdout if line.endswith("\n")]
        timer.join()
    assert process.returncode == -9
    return ledger


def test_acknowledged_writes_of_a_killed_writer_exist_and_none_exists_partially(data: Path) -> None:
    with LocalStore.open(data) as store:
        new_collection(store)
    put: list[int] = []
    deleted: set[int] = set()
    waits = random.Random(1)
    for round_number in range(4):
        ledger = killed_writer(data, round_number * 1_000_000, waits.uniform(0.05, 0.4))
        put += [number for kind, number in ledger if kind == "put"]
        deleted |= {number for kind, number in ledger if kind == "deleted"}
        with LocalStore.open(data) as store:
            _check(store, put, deleted)
    assert len(put) > 20


def _check(store: LocalStore, put: list[int], deleted: set[int]) -> None:
    ids = set(all_ids(store, page_size=1000)) - {"newest"}
    parts: dict[int, set[str]] = {}
    for id in ids:
        parts.setdefault(int(id[:7]), set()).add(id[8:])
    everything, rest = set("0123456"), set("23456")
    for number in put:
        # A deletion may be on disk without an acknowledgement if the process was killed between the two.
        allowed = [rest] if number in deleted else [everything, rest] if number % 3 == 0 else [everything]
        assert parts.pop(number) in allowed
    # At most one write of each killed process was in flight; it exists completely or not at all.
    assert len(parts) <= len({number // 1_000_000 for number in put})
    assert all(found_parts == everything for found_parts in parts.values())
    last = put[-1]
    some = [f"{last:07}-3", "newest"]
    for item in store.get_items("photos", some, EVERYTHING):
        assert item is not None
        value = item.metadata["number"]
        assert value in (last, last + 1)
        number = int(str(value))
        assert item.vector is not None
        assert item.vector.tobytes() == unit(1, number, number * number % 97, 1).tobytes()
        best = found(store, item.vector, SearchOptions(k=1))[0][1]
        assert best == pytest.approx(1.0, abs=1e-6)
    assert store.get_collection("photos").items == len(ids) + 1
