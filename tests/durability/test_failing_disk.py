"""A disk that refuses writes or syncs of SQLite loses no acknowledged write and leaves no partial one."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from embedserve.store.local.store import LocalStore
from embedserve.types import EXTERNAL, Eq, Include, Keep
from tests.store.store_cases import all_ids, items_file

COMPILER = shutil.which("cc")
WRITER = """
import os, sys
from pathlib import Path
import numpy as np
from embedserve.errors import EmbedserveError
from embedserve.store.local.store import LocalStore
from embedserve.types import Item

vector = np.eye(1, 64, dtype=np.float32)[0]
control = Path(os.environ["FAILING_DISK"])

def write(name, count):
    items = [Item(id=f"{name}-{n:04}", vector=vector, metadata={"batch": name}) for n in range(count)]
    try:
        store.upsert("photos", items)
    except EmbedserveError as error:
        print(name, type(error).__name__, getattr(error.__cause__, "sqlite_errorname", "-"))
    else:
        print(name, "written -")

with LocalStore.open(Path(sys.argv[1])) as store:
    write("before", 10)
    control.write_text(sys.argv[2])
    for name in ("first", "second", "third"):
        write(name, 3000)
    control.write_text("")
    write("after", 10)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if COMPILER is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C compiler")
    path = tmp_path_factory.mktemp("library") / "failing_disk.so"
    source = Path(__file__).with_name("failing_disk.c")
    subprocess.run([COMPILER, "-shared", "-fPIC", "-O1", "-o", path, source, "-ldl"], check=True, timeout=60)
    return path


FULL = "DiskFull SQLITE_FULL"
WRITE = "StoreError SQLITE_IOERR_WRITE"
SYNC = "StoreError SQLITE_IOERR_FSYNC"
REFUSED = "StoreError -"
WRITTEN = "written -"
CASES = {
    "no space for the log": (f"write -wal {errno.ENOSPC}", [FULL, FULL, FULL, WRITTEN]),
    # SQLite does not distinguish this one from a failing disk.
    "no quota for the log": (f"write -wal {errno.EDQUOT}", [WRITE, WRITE, WRITE, WRITTEN]),
    "a bad disk under the log": (f"write -wal {errno.EIO}", [WRITE, WRITE, WRITE, WRITTEN]),
    "a failed sync of the log": (f"sync -wal {errno.EIO}", [SYNC, REFUSED, REFUSED, REFUSED]),
    # Items are moved from the log into the database later; until that succeeds, they stay in the log.
    "no space for the database": (f"write . {errno.ENOSPC}", [WRITTEN] * 4),
    "a bad disk under the database": (f"write . {errno.EIO}", [WRITTEN] * 4),
    "a failed sync of the database": (f"sync . {errno.EIO}", [WRITTEN] * 4),
}


@pytest.mark.parametrize(("failure", "expected"), CASES.values(), ids=CASES.keys())
def test_after_failures_of_the_disk_acknowledged_writes_exist_and_refused_ones_do_not(
    data: Path, tmp_path: Path, library: Path, failure: str, expected: list[str]
) -> None:
    with LocalStore.open(data) as store:
        store.create_collection(
            "photos", fingerprint=EXTERNAL, encoder_name="", dimension=64, keep=Keep.NONE, filter_keys=["batch"]
        )
    control = tmp_path / "control"
    control.write_text("")
    environment = os.environ | {"LD_PRELOAD": str(library), "FAILING_DISK": str(control)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WRITER, str(data), failure],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    names = ["first", "second", "third", "after"]
    outcomes = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert outcomes == {"before": WRITTEN, **dict(zip(names, expected, strict=True))}
    with LocalStore.open(data) as store:
        written = [name for name, outcome in outcomes.items() if outcome == WRITTEN]
        # Whether a write whose sync failed is on disk is unknown; the caller was told that it failed.
        unknown = [name for name, outcome in outcomes.items() if outcome == SYNC]
        there = {id.split("-")[0] for id in all_ids(store, page_size=1000)}
        assert set(written) <= there <= {*written, *unknown}
        for name in there:
            count = 10 if name in ("before", "after") else 3000
            assert sum(id.startswith(name) for id in all_ids(store, page_size=1000)) == count
            page = store.list_items("photos", page_size=1, page_token="", filter=Eq("batch", name), include=Include())
            assert [item.id for item in page.items] == [f"{name}-0000"]
    with closing(sqlite3.connect(items_file(data))) as connection:
        pairs = "SELECT json_extract(meta, '$.batch'), rid FROM item ORDER BY rid"
        facets = "SELECT value, rid FROM facet ORDER BY rid"
        assert connection.execute(facets).fetchall() == connection.execute(pairs).fetchall()
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
