"""Servers that are killed, and how the tests call them."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from embedserve import Client, wire
from embedserve.client import MetadataChange, Query, retry
from embedserve.client.inputs import vector_to_proto
from embedserve.errors import EmbedserveError, Unavailable
from embedserve.types import CollectionInfo, Filter, Hit, Item, SearchOptions
from embedserve.v1.collection_service_pb2 import UpsertItem, UpsertRequest, UpsertResult, UpsertStreamRequest
from embedserve.v1.collection_service_pb2_grpc import CollectionServiceStub
from tests.durability.ledger import DIMENSION, Put, Violation, Writer, index_of, keys_of

SMALL_SERVER = (
    "-c",
    "from tests.durability.thresholds import lower; lower(); from embedserve.cli import run; run()",
)
"""A server whose segments are sealed after a few rows."""


class ClientDoor:
    """Calls a server. Writes are unary calls, since ``add`` of the client may split items into several messages."""

    def __init__(self, client: Client, channel: grpc.Channel) -> None:
        self._client = client
        self._stub = CollectionServiceStub(channel)

    def create(self, name: str) -> None:
        self._client.create_collection(
            name, external=True, dimension=DIMENSION, index=index_of(name), filter_keys=keys_of(name)
        )

    def drop(self, name: str) -> None:
        self._client.delete_collection(name)

    def put(self, collection: str, items: Sequence[Item]) -> None:
        request = UpsertRequest(collection=collection, items=map(_upsert_item, items))
        for result in self._stub.Upsert(request, timeout=30).results:
            if result.WhichOneof("result") != "id":
                raise Violation(f"an item was answered with {result}")

    def delete(self, collection: str, ids: Sequence[str]) -> None:
        self._client.delete_items(collection, ids)

    def delete_matching(self, collection: str, filter: Filter) -> None:
        self._client.delete_items(collection, filter=filter)

    def update(self, collection: str, changes: Sequence[MetadataChange]) -> None:
        self._client.update_metadata(collection, changes)

    def set_alias(self, alias: str, collection: str) -> None:
        self._client.set_alias(alias, collection)

    def stream(self, puts: Sequence[Put]) -> Iterator[Sequence[UpsertResult]]:
        """Send messages to one collection; yields the results of each once it is on disk."""
        requests = (UpsertStreamRequest(collection=put.collection, items=map(_upsert_item, put.items)) for put in puts)
        for response in self._stub.UpsertStream(requests, timeout=30):
            yield response.results or [response.result]

    def collections(self) -> list[CollectionInfo]:
        return self._client.list_collections()

    def items(self, name: str) -> list[Item]:
        return list(self._client.list_items(name, include_vectors=True, page_size=500))

    def search(self, name: str, queries: NDArray[np.float32], options: SearchOptions) -> list[list[Hit]]:
        answers: list[list[Hit]] = []
        for answer in self._client.search_many(
            name,
            [Query(vector=query) for query in queries],
            k=options.k,
            ef=options.ef,
            nprobe=options.nprobe,
            filter=options.filter,
        ):
            if isinstance(answer, EmbedserveError):
                raise answer
            answers.append(answer)
        return answers


@contextmanager
def no_second_tries() -> Iterator[None]:
    """Let a client that loses its server fail at once, since the next server has another port."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retry, "_UNAVAILABLE_ATTEMPTS", 1)
        yield


class Ledger:
    """What each writer sent and was told; on disk before the writer goes on, so that a failure can be examined."""

    def __init__(self, path: Path, writers: int) -> None:
        self.begun = [0] * writers
        self.acknowledged = [0] * writers
        self._file = path.open("a", encoding="utf-8")
        self._lock = threading.Lock()

    def begin(self, writer: int, step: int, what: str) -> None:
        self.begun[writer] = step
        self._write(writer=writer, begun=step, call=what)

    def acknowledge(self, writer: int, step: int) -> None:
        self._write(writer=writer, acknowledged=step)
        self.acknowledged[writer] = step

    def restart(self, round_number: int) -> None:
        """The outcome of all calls is known: each writer counts from 0 again."""
        self.begun = [0] * len(self.begun)
        self.acknowledged = [0] * len(self.acknowledged)
        self._write(round=round_number)

    def close(self) -> None:
        self._file.close()

    def _write(self, **entry: Any) -> None:
        with self._lock:
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())


def write_until_killed(address: str, number: int, writer: Writer, ledger: Ledger) -> None:
    """Make calls one after another until the server is gone.

    Raises:
        Violation: a call failed for another reason.
    """
    with door_to(address) as door:
        what = ""
        try:
            while True:
                if writer.streams_next():
                    what = "a stream"
                    _stream(door, number, writer, ledger)
                    continue
                call = writer.next_call()
                what, step = _words(call), len(writer.worlds) - 1
                ledger.begin(number, step, what)
                call.make(door)
                ledger.acknowledge(number, step)
        except Unavailable:
            return
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                raise Violation(f"writer {writer.prefix}: {what}: {error}") from error
        except EmbedserveError as error:
            raise Violation(f"writer {writer.prefix}: {what}: {error}") from error


@contextmanager
def door_to(address: str) -> Iterator[ClientDoor]:
    with Client(address, timeout_s=30) as client, grpc.insecure_channel(address) as channel:
        yield ClientDoor(client, channel)


def _stream(door: ClientDoor, number: int, writer: Writer, ledger: Ledger) -> None:
    first = len(writer.worlds)
    puts = writer.next_stream()
    ledger.begin(number, len(writer.worlds) - 1, f"stream of {len(puts)} messages")
    step = first
    for results in door.stream(puts):
        for result in results:
            if result.WhichOneof("result") != "id":
                raise Violation(f"writer {writer.prefix}: a message of a stream was answered with {result}")
        ledger.acknowledge(number, step)
        step += 1
    if step != first + len(puts):
        raise Violation(f"writer {writer.prefix}: {step - first} answers to {len(puts)} messages")


def _upsert_item(item: Item) -> UpsertItem:
    assert item.vector is not None
    made = UpsertItem(id=item.id, vector=vector_to_proto(item.vector))
    wire.metadata_into(made.metadata, item.metadata)
    return made


def _words(call: object) -> str:
    items = f" {len(call.items)} items" if isinstance(call, Put) else ""
    name = getattr(call, "collection", "") or getattr(call, "name", "")
    return f"{type(call).__name__} {name}{items}"
