"""Every limit is enforced, published and named in its error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedserve import Client, EmbedserveError
from embedserve.client import ItemInput, Query
from embedserve.errors import ImageTooLarge, InvalidInput, LimitExceeded
from embedserve.types import And, Eq, Exists, In, Limits, Not
from embedserve.v1 import collection_service_pb2 as collection_pb
from embedserve.v1 import search_service_pb2 as search_pb
from tests.fakes import DIMENSION, FakeEncoder, picture
from tests.running import serving

OURS = FakeEncoder().fingerprint


def raised(results: list[Any]) -> None:
    """Raise the first error among the results."""
    for result in results:
        error = getattr(result, "error", result)
        if isinstance(error, EmbedserveError):
            raise error


def nested(depth: int) -> Not | Exists:
    condition: Not | Exists = Exists("a")
    for _ in range(depth - 1):
        condition = Not(condition)
    return condition


# For each limit, a small value and a call that exceeds it. Calls that the client would split are sent by hand.
EXCEEDING: dict[str, tuple[int, Callable[[Client], object]]] = {
    "max_images": (
        2,
        lambda c: c._calls.stubs.embedding.Embed(_embed([picture(n) for n in range(3)]), timeout=20),
    ),
    "max_items": (
        3,
        lambda c: c._calls.stubs.collections.GetItems(
            collection_pb.GetItemsRequest(collection="photos", ids=["a", "b", "c", "d"]), timeout=20
        ),
    ),
    "max_queries": (
        1,
        lambda c: c._calls.stubs.search.Search(
            search_pb.SearchRequest(collection="photos", queries=[search_pb.SearchQuery(item_id="a")] * 2), timeout=20
        ),
    ),
    "max_image_pixels": (1000, lambda c: c.embed([picture(1, size=(40, 40))])),
    "max_image_side_px": (39, lambda c: c.embed([picture(1, size=(40, 4))])),
    "max_k": (5, lambda c: c.search("photos", id="a", k=6)),
    "max_page_size": (5, lambda c: list(c.list_items("photos", page_size=6))),
    "max_id_bytes": (4, lambda c: raised(c.add("photos", [ItemInput(id="éééé", image=picture(1))], errors="keep"))),
    "max_metadata_bytes": (
        20,
        lambda c: raised(
            c.add("photos", [ItemInput(id="a", image=picture(1), metadata={"key": "x" * 20})], errors="keep")
        ),
    ),
    "max_filter_depth": (3, lambda c: c.search("photos", id="a", filter=nested(4))),
    "max_filter_nodes": (3, lambda c: c.search("photos", id="a", filter=In("a", (1, 2, 3)))),
    "max_queue_images": (
        2,
        lambda c: c._calls.stubs.embedding.Embed(_embed([picture(n) for n in range(3)]), timeout=20),
    ),
    "max_queue_bytes": (
        300,
        lambda c: c._calls.stubs.embedding.Embed(_embed([picture(n) for n in range(5)]), timeout=20),
    ),
}


def _embed(images: list[bytes]) -> Any:
    from embedserve.v1 import embedding_service_pb2

    return embedding_service_pb2.EmbedRequest(images=images)


@pytest.mark.parametrize("name", sorted(EXCEEDING))
def test_an_exceeded_limit_is_named_with_its_value(name: str, tmp_path: Path) -> None:
    import grpc

    value, exceed = EXCEEDING[name]
    with serving(FakeEncoder(), tmp_path, limits=Limits(**{name: value})) as address, Client(address) as client:
        client.create_collection("photos")
        assert getattr(client.server_info().limits, name) == value
        with pytest.raises((EmbedserveError, grpc.RpcError)) as refused:
            exceed(client)
    error: Any = refused.value
    if isinstance(error, EmbedserveError):
        assert isinstance(error, (LimitExceeded, ImageTooLarge))
        text = error.message
    else:
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        text = error.details()
    assert f"{name} is {value}" in text


def test_image_bytes_are_limited_on_both_sides(tmp_path: Path) -> None:
    with serving(FakeEncoder(), limits=Limits(max_image_bytes=50)) as address, Client(address) as client:
        with pytest.raises(ImageTooLarge, match="max_image_bytes is 50"):
            client.embed([picture(1)])
        response = client._calls.stubs.embedding.Embed(_embed([picture(1)]), timeout=20)
    assert "max_image_bytes is 50" in response.results[0].error.message


def test_every_limit_is_under_test() -> None:
    elsewhere = {"max_message_bytes", "max_image_bytes", "max_calls", "max_connection_calls", "max_connections"}
    elsewhere |= {"max_answer_bytes"}
    assert {limit.name for limit in fields(Limits)} == {*EXCEEDING, *elsewhere}


@pytest.mark.parametrize("value", [0, -1, 2**32])
def test_a_limit_out_of_range_is_refused(value: int) -> None:
    with pytest.raises(InvalidInput, match="max_k is"):
        Limits(max_k=value)


@pytest.mark.parametrize(("item_id", "message"), [("", r"\bids?\b.* is empty"), ("x" * 257, "item id")])
def test_an_invalid_id_is_refused_by_every_call(item_id: str, message: str, tmp_path: Path) -> None:
    with serving(FakeEncoder(), tmp_path) as address, Client(address) as client:
        client.create_collection("photos")
        for read in (
            lambda: client.get_items("photos", [item_id]),
            lambda: client.delete_items("photos", [item_id]),
            lambda: client.search_many("photos", [Query(id=item_id)]),
        ):
            with pytest.raises(InvalidInput, match=message):
                read()


def test_a_response_that_would_not_fit_a_message_is_refused_and_says_what_to_do(tmp_path: Path) -> None:
    limits = Limits(max_message_bytes=60_000, max_image_bytes=60_000)
    with serving(FakeEncoder(), tmp_path, limits=limits) as address, Client(address) as client:
        client.create_collection("photos", keep="originals")
        vectors = np.random.default_rng(0).standard_normal((900, DIMENSION))
        items = [ItemInput(id=str(n), vector=vector) for n, vector in enumerate(vectors)]
        raised(client.add("photos", items, encoder_fingerprint=OURS))
        assert len(client.search("photos", id="1", k=500, include_vectors=True)) == 500
        with pytest.raises(LimitExceeded, match="max_message_bytes is 60000"):
            client.search("photos", id="1", k=900, include_vectors=True)
        with pytest.raises(LimitExceeded, match="max_message_bytes is 60000"):
            client.search("photos", id="1", k=1000, include_vectors=True, filter=And((Not(Eq("x", 1)),)))
        picture_bytes = picture(1, format="BMP", size=(100, 100))
        raised(client.add("photos", [ItemInput(id=f"p{n}", image=picture_bytes) for n in range(3)]))
        request = collection_pb.GetItemsRequest(collection="photos", ids=["p0", "p1", "p2"], include_media=True)
        import grpc

        with pytest.raises(grpc.RpcError) as refused:
            client._calls.stubs.collections.GetItems(request, timeout=20)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert len(client.get_items("photos", ["p0", "p1", "p2"], include_media=True)) == 3
