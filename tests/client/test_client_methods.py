"""Search, collections and server: what each method sends and returns, and that both classes are the same."""

from __future__ import annotations

import inspect
import json
from typing import Any

import numpy as np
import pytest

from embedserve import AsyncClient, Client, CollectionInfo, EmbedserveError, EncoderRef, Eq, Hit, Keep, Query, wire
from embedserve.errors import InvalidInput, ItemNotFound
from embedserve.v1 import collection_service_pb2 as collection_pb
from embedserve.v1 import embedding_service_pb2 as embedding_pb
from embedserve.v1 import search_service_pb2 as search_pb
from tests.client.fake_server import FINGERPRINT, Connect, FakeServer, status

INFO = CollectionInfo(
    name="photos",
    fingerprint=FINGERPRINT,
    encoder_name="fake",
    dimension=4,
    keep=Keep.ORIGINALS,
    created_unix_s=1.5e9,
    items=3,
    aliases=("latest",),
    index="exact",
    disk_bytes=4096,
)


def finding(request: Any) -> Any:
    """A Search script: the id of each hit names the item, or the kind, of its query."""
    response = search_pb.SearchResponse()
    for position, query in enumerate(request.queries, start=1):
        if query.item_id == "gone":
            error: EmbedserveError = ItemNotFound("collection 'photos' has no item 'gone'")
            if len(request.queries) > 1:
                error = error.at(f"query {position} of {len(request.queries)}")
            response.results.add(error=status(error))
            continue
        vector = np.ones(4, np.float32) if request.include_vectors else None
        hit = Hit(
            id=f"like {query.item_id or query.WhichOneof('query')}", score=0.9, metadata={"year": 1999}, vector=vector
        )
        response.results.add(hits=wire.hits_to_proto([hit], request.vector_encoding))
    return response


# --- Search ---


def test_a_search_sends_its_options_and_gives_hits(connect: Connect, server: FakeServer) -> None:
    server.on("Search", finding)
    hits = connect(server.target).search(
        "photos",
        id="a",
        k=3,
        min_score=0.25,
        filter=Eq("label", "cat"),
        group_by="shop",
        exact=True,
        include_metadata=False,
        include_vectors=True,
        encoder_fingerprint=FINGERPRINT,
    )
    [hit] = hits
    assert (hit.id, hit.score, hit.metadata) == ("like a", 0.9, {"year": 1999})
    assert hit.vector.tolist() == [1, 1, 1, 1]
    [request] = server.asked("Search")
    assert request == search_pb.SearchRequest(
        collection="photos",
        queries=[search_pb.SearchQuery(item_id="a")],
        k=3,
        min_score=0.25,
        filter=wire.filter_to_proto(Eq("label", "cat")),
        group_by="shop",
        exact=True,
        include_metadata=False,
        include_vectors=True,
        vector_encoding=wire.PACKED_F32,
        encoder_fingerprint=FINGERPRINT,
    )


def test_a_search_without_options_asks_for_ten_hits_with_metadata(connect: Connect, server: FakeServer) -> None:
    server.on("Search", finding)
    connect(server.target).search("photos", image=b"123")
    [request] = server.asked("Search")
    assert (request.k, request.include_metadata, request.include_vectors, request.exact) == (10, True, False, False)
    assert not request.HasField("min_score")
    assert not request.HasField("filter")
    assert request.queries[0].image == b"123"


def test_a_query_vector_is_sent_in_bytes(connect: Connect, server: FakeServer) -> None:
    server.on("Search", finding)
    connect(server.target).search("photos", vector=np.array([1, 2, 3, 4], dtype=np.float64))
    [request] = server.asked("Search")
    assert np.frombuffer(request.queries[0].vector.packed_f32, "<f4").tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("query", "given"),
    [({}, "none of them"), ({"image": b"1", "id": "a"}, "image, id"), ({"vector": [1.0], "id": "a"}, "vector, id")],
)
def test_a_query_is_exactly_one_of_image_vector_and_id(
    connect: Connect, server: FakeServer, query: dict[str, Any], given: str
) -> None:
    with pytest.raises(InvalidInput, match=f"given: {given}"):
        connect(server.target).search("photos", **query)


def test_the_error_of_a_single_query_is_raised(connect: Connect, server: FakeServer) -> None:
    server.on("Search", finding)
    with pytest.raises(ItemNotFound) as caught:
        connect(server.target).search("photos", id="gone")
    assert caught.value.message == "collection 'photos' has no item 'gone'"


@pytest.mark.parametrize("k", [0, -1])
def test_k_is_at_least_one(connect: Connect, server: FakeServer, k: int) -> None:
    with pytest.raises(InvalidInput, match=f"k is {k}; it is at least 1"):
        connect(server.target).search("photos", id="a", k=k)


def test_an_option_that_the_wire_cannot_hold_is_invalid_input(connect: Connect, server: FakeServer) -> None:
    with pytest.raises(InvalidInput, match="k is 1099511627776; it is at most 4294967295"):
        connect(server.target).search("photos", id="a", k=2**40)
    with pytest.raises(InvalidInput, match="value of Eq on 'n' is 1180591620717411303424, which does not fit 64 bits"):
        connect(server.target).search("photos", id="a", filter=Eq("n", 2**70))


def test_many_queries_are_cut_into_calls_and_answered_in_order(connect: Connect, small_server: FakeServer) -> None:
    small_server.on("Search", finding)
    queries = [Query(id="a"), Query(image=b"1"), Query(id="gone"), Query(vector=[1, 2, 3, 4]), Query(id="e")]
    results = connect(small_server.target).search_many("photos", queries, k=1, errors="keep")
    named = [result.message if isinstance(result, EmbedserveError) else result[0].id for result in results]
    assert named == ["like a", "like image", "collection 'photos' has no item 'gone'", "like vector", "like e"]
    assert sorted(len(request.queries) for request in small_server.asked("Search")) == [1, 2, 2]


def test_a_query_that_cannot_be_sent_fails_alone(connect: Connect, server: FakeServer) -> None:
    server.on("Search", finding)
    results = connect(server.target).search_many("photos", [Query(image="/nowhere.jpg"), Query(id="b")], errors="keep")
    assert isinstance(results[0], EmbedserveError)
    assert results[0].message == "/nowhere.jpg cannot be read: No such file or directory"
    assert results[1][0].id == "like b"


def test_no_queries_give_no_answers(connect: Connect, server: FakeServer) -> None:
    assert connect(server.target).search_many("photos", []) == []
    assert server.asked("Search") == []


# --- Collections ---


def test_a_collection_is_made_with_the_given_options(connect: Connect, server: FakeServer) -> None:
    server.on(
        "CreateCollection",
        lambda _: collection_pb.CreateCollectionResponse(collection=wire.collection_to_proto(INFO)),
    )
    client = connect(server.target)
    assert client.create_collection("photos", keep="originals") == INFO
    client.create_collection("others", external=True, dimension=8)
    client.create_collection(
        "theirs",
        dimension=8,
        index="hnsw:m=16",
        target_recall=0.9,
        filter_keys=["label", "year"],
        encoder_fingerprint="cd" * 32,
        encoder_name="another",
    )
    assert server.asked("CreateCollection") == [
        collection_pb.CreateCollectionRequest(
            name="photos", keep_media=collection_pb.KEEP_MEDIA_ORIGINALS, index="auto"
        ),
        collection_pb.CreateCollectionRequest(
            name="others", keep_media=collection_pb.KEEP_MEDIA_THUMBNAILS, external=True, dimension=8, index="auto"
        ),
        collection_pb.CreateCollectionRequest(
            name="theirs",
            keep_media=collection_pb.KEEP_MEDIA_THUMBNAILS,
            dimension=8,
            index="hnsw:m=16",
            target_recall=0.9,
            filter_keys=["label", "year"],
            encoder_fingerprint="cd" * 32,
            encoder_name="another",
        ),
    ]


def test_an_unknown_value_of_keep_is_refused(connect: Connect, server: FakeServer) -> None:
    with pytest.raises(InvalidInput, match="keep is 'everything', not one of none, thumbnails, originals"):
        connect(server.target).create_collection("photos", keep="everything")


def test_collections_are_read_listed_removed_and_aliased(connect: Connect, server: FakeServer) -> None:
    message = wire.collection_to_proto(INFO)
    server.on("GetCollection", lambda _: collection_pb.GetCollectionResponse(collection=message))
    server.on("ListCollections", lambda _: collection_pb.ListCollectionsResponse(collections=[message]))
    server.on("DeleteCollection", lambda _: collection_pb.DeleteCollectionResponse())
    server.on("SetAlias", lambda _: collection_pb.SetAliasResponse())
    client = connect(server.target)
    assert client.get_collection("latest") == INFO
    assert client.list_collections() == [INFO]
    assert client.delete_collection("photos") is None
    assert client.set_alias("latest", "photos") is None
    assert [name for name, _ in server.requests] == ["GetCollection", "ListCollections", "DeleteCollection", "SetAlias"]
    assert server.asked("GetCollection")[0].name == "latest"
    assert server.asked("DeleteCollection")[0].name == "photos"
    assert server.asked("SetAlias") == [collection_pb.SetAliasRequest(alias="latest", collection="photos")]


def test_a_name_that_is_not_valid_utf_8_is_invalid_input(connect: Connect, server: FakeServer) -> None:
    with pytest.raises(InvalidInput):
        connect(server.target).get_collection("\udc80")


# --- Server ---


def test_server_info_describes_the_server(connect: Connect, server: FakeServer) -> None:
    info = connect(server.target).server_info()
    assert (info.version, info.provider, info.images_in_flight, info.has_collections) == (
        "1.2.3",
        "FakeProvider",
        7,
        True,
    )
    assert info.limits == server.limits
    assert info.encoder == EncoderRef("fake", FINGERPRINT, 4)


def test_encoder_describes_the_encoder(connect: Connect, server: FakeServer) -> None:
    encoder = embedding_pb.Encoder(
        name="fake",
        fingerprint=FINGERPRINT,
        dimension=4,
        size_px=32,
        channels=3,
        preprocess=embedding_pb.Preprocess(size_px=32, resize_px=36, filter="bicubic"),
        method="simclr",
        backbone="resnet18",
        precision="fp32",
        metadata_json=json.dumps({"licence": "MIT"}),
    )
    server.on("GetEncoder", lambda _: embedding_pb.GetEncoderResponse(encoder=encoder))
    info = connect(server.target).encoder()
    assert (info.name, info.fingerprint, info.dimension, info.channels) == ("fake", FINGERPRINT, 4, 3)
    assert (info.size_px, info.resize_px, info.filter) == (32, 36, "bicubic")
    assert (info.method, info.backbone, info.precision) == ("simclr", "resnet18", "fp32")
    assert info.metadata == {"licence": "MIT"}


# --- The two classes ---


def public(kind: type) -> dict[str, Any]:
    return {name: getattr(kind, name) for name in dir(kind) if not name.startswith("_")}


def test_both_classes_have_the_same_methods() -> None:
    assert list(public(Client)) == list(public(AsyncClient))


@pytest.mark.parametrize("name", ["__init__", *public(Client)])
def test_both_classes_take_and_return_the_same(name: str) -> None:
    ours, theirs = inspect.signature(getattr(Client, name)), inspect.signature(getattr(AsyncClient, name))
    assert ours.parameters == theirs.parameters
    assert ours.return_annotation.replace("Iterator[", "AsyncIterator[") == theirs.return_annotation


@pytest.mark.parametrize("name", public(Client))
def test_a_method_of_the_async_class_is_awaited_or_iterated(name: str) -> None:
    method = getattr(AsyncClient, name)
    gives_many = inspect.signature(method).return_annotation.startswith("AsyncIterator[")
    assert inspect.iscoroutinefunction(method) is not gives_many
