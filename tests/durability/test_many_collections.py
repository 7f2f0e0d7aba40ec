"""A thousand collections need no more descriptors than a process has by default."""

from __future__ import annotations

import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from embedserve.client import Client, ItemInput
from embedserve.store.local.store import LocalStore
from embedserve.types import Item
from tests.encoders import write_encoder_file
from tests.running import ServerProcess
from tests.store.store_cases import new_collection, unit

COLLECTIONS = 1000
PROGRAM = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
from embedserve.cli import main
main()
"""


def many_collections(data: Path, count: int) -> None:
    """A data directory with collections c0, c1, … that are copies of one with three items."""
    with LocalStore.open(data, background=False) as store:
        new_collection(store, "c0")
        items = [Item(id=str(n), vector=unit(1, n, 0, 0), metadata={"n": n}) for n in range(3)]
        store.upsert("c0", items)
        uid = store.get_collection("c0").uid
    with closing(sqlite3.connect(data / "catalog.sqlite")) as connection, connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info (collection)")]
        row = dict(zip(columns, connection.execute("SELECT * FROM collection").fetchone(), strict=True))
        for number in range(1, count):
            row |= {"name": f"c{number}", "uid": f"{number:032x}"}
            shutil.copytree(data / "collections" / uid, data / "collections" / str(row["uid"]))
            marks = ", ".join("?" * len(row))
            connection.execute(f"INSERT INTO collection ({', '.join(row)}) VALUES ({marks})", tuple(row.values()))


@pytest.mark.skipif(sys.platform != "linux", reason="descriptors are counted in /proc")
def test_a_server_serves_a_thousand_collections_within_1024_descriptors(
    tmp_path: Path, work: Path, count: Callable[..., None]
) -> None:
    many_collections(work / "data", COLLECTIONS)
    encoder = write_encoder_file(tmp_path / "encoder.onnx")
    with (
        ServerProcess(str(encoder), "--data", str(work / "data"), "--no-http", program=("-c", PROGRAM)) as running,
        Client(running.address) as client,
    ):
        assert running.address, running.said
        assert len(client.list_collections()) == COLLECTIONS
        vector = unit(0, 0, 1, 0)
        for number in range(0, COLLECTIONS, 4):
            client.add(f"c{number}", [ItemInput(id="new", vector=vector, metadata={"n": number})])
        for number in range(0, COLLECTIONS, 4):
            hit, *_ = client.search(f"c{number}", vector=vector, k=1, include_metadata=True)
            assert (hit.id, hit.metadata) == ("new", {"n": number})
        descriptors = len(list(Path(f"/proc/{running.pid}/fd").iterdir()))
        assert descriptors < 400
        count("a thousand collections under a server", collections=COLLECTIONS, descriptors=descriptors, violations=0)
        assert running.terminate() == 0
