"""Filters, items and queries refuse what they cannot mean; what stands for a value is taken."""

from __future__ import annotations

import io
import re
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from embedserve import And, Eq, Exists, In, ItemInput, MetadataChange, Not, Or, Query, Range, wire
from embedserve.errors import EmbedserveError, InvalidInput, ItemsFailed
from embedserve.v1 import collection_service_pb2 as collection_pb
from tests.client.fake_server import Connect, FakeServer
from tests.client.test_client_methods import finding
from tests.client.wrong_values import (
    NAN,
    NO_BOUND,
    NO_FILTER,
    NO_ID,
    NO_IMAGE,
    NO_LIST,
    NO_METADATA,
    NO_VALUE,
    NO_VECTOR,
)

# --- Filters ---

FILTERS: dict[type, dict[str, Any]] = {
    And: {"filters": [Eq("a", 1)]},
    Or: {"filters": [Eq("a", 1)]},
    Not: {"filter": Eq("a", 1)},
    Eq: {"key": "a", "value": 1},
    In: {"key": "a", "values": [1]},
    Range: {"key": "a", "gt": 1},
    Exists: {"key": "a"},
}
WRONG_IN_FILTERS: dict[str, list[Any]] = {
    "filters": [*NO_LIST, Eq("a", 1), [{"a": 1}], ["a"], [Eq("a", 1), True], (Eq,), [None], [[Eq("a", 1)]]],
    "filter": [*NO_FILTER, None],
    "key": [None, 5, b"a", ["a"], True, str],
    "value": NO_VALUE,
    "values": [*NO_LIST, [None], ["a", [1]], [object()]],
    **dict.fromkeys(("gt", "gte", "lt", "lte"), NO_BOUND),
}


@pytest.mark.parametrize(
    ("kind", "parameter"), [(kind, one.name) for kind in FILTERS for one in fields(kind)], ids=lambda of: str(of)
)
def test_a_filter_refuses_what_it_cannot_mean_when_it_is_made(kind: Any, parameter: str) -> None:
    for value in WRONG_IN_FILTERS[parameter]:
        with pytest.raises(InvalidInput) as caught:
            kind(**{**FILTERS[kind], parameter: value})
        # A wrong element is named by its position, and a wrong value by its key.
        assert re.search(rf"\b({parameter}|{parameter.removesuffix('s')})\b", caught.value.message)


@pytest.mark.parametrize("number", [NAN, 2**63, 10**400])
@pytest.mark.parametrize("make", [lambda number: Eq("n", number), lambda number: Not(Or([In("n", [1, number])]))])
def test_a_number_that_no_item_can_have_is_refused_and_not_sent(
    connect: Connect, server: FakeServer, make: Any, number: float
) -> None:
    client = connect(server.target)
    with pytest.raises(InvalidInput, match=r"value of (Eq|In) on 'n' is"):
        client.search("photos", id="a", filter=make(number))
    with pytest.raises(InvalidInput, match=r"value of (Eq|In) on 'n' is"):
        client.list_items("photos", filter=make(number))
    assert server.requests == []


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({}, "the range on 'ts' has no bound"),
        ({"lt": 10**400}, "the bound lt of the range on 'ts' is an integer of 1329 bits, which does not fit 64 bits"),
        ({"gt": 2**63}, "the bound gt of the range on 'ts' is 9223372036854775808, which does not fit 64 bits"),
        ({"lte": NAN}, "the bound lte of the range on 'ts' is nan, which is not a number"),
    ],
)
def test_a_range_that_no_store_could_compare_is_refused_and_not_sent(
    connect: Connect, server: FakeServer, bounds: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        connect(server.target).search("photos", id="a", filter=And([Range("ts", **bounds)]))
    assert server.requests == []


WRONG_IN_ITEMS: dict[str, list[Any]] = {
    "id": [id for id in NO_ID if not (isinstance(id, str) and not id)] + [None],  # an empty one is made by the client
    "image": NO_IMAGE,
    "vector": NO_VECTOR,
    "metadata": NO_METADATA,
}


@pytest.mark.parametrize("parameter", [one.name for one in fields(ItemInput)])
def test_an_item_with_what_it_cannot_mean_fails_alone(connect: Connect, server: FakeServer, parameter: str) -> None:
    wrong = WRONG_IN_ITEMS[parameter]
    for values in [wrong[: len(wrong) // 2], wrong[len(wrong) // 2 :]]:
        source = {} if parameter in ("image", "vector") else {"image": b"1"}
        bad = [ItemInput(**{"id": str(n), **source, parameter: value}) for n, value in enumerate(values)]
        items = [ItemInput(id="first", image=b"1"), *bad, ItemInput(id="last", image=b"1")]
        first, *failed, last = connect(server.target).add("photos", items, errors="keep")
        assert (first.error, last.error) == (None, None)
        for result, value in zip(failed, values, strict=True):
            assert isinstance(result.error, InvalidInput), value
            assert re.search(rf"\b{parameter}\b", result.error.message), (value, result.error.message)
    sent = [item.id for request in server.asked("Upsert") for item in request.items]
    assert sent == ["first", "last"] * 2


@pytest.mark.parametrize("parameter", [one.name for one in fields(Query)])
def test_a_query_with_what_it_cannot_mean_fails_alone(connect: Connect, server: FakeServer, parameter: str) -> None:
    server.on("Search", finding)
    wrong = [Query(**{parameter: value}) for value in WRONG_IN_ITEMS[parameter] if value is not None]
    *failed, last = connect(server.target).search_many("photos", [*wrong, Query(id="b")], errors="keep")
    for error in failed:
        assert isinstance(error, InvalidInput)
        assert re.search(rf"\b{parameter}\b", error.message), error.message
    assert last[0].id == "like b"
    assert sum(len(request.queries) for request in server.asked("Search")) == 1


WRONG_IN_CHANGES: dict[str, list[Any]] = {
    "id": [*NO_ID, None],
    "set": [*NO_METADATA, None],
    "remove": ["a", b"a", None, 5, True, {"a"}, {"a": 1}, [5], [None], [b"a"], iter(["a"]), np.array(["a"]), list],
    "replace": ["no", "", None, 1, 0, 0.0, [], bool],
}


def _changed(request: Any) -> Any:
    return collection_pb.UpdateMetadataResponse(
        results=[collection_pb.UpdateMetadataResult(id=change.id) for change in request.items]
    )


@pytest.mark.parametrize("parameter", [one.name for one in fields(MetadataChange)])
def test_a_change_with_what_it_cannot_mean_fails_alone(connect: Connect, server: FakeServer, parameter: str) -> None:
    server.on("UpdateMetadata", _changed)
    bad = [MetadataChange(**{"id": "bad", parameter: value}) for value in WRONG_IN_CHANGES[parameter]]
    changes = [MetadataChange("first", {"n": 1}), *bad, MetadataChange("last", remove=["n"])]
    first, *failed, last = connect(server.target).update_metadata("photos", changes, errors="keep")
    assert (first.error, last.error) == (None, None)
    for result, change in zip(failed, bad, strict=True):
        assert isinstance(result.error, InvalidInput), change
        assert re.search(rf"\b({parameter}|metadata)\b", result.error.message), (change, result.error.message)
    assert [change.id for request in server.asked("UpdateMetadata") for change in request.items] == ["first", "last"]


def test_a_change_takes_the_values_that_an_item_takes(connect: Connect, server: FakeServer) -> None:
    server.on("UpdateMetadata", _changed)
    when = datetime(2026, 11, 24, 9, 30, tzinfo=UTC)
    changes = [MetadataChange(7, {"n": np.int64(3), "when": when}), MetadataChange(UUID(int=1)), MetadataChange("a")]
    results = connect(server.target).update_metadata("photos", changes)
    assert [result.id for result in results] == ["7", str(UUID(int=1)), "a"]
    sent = wire.change_from_proto(server.asked("UpdateMetadata")[0].items[0])
    assert sent.set == {"n": 3, "when": "2026-11-24T09:30:00.000000Z"}


@pytest.mark.parametrize("wrong", [None, {"id": "a"}, b"1", "a.jpg", 5, ItemInput, Query(id="a")])
def test_what_is_no_item_fails_alone(connect: Connect, server: FakeServer, wrong: Any) -> None:
    first, second = connect(server.target).add("photos", [wrong, ItemInput(id="b", image=b"1")], errors="keep")
    assert isinstance(first.error, InvalidInput)
    assert "one of items is " in first.error.message
    assert second.error is None


@pytest.mark.parametrize("wrong", [None, {"id": "a"}, b"1", "a.jpg", 5, Query, ItemInput(id="a", image=b"1")])
def test_what_is_no_query_fails_alone(connect: Connect, server: FakeServer, wrong: Any) -> None:
    server.on("Search", finding)
    first, second = connect(server.target).search_many("photos", [wrong, Query(id="b")], errors="keep")
    assert isinstance(first, InvalidInput)
    assert "one of queries is " in first.message
    assert second[0].id == "like b"


def test_what_is_no_image_fails_alone(connect: Connect, server: FakeServer) -> None:
    embeddings = connect(server.target).embed([b"1", *NO_IMAGE, None, b"2"], errors="keep")
    assert sorted(embeddings.errors) == list(range(1, len(NO_IMAGE) + 2))
    assert all(isinstance(error, InvalidInput) for error in embeddings.errors.values())


# --- One rule for errors ---


def test_an_item_that_fails_is_raised_once_all_others_are_written(connect: Connect, server: FakeServer) -> None:
    wrong: Any = {5: 1}
    items = [ItemInput(id=str(n), image=b"1", metadata=wrong if n in (3, 20) else {}) for n in range(40)]
    with pytest.raises(ItemsFailed) as caught:
        connect(server.target).add("photos", items)
    error = caught.value
    assert error.message.startswith("2 of 40 items were not written: item '3': metadata key 5 (int) is no text")
    assert [result.id for result in error.failures] == ["3", "20"]
    assert [result.id for result in error.results] == [str(n) for n in range(40)]
    assert isinstance(error.__cause__, InvalidInput)
    sent = [item.id for request in server.asked("UpsertStream") for item in request.items]
    assert sent == [str(n) for n in range(40) if n not in (3, 20)]


def test_the_error_of_a_query_is_raised_with_its_position(connect: Connect, server: FakeServer) -> None:
    server.on("Search", finding)
    with pytest.raises(EmbedserveError, match="query 2 of 3: collection 'photos' has no item 'gone'"):
        connect(server.target).search_many("photos", [Query(id="a"), Query(id="gone"), Query(id="b")])


# --- What is taken ---


def test_numbers_of_numpy_are_taken_as_numbers(connect: Connect, server: FakeServer) -> None:
    server.on("Search", finding)
    client = connect(server.target, timeout_s=np.float32(30))
    client.search("photos", id=np.int64(7), k=np.int64(3), ef=np.uint8(0), min_score=np.float32(0.5), exact=np.True_)
    [request] = server.asked("Search")
    assert (request.queries[0].item_id, request.k, request.min_score, request.exact) == ("7", 3, 0.5, True)


def test_ids_from_a_generator_are_taken_once_and_in_order(connect: Connect, server: FakeServer) -> None:
    server.on("DeleteItems", lambda request: type(request).__module__ and _deleted(len(request.ids)))
    client = connect(server.target)
    assert client.delete_items("photos", (n for n in range(10))) == 10
    assert client.delete_items("photos", np.arange(3)) == 3
    assert client.delete_items("photos", {"a": 1}.keys()) == 1
    assert [list(request.ids) for request in server.asked("DeleteItems")] == [
        [str(n) for n in range(10)],
        ["0", "1", "2"],
        ["a"],
    ]


def _deleted(count: int) -> Any:
    from embedserve.v1 import collection_service_pb2 as collection_pb

    return collection_pb.DeleteItemsResponse(deleted_count=count)


def test_the_lines_of_an_open_file_are_not_ids(connect: Connect, server: FakeServer) -> None:
    for call in (connect(server.target).delete_items, connect(server.target).get_items):
        with pytest.raises(InvalidInput, match="ids is a StringIO, an open file") as caught:
            call("photos", io.StringIO("a\nb\n"))
        assert "splitlines()" in caught.value.hint
    assert server.requests == []
