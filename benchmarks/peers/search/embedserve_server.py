"""embedserve: `embedserve serve` in a separate process with an external collection, called by its Python client."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from measuring.child import real_server
from numpy.typing import NDArray
from searching.loads import to_json
from searching.system import Client, K, System

from embedserve.client import Client as EmbedserveClient
from embedserve.client import ItemInput, Query
from embedserve.errors import EmbedserveError
from embedserve.loadtest import threaded_closed_loop
from embedserve.types import CollectionInfo, Filter, Metadata, Range

ITEMS = "items"
OWN = "as it comes"
"""The setting without search parameters: the collection searches for the recall that it is tuned to."""

PARTS_PER_1000 = "p"
"""Metadata key of the filtered collection: 0 to 999, evenly distributed."""

_QUIET_S = 1.5
"""The index counts as finished after this long without a build."""


class Embedserve(System):
    """An external collection."""

    own_processes = True

    def build(self, vectors: NDArray[np.float32], folder: Path) -> dict[str, Any]:
        with self._serving(folder) as address, EmbedserveClient(address) as client:
            client.create_collection(ITEMS, external=True, dimension=vectors.shape[1], **self.options.get("create", {}))
            return fill(client, ITEMS, vectors, with_parts=bool(self.options.get("with_parts")))

    @contextlib.contextmanager
    def _serving(self, folder: Path) -> Iterator[str]:
        with real_server(Path(self.options["encoder"]), "--data", str(folder / "data")) as server:
            yield server.address

    def open(self, folder: Path) -> str:
        address = self._left.enter_context(self._serving(folder))
        self.connect(address)
        return address

    def connect(self, address: str) -> None:
        self._client = self._left.enter_context(EmbedserveClient(address))
        index = self._client.get_collection(ITEMS).index.lower()
        self.ladder = (OWN, *steps(index))

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        self._left = contextlib.ExitStack()
        self._knobs: dict[str, Any] = {}

    def close(self) -> None:
        self._left.close()

    def about(self) -> str:
        return f"gRPC; {self._client.get_collection(ITEMS).index}"

    def tune(self, value: str) -> None:
        name, _, number = value.partition("=")
        self._knobs = {name: int(number)} if number else {}

    def client(self, threads: int) -> Client:
        client, knobs = self._client, self._knobs

        def search(queries: NDArray[np.float32]) -> NDArray[np.int64]:
            if len(queries) == 1:
                answers: list[Any] = [client.search(ITEMS, vector=queries[0], k=K, include_metadata=False, **knobs)]
            else:
                asked = [Query(vector=query) for query in queries]
                answers = client.search_many(ITEMS, asked, k=K, include_metadata=False, **knobs)
            return rows_of(answers)

        return search

    # --- Measurements of embedserve alone; called by name ---

    def make_empty(self, name: str, dimension: int) -> None:
        """Create a collection to write to."""
        self._client.create_collection(name, external=True, dimension=dimension)

    def upsert(self, name: str, vectors: str, first: int, count: int, per_call: int, at: float) -> dict[str, Any]:
        """Write rows in calls of ``per_call``; 0: all over one stream. Seconds since 1970 of begin and end."""
        rows = np.load(vectors, mmap_mode="r")[first : first + count]
        items = [ItemInput(id=str(first + row), vector=vector) for row, vector in enumerate(rows)]
        _wait_until(at)
        begun = time.time()
        for start in range(0, count, per_call or count):
            for result in self._client.add_each(name, items[start : start + (per_call or count)]):
                if result.error is not None:
                    raise result.error
        return {"begun": begun, "ended": time.time()}

    def upsert_one_by_one(self, vectors: str, seconds: float, at: float) -> dict[str, Any]:
        """Write single new items, each after the previous one is acknowledged; milliseconds of each."""
        rows = np.load(vectors, mmap_mode="r")

        def call(number: int) -> int:
            [result] = self._client.add(ITEMS, [ItemInput(id=str(len(rows) + number), vector=rows[number % len(rows)])])
            if result.error is not None:
                raise result.error
            return 1

        return {"taken_ms": to_json(threaded_closed_loop(lambda _: call, 1, seconds, begin_unix_s=at))["taken_ms"]}

    def filtered(self, queries: NDArray[np.float32], below: int, seconds: float) -> dict[str, Any]:
        """Search among the items with ``p`` below a number: the rows found, −1 for no hit, and the calls."""
        condition: Filter = Range(key=PARTS_PER_1000, lt=below)

        def search(query: NDArray[np.float32]) -> list[Any]:
            return self._client.search(ITEMS, vector=query, k=K, include_metadata=False, filter=condition)

        found = np.full((len(queries), K), -1, np.int64)
        for row, query in enumerate(queries):
            rows = [int(hit.id) for hit in search(query)]
            found[row, : len(rows)] = rows

        def call(number: int) -> int:
            search(queries[number % len(queries)])
            return 1

        return {"found": found.tolist(), **to_json(threaded_closed_loop(lambda _: call, 1, seconds))}

    def timings(self, queries: NDArray[np.float32], per_call: int, calls: int) -> dict[str, Any]:
        """Timings of the server and latency at the client, of calls of one client: medians in milliseconds."""
        from embedserve import wire
        from embedserve.v1 import search_service_pb2 as pb

        seen, store, total = [], [], []
        for number in range(calls):
            chosen = queries[np.arange(number * per_call, (number + 1) * per_call) % len(queries)]
            asked = [pb.SearchQuery(vector=wire.vector_to_proto(query, wire.PACKED_F32)) for query in chosen]
            request = pb.SearchRequest(collection=ITEMS, k=K, queries=asked)
            started = time.perf_counter()
            response = self._client._calls.stubs.search.Search(request, timeout=60)
            seen.append(1000 * (time.perf_counter() - started))
            store.append(response.timings.store_ms)
            total.append(response.timings.total_ms)
        return {
            "client_ms": round(float(np.median(seen)), 4),
            "server_ms": round(float(np.median(total)), 4),
            "store_ms": round(float(np.median(store)), 4),
        }


def steps(index: str) -> tuple[str, ...]:
    """The settings of a kind of index, the same as for bare FAISS; none if every vector is compared."""
    from peers.search.steps import EF, NPROBE

    if "ivf" in index:
        return tuple(f"nprobe={nprobe}" for nprobe in NPROBE)
    return tuple(f"ef={ef}" for ef in EF) if "hnsw" in index else ()


def fill(client: EmbedserveClient, name: str, vectors: NDArray[np.float32], *, with_parts: bool) -> dict[str, Any]:
    """Write all vectors under their rows as ids and wait for the index; seconds of both."""

    def items() -> Iterator[ItemInput]:
        for row in range(len(vectors)):
            metadata: Metadata = {PARTS_PER_1000: part_of(row)} if with_parts else {}
            yield ItemInput(id=str(row), vector=vectors[row], metadata=metadata)

    begun = time.perf_counter()
    for result in client.add_each(name, items()):
        if result.error is not None:
            raise result.error
    ingested = time.perf_counter()
    built, _ = built_index(client, name)
    return {"ingest_s": round(ingested - begun, 2), "index_s": round(max(built - ingested, 0.0), 2)}


def built_index(client: EmbedserveClient, name: str) -> tuple[float, CollectionInfo]:
    """Wait until nothing is built in the background; since when, by ``time.perf_counter``, and the collection."""
    quiet_since: float | None = None
    while True:
        info = client.get_collection(name)
        now = time.perf_counter()
        if info.building:
            quiet_since = None
        elif quiet_since is None:
            quiet_since = now
        elif now - quiet_since >= _QUIET_S:
            return quiet_since, info
        time.sleep(0.05)


def part_of(row: int) -> int:
    """The number 0 to 999 by which a row is filtered: scattered, so that neighbours have different numbers."""
    return (row * 7919) % 1000


def rows_of(answers: list[Any]) -> NDArray[np.int64]:
    """The ids of hits as numbers, int64 [B, 10]; −1 if there are fewer."""
    found = np.full((len(answers), K), -1, np.int64)
    for row, hits in enumerate(answers):
        if isinstance(hits, EmbedserveError):
            raise hits
        found[row, : len(hits)] = [int(hit.id) for hit in hits]
    return found


def _wait_until(unix_s: float) -> None:
    time.sleep(max(unix_s - time.time(), 0.0))
