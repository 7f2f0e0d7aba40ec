"""Counting, deleting by filter and changing metadata over the wire."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from embedserve import Client
from embedserve.client import ItemInput, MetadataChange
from embedserve.errors import (
    CollectionNotFound,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidInput,
    ItemNotFound,
    ItemsFailed,
    LimitExceeded,
    Unavailable,
)
from embedserve.server.lifecycle.state import ServerState
from embedserve.server.services.item_changes import ItemChanges
from embedserve.store.local.store import LocalStore
from embedserve.types import And, Eq, Exists, Filter, Limits, Not, Or, Range
from embedserve.v1 import collection_service_pb2 as pb
from embedserve.v1 import common_pb2
from embedserve.v1.collection_service_pb2_grpc import CollectionServiceStub
from tests.client.fake_server import serving as serving_fake
from tests.fakes import FakeEncoder
from tests.running import serving, wait_until

FIRST = 1768907725507217522
"""Nanoseconds; a double holds only every 256th such number."""


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    """With a collection of 30 items, made a nanosecond apart, on ten days, and its alias "live"."""
    with Client(address) as connected:
        connected.create_collection("times", external=True, dimension=4, filter_keys=["ts"])
        connected.set_alias("live", "times")
        connected.add(
            "times",
            [
                ItemInput(
                    id=f"{n:02}",
                    vector=np.array([1, n, 0, 0], np.float32),
                    metadata={
                        "ts": FIRST + n,
                        "copy": FIRST + n,
                        "day": f"2026-11-{n // 3 + 1:02}",
                        "tags": ["a", "m"],
                    },
                )
                for n in range(30)
            ],
        )
        yield connected


def listed(client: Client, condition: Filter) -> list[int]:
    return [int(item.id) for item in client.list_items("times", filter=condition)]


# --- Ranges ---


@pytest.mark.parametrize("key", ["ts", "copy"])
def test_bounds_beyond_what_a_double_holds_are_exact_on_the_whole_way(client: Client, key: str) -> None:
    middle = FIRST + 10
    for condition, expected in (
        (Range(key, gt=middle), range(11, 30)),
        (Range(key, gte=middle), range(10, 30)),
        (Range(key, lt=middle), range(10)),
        (Range(key, lte=middle, gt=FIRST), range(1, 11)),
        (And((Range(key, gte=middle), Range(key, lte=middle))), [10]),
        (Eq(key, middle), [10]),
    ):
        assert listed(client, condition) == list(expected)
        assert client.count_items("times", condition) == len(expected)
        hits = client.search("times", vector=[1, 0, 0, 0], k=100, filter=condition)
        assert sorted(int(hit.id) for hit in hits) == list(expected)


def test_texts_lie_within_bounds_by_their_bytes_and_lists_by_any_element(client: Client) -> None:
    assert listed(client, Range("day", gte="2026-11-04", lt="2026-11-06")) == [9, 10, 11, 12, 13, 14]
    assert listed(client, Range("tags", gt="b")) == list(range(30))
    assert listed(client, Range("tags", gt="a", lt="m")) == []
    assert listed(client, Range("ts", gt="")) == []


def test_an_integer_that_the_wire_cannot_hold_is_refused_by_its_bound(client: Client) -> None:
    for bound in (2**63, 10**400, -(2**63) - 1):
        with pytest.raises(InvalidInput, match="the bound lt of the range on 'ts'"):
            client.count_items("times", Range("ts", lt=bound))


# --- Count ---


def test_items_are_counted_by_name_and_alias_with_and_without_a_filter(client: Client) -> None:
    assert client.count_items("times") == client.count_items("live") == 30
    assert client.count_items("live", Eq("day", "2026-11-01")) == 3
    assert client.count_items("times", Exists("none")) == 0
    with pytest.raises(CollectionNotFound, match="gone"):
        client.count_items("gone")


# --- Delete ---


def test_items_are_deleted_by_filter_and_counted(client: Client) -> None:
    assert client.delete_items("live", filter=Range("ts", lt=FIRST + 10)) == 10
    assert client.delete_items("live", filter=Range("ts", lt=FIRST + 10)) == 0
    assert client.count_items("times") == 20
    assert client.delete_items("times", ["10", "11", "00"]) == 2


@pytest.mark.parametrize("condition", [And(()), Or(()), Not(Or(())), And((Or((And(()),)),))], ids=repr)
def test_a_filter_without_a_condition_deletes_nothing(address: str, client: Client, condition: Filter) -> None:
    with pytest.raises(InvalidInput, match="the filter has no condition"):
        client.delete_items("times", filter=condition)
    nothing = common_pb2.Filter(all_of=common_pb2.FilterList())
    with grpc.insecure_channel(address) as channel:
        stub = CollectionServiceStub(channel)
        for request in (
            pb.DeleteItemsRequest(collection="times", filter=nothing),
            pb.DeleteItemsRequest(collection="times", filter=common_pb2.Filter()),
            pb.DeleteItemsRequest(collection="times", ids=["00"], filter=nothing),
        ):
            with pytest.raises(grpc.RpcError) as raised:
                stub.DeleteItems(request)
            assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert client.count_items("times") == 30


@pytest.mark.parametrize("arguments", [{}, {"ids": ["00"], "filter": Exists("ts")}], ids=["neither", "both"])
def test_a_deletion_names_either_ids_or_a_filter(client: Client, arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="ids"):
        client.delete_items("times", **arguments)


def test_a_server_that_does_not_know_filters_here_is_not_believed() -> None:
    with serving_fake() as fake, Client(fake.target) as client:
        fake.on("DeleteItems", lambda _: pb.DeleteItemsResponse(deleted_count=0))
        with pytest.raises(FailedPrecondition, match="cannot delete by filter, and nothing was deleted"):
            client.delete_items("times", filter=Exists("ts"))


def test_a_deletion_whose_caller_has_gone_ends_after_its_transaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedserve.store.local.collection.collection._BATCH", 5)
    taken, ended = threading.Semaphore(0), threading.Event()
    real = LocalStore.delete_matching

    def slowly(self: LocalStore, *arguments: Any, **more: Any) -> Iterator[int]:
        counts = real(self, *arguments, **more)
        try:
            yield next(counts)
            yield next(counts)
            taken.acquire()  # a transaction that takes a while
            yield from counts
        finally:
            ended.set()

    monkeypatch.setattr(LocalStore, "delete_matching", slowly)
    with serving(FakeEncoder(), tmp_path / "data") as address, Client(address, timeout_s=1) as client:
        client.create_collection("times", external=True, dimension=4)
        client.add("times", [ItemInput(id=str(n), vector=[1, n, 0, 0], metadata={"n": n}) for n in range(20)])
        with pytest.raises(DeadlineExceeded):
            client.delete_items("times", filter=Exists("n"))
        taken.release()
        wait_until(ended.is_set)
        # One transaction before the caller went, and at most the one that was under way.
        assert client.count_items("times") in (10, 15)
        monkeypatch.setattr(LocalStore, "delete_matching", real)
        assert client.delete_items("times", filter=Exists("n")) in (10, 15)


def test_a_server_that_stops_ends_the_deletion_and_says_so() -> None:
    class Service(ItemChanges):
        def __init__(self, state: ServerState) -> None:
            self._state = state

    async def scenario() -> None:
        state, begun = ServerState(), asyncio.Event()

        async def deletion() -> int:
            begun.set()
            await asyncio.Event().wait()
            return 0

        call = asyncio.create_task(Service(state)._until_drained(deletion()))
        await begun.wait()
        await state.drain(0)
        with pytest.raises(Unavailable, match="shutting down"):
            await call
        assert state.readers == set()

    asyncio.run(scenario())


# --- Metadata ---


def test_metadata_changes_without_a_vector(client: Client) -> None:
    [result] = client.update_metadata("live", MetadataChange("03", {"day": "later", "sold": True}, remove=["tags"]))
    assert (result.id, result.error) == ("03", None)
    [item] = client.get_items("times", ["03"])
    assert item is not None
    assert item.metadata == {"ts": FIRST + 3, "copy": FIRST + 3, "day": "later", "sold": True}
    assert client.count_items("times", Eq("sold", True)) == 1
    client.update_metadata("times", [MetadataChange("03", {"a": 1}, replace=True), MetadataChange("04", {"a": 2})])
    assert client.count_items("times", Exists("a")) == 2


def test_an_item_that_cannot_be_changed_fails_alone_and_is_named(client: Client) -> None:
    changes = [
        MetadataChange("01", {"ok": True}),
        MetadataChange("gone", {"ok": True}),
        MetadataChange("02", {"text": "x" * (16 << 10)}),
        MetadataChange("03", {"it's": 1}),
        MetadataChange("04", {"a": 1}, remove=["a"]),
        MetadataChange("05", {"a": 1}, remove=["b"], replace=True),
        MetadataChange("06", {"ok": True}),
    ]
    results = client.update_metadata("times", changes, errors="keep")
    assert [result.id for result in results] == [change.id for change in changes]
    assert [type(result.error) for result in results] == [
        *(type(None), ItemNotFound, LimitExceeded, InvalidInput, InvalidInput, InvalidInput, type(None)),
    ]
    assert client.count_items("times", Exists("ok")) == 2
    with pytest.raises(ItemsFailed, match=r"1 of 2 items were not changed: item 'gone'"):
        client.update_metadata("times", [MetadataChange("gone", {"a": 1}), MetadataChange("07", {"a": 1})])
    assert client.count_items("times", Exists("a")) == 1


def test_the_limit_on_metadata_holds_for_what_a_change_leaves(client: Client) -> None:
    half = "x" * (9 << 10)
    client.update_metadata("times", MetadataChange("01", {"one": half}))
    with pytest.raises(ItemsFailed, match=r"item '01': .* bytes of metadata .*; max_metadata_bytes is 16384"):
        client.update_metadata("times", MetadataChange("01", {"two": half}))
    client.update_metadata("times", MetadataChange("01", {"two": half}, remove=["one"]))


def test_many_changes_are_cut_into_calls_within_the_limits(tmp_path: Path) -> None:
    limits = Limits(max_items=7, max_message_bytes=64 << 10)
    with serving(FakeEncoder(), tmp_path / "data", limits=limits) as address, Client(address) as client:
        client.create_collection("times", external=True, dimension=4)
        client.add("times", [ItemInput(id=str(n), vector=[1, n, 0, 0]) for n in range(40)])
        changes = (MetadataChange(str(n), {"n": n, "text": "x" * 15_000}) for n in range(40))
        results = client.update_metadata("times", changes)
        assert [(result.id, result.error) for result in results] == [(str(n), None) for n in range(40)]
        assert client.count_items("times", Exists("n")) == 40
        with grpc.insecure_channel(address) as channel:
            items = [pb.MetadataChange(id=str(n)) for n in range(8)]
            with pytest.raises(grpc.RpcError, match="8 changes in one call; max_items is 7"):
                CollectionServiceStub(channel).UpdateMetadata(pb.UpdateMetadataRequest(collection="times", items=items))
