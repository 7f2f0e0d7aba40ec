"""A server that gives what no embedserve server gives: each call ends with an error that says what it was."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import code_pb2, error_details_pb2, status_pb2

from embedserve import ItemInput, Query, wire
from embedserve.errors import EmbedserveError, FailedPrecondition, ProtocolError
from embedserve.types import Limits
from embedserve.v1 import admin_service_pb2 as admin_pb
from embedserve.v1 import collection_service_pb2 as collection_pb
from embedserve.v1 import common_pb2
from embedserve.v1 import embedding_service_pb2 as embedding_pb
from embedserve.v1 import search_service_pb2 as search_pb
from tests.client.fake_server import FINGERPRINT, Connect, FakeServer, encoder_ref

Use = Callable[[Any], Any]
NAN, INFINITY = float("nan"), float("inf")


def packed(*values: float) -> common_pb2.Vector:
    return wire.vector_to_proto(np.array(values, np.float32), wire.PACKED_F32)


def hits(*found: tuple[str, float], vectors: list[Any] | None = None) -> search_pb.SearchResponse:
    answer = search_pb.SearchResponse()
    result = answer.results.add()
    result.hits.SetInParent()
    for number, (id, score) in enumerate(found):
        result.hits.hits.add(id=id, score=score, vector=vectors[number] if vectors else None)
    return answer


def embedded(*results: Any, encoder: Any = None) -> embedding_pb.EmbedResponse:
    return embedding_pb.EmbedResponse(results=results, encoder=encoder if encoder is not None else encoder_ref())


def info(**fields: Any) -> embedding_pb.GetServerInfoResponse:
    return embedding_pb.GetServerInfoResponse(**fields)


def item(id: str, **fields: Any) -> collection_pb.GetItemsResult:
    return collection_pb.GetItemsResult(item=collection_pb.Item(id=id, **fields))


def got(*results: Any) -> collection_pb.GetItemsResponse:
    return collection_pb.GetItemsResponse(results=results)


def page(*ids: str, token: str = "", **fields: Any) -> collection_pb.ListItemsResponse:
    items = [collection_pb.Item(id=id, **fields) for id in ids]
    return collection_pb.ListItemsResponse(items=items, next_page_token=token)


def collection(**fields: Any) -> collection_pb.Collection:
    return collection_pb.Collection(**{"name": "photos", "encoder": encoder_ref(), **fields})


def got_collection(**fields: Any) -> collection_pb.GetCollectionResponse:
    return collection_pb.GetCollectionResponse(collection=collection(**fields))


def search(**options: Any) -> Use:
    return lambda client: client.search("photos", id="a", **options)


def search_two(client: Any) -> Any:
    return client.search_many("photos", [Query(id="a"), Query(id="b")])


def embed(count: int = 1, **options: Any) -> Use:
    return lambda client: client.embed([b"1"] * count, **options)


def get(*ids: str, **options: Any) -> Use:
    return lambda client: client.get_items("photos", list(ids), **options)


def listed(**options: Any) -> Use:
    return lambda client: list(client.list_items("photos", **options))


def add(client: Any) -> Any:
    return client.add("photos", [ItemInput(id="a", image=b"1"), ItemInput(id="b", image=b"1")])


NO_CODE = status_pb2.Status(message="something")
UNKNOWN_CODE = status_pb2.Status(code=99, message="something")
VECTOR = packed(1, 0, 0, 0)
BAD_DETAIL = AnyMessage(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff\xff\xff")

WRONG: list[tuple[str, Any, Use, str]] = [
    # --- Search ---
    ("Search", hits(*((f"i{number}", 0.5) for number in range(4))), search(k=3), "gave 4 hits for k=3"),
    ("Search", hits(("a", NAN)), search(), "the score nan"),
    ("Search", hits(("a", INFINITY)), search(), "the score inf"),
    ("Search", hits(("a", 1.5)), search(), r"the score 1\.5, which is no cosine"),
    ("Search", hits(("a", -2)), search(), "the score -2, which is no cosine"),
    ("Search", hits(("a", 0.1), ("b", 0.9)), search(), "hits out of order: 0.9 after 0.1"),
    ("Search", hits(("a", 0.9), ("a", 0.8)), search(), "item 'a' twice"),
    ("Search", hits(("", 0.9)), search(), "a hit without an id"),
    ("Search", hits(("a", 0.1)), search(min_score=0.5), "a hit of 0.1 for min_score=0.5"),
    ("Search", hits(("a", 0.9)), search(include_vectors=True), "SearchHit has no vector"),
    ("Search", hits(("a", 0.9), vectors=[packed(NAN, 1)]), search(include_vectors=True), "not finite"),
    (
        "Search",
        hits(("a", 0.9), ("b", 0.8), vectors=[VECTOR, packed(1, 0)]),
        search(include_vectors=True),
        "a vector of 2 numbers instead of 4",
    ),
    (
        "Search",
        hits(("a", 0.9), vectors=[common_pb2.Vector(packed_f32=b"123")]),
        search(include_vectors=True),
        "cannot be read: the packed vector has 3 bytes",
    ),
    ("Search", search_pb.SearchResponse(), search(), "0 results for 1 inputs"),
    ("Search", hits(("a", 0.5)), search_two, "1 results for 2 inputs"),
    ("Search", search_pb.SearchResponse(results=[search_pb.SearchResult()]), search(), "an empty result"),
    ("Search", search_pb.SearchResponse(results=[search_pb.SearchResult(error=NO_CODE)]), search(), "without a code"),
    ("Search", search_pb.SearchResponse(results=[search_pb.SearchResult(error=UNKNOWN_CODE)]), search(), "be read"),
    # --- Embed ---
    ("Embed", embedded(), embed(), "0 results for 1 inputs"),
    ("Embed", embedded(*[embedding_pb.EmbedResult(vector=VECTOR)] * 2), embed(), "2 results for 1 inputs"),
    ("Embed", embedded(embedding_pb.EmbedResult(vector=packed(1, 0))), embed(), "2 numbers instead of 4"),
    ("Embed", embedded(embedding_pb.EmbedResult(vector=packed(1, 0, 0, NAN))), embed(), "not finite"),
    ("Embed", embedded(embedding_pb.EmbedResult(vector=packed())), embed(), "the vector has no numbers"),
    ("Embed", embedded(embedding_pb.EmbedResult(error=NO_CODE)), embed(errors="keep"), "without a code"),
    ("Embed", embedding_pb.EmbedResponse(results=[embedding_pb.EmbedResult(vector=VECTOR)]), embed(), "no encoder"),
    ("Embed", embedded(encoder=common_pb2.EncoderRef(name="x")), embed(), "names no encoder"),
    (
        "Embed",
        embedded(embedding_pb.EmbedResult(vector=VECTOR), encoder=encoder_ref("cd" * 32)),
        embed(encoder_fingerprint=FINGERPRINT),
        "answered with encoder cdcdcdcdcdcd, not with abababababab",
    ),
    ("EmbedStream", embedding_pb.EmbedStreamResponse(key="0", encoder=encoder_ref()), embed(40), "0 results for 16"),
    ("EmbedStream", embedding_pb.EmbedStreamResponse(key="1"), embed(40), "answered out of order"),
    # --- The server ---
    ("GetServerInfo", info(encoder=encoder_ref()), lambda client: client.server_info(), "has no limits"),
    ("GetServerInfo", info(encoder=encoder_ref()), embed(), "has no limits"),
    ("GetServerInfo", info(), search(), "has no limits"),
    ("GetEncoder", embedding_pb.GetEncoderResponse(), lambda client: client.encoder(), "has no encoder"),
    (
        "GetEncoder",
        embedding_pb.GetEncoderResponse(encoder=embedding_pb.Encoder(metadata_json="{")),
        lambda client: client.encoder(),
        "cannot be read: JSONDecodeError",
    ),
    (
        "GetEncoder",
        embedding_pb.GetEncoderResponse(encoder=embedding_pb.Encoder(metadata_json="[1]")),
        lambda client: client.encoder(),
        "no JSON object",
    ),
    ("ReplaceEncoder", admin_pb.ReplaceEncoderResponse(), lambda client: client.replace_encoder(), "has no current"),
    (
        "ReplaceEncoder",
        admin_pb.ReplaceEncoderResponse(current=encoder_ref()),
        lambda client: client.replace_encoder(fingerprint="cd" * 32),
        "not with cdcdcdcdcdcd",
    ),
    # --- Items ---
    ("Upsert", collection_pb.UpsertResponse(), add, "0 results for 2 inputs"),
    (
        "Upsert",
        collection_pb.UpsertResponse(results=[collection_pb.UpsertResult(id=id) for id in "ba"]),
        add,
        "for item 'b' instead of 'a'",
    ),
    ("Upsert", collection_pb.UpsertResponse(results=[collection_pb.UpsertResult(error=NO_CODE)] * 2), add, "a code"),
    (
        "UpsertStream",
        collection_pb.UpsertStreamResponse(index=7),
        lambda client: client.add("photos", [ItemInput(image=b"1")] * 40),
        "answered out of order",
    ),
    ("GetItems", got(item("b")), get("a"), "item 'b' instead of 'a'"),
    ("GetItems", got(item("b"), item("a")), get("a", "b"), "item 'b' instead of 'a'"),
    ("GetItems", got(item("")), get("a"), "an item without an id"),
    ("GetItems", got(item("a")), get("a", "b"), "1 results for 2 inputs"),
    ("GetItems", got(item("a")), get("a", include_vectors=True), "Item has no vector"),
    ("GetItems", got(item("a", vector=packed(NAN))), get("a", include_vectors=True), "not finite"),
    ("GetItems", got(collection_pb.GetItemsResult()), get("a"), "an empty result"),
    (
        "DeleteItems",
        collection_pb.DeleteItemsResponse(deleted_count=3),
        lambda client: client.delete_items("photos", ["a", "b"]),
        "removed 3 items of 2",
    ),
    ("ListItems", page(token="again"), listed(), "the same page of items twice"),
    ("ListItems", page("a", token="again"), listed(), "item 'a' after 'a'"),
    ("ListItems", page("b", "a"), listed(), "item 'a' after 'b'"),
    ("ListItems", page(""), listed(), "an item without an id"),
    ("ListItems", page("a"), listed(include_vectors=True), "Item has no vector"),
    # --- Collections ---
    ("GetCollection", collection_pb.GetCollectionResponse(), lambda client: client.get_collection("x"), "has no coll"),
    ("GetCollection", got_collection(name=""), lambda client: client.get_collection("x"), "without a name"),
    ("GetCollection", got_collection(encoder=None), lambda client: client.get_collection("x"), "has no encoder"),
    (
        "GetCollection",
        got_collection(encoder=common_pb2.EncoderRef()),
        lambda client: client.get_collection("x"),
        "without a dimension",
    ),
    ("GetCollection", got_collection(target_recall=NAN), lambda client: client.get_collection("x"), "the recall nan"),
    (
        "GetCollection",
        got_collection(recall=collection_pb.Recall(value=2)),
        lambda client: client.get_collection("x"),
        "the recall 2",
    ),
    ("GetCollection", got_collection(keep_media=9), lambda client: client.get_collection("x"), "keep_media 9"),
    (
        "ListCollections",
        collection_pb.ListCollectionsResponse(collections=[collection(), collection(name="")]),
        lambda client: client.list_collections(),
        "without a name",
    ),
    (
        "CreateCollection",
        collection_pb.CreateCollectionResponse(),
        lambda client: client.create_collection("photos"),
        "has no collection",
    ),
    # --- Long calls ---
    (
        "CheckCollection",
        [collection_pb.CheckCollectionResponse()],
        lambda client: client.check_collection("photos"),
        "an empty step",
    ),
    ("CheckCollection", [], lambda client: client.check_collection("photos"), "without a report"),
]


@pytest.mark.parametrize(
    ("method", "answer", "use", "says"), WRONG, ids=[f"{method}-{says}" for method, _, _, says in WRONG]
)
def test_a_wrong_answer_ends_with_an_error_that_says_what_was_wrong(
    connect: Connect, server: FakeServer, method: str, answer: Any, use: Use, says: str
) -> None:
    server.on(method, lambda *_: answer)
    with pytest.raises(ProtocolError, match=says):
        use(connect(server.target, timeout_s=5))


def test_page_tokens_that_go_in_a_circle_end_the_list(connect: Connect, server: FakeServer) -> None:
    tokens = {"": "1", "1": "2", "2": "3", "3": "1"}
    server.on("ListItems", lambda request: page(token=tokens[request.page_token]))
    with pytest.raises(ProtocolError, match="the same page of items twice"):
        list(connect(server.target).list_items("photos"))
    assert len(server.asked("ListItems")) == 4


def test_empty_pages_and_tokens_that_come_again_after_other_items_are_right(
    connect: Connect, server: FakeServer
) -> None:
    pages = iter([page(token="x"), page("a", token="y"), page(token="x"), page("b")])
    server.on("ListItems", lambda _: next(pages))
    assert [found.id for found in connect(server.target).list_items("photos")] == ["a", "b"]


def aborting(code: int, *details: AnyMessage) -> Callable[[Any], Any]:
    def converse(_: Any, context: grpc.ServicerContext) -> Any:
        status = status_pb2.Status(code=code, message="what happened", details=details)
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "what happened")

    return converse  # type: ignore[return-value]


@pytest.mark.parametrize("details", [(BAD_DETAIL,), ()], ids=["broken", "none"])
@pytest.mark.parametrize("code", [0, 99])
def test_details_that_cannot_be_read_leave_the_status(
    connect: Connect, server: FakeServer, code: int, details: tuple[AnyMessage, ...]
) -> None:
    fail: Any = aborting(code, *details)
    server.handle = lambda method, request, context: fail(request, context)  # type: ignore[method-assign]
    with pytest.raises(FailedPrecondition, match="what happened"):
        connect(server.target).list_collections()


def test_a_pause_before_now_is_no_pause(connect: Connect, server: FakeServer) -> None:
    info = error_details_pb2.ErrorInfo(reason="OVERLOADED", domain=wire.ERROR_DOMAIN)
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(-5_000)
    packed_details = []
    for detail in (info, retry):
        packed_details.append(AnyMessage())
        packed_details[-1].Pack(detail)
    asked: list[Any] = []

    def answer(method: str, request: Any, context: grpc.ServicerContext) -> Any:
        asked.append(request)
        if len(asked) > 2:
            return collection_pb.ListCollectionsResponse()
        status = status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED, message="busy", details=packed_details)
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        return context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy")

    server.handle = answer  # type: ignore[method-assign]
    assert connect(server.target).list_collections() == []


class Unreadable(grpc.GenericRpcHandler):
    """Answers each call with bytes that are no message."""

    def service(self, details: Any) -> Any:
        if details.method.endswith("GetServerInfo"):
            answer = info(encoder=encoder_ref(), limits=wire.limits_to_proto(Limits())).SerializeToString()
            return grpc.unary_unary_rpc_method_handler(lambda *_: answer)
        if details.method.endswith("Stream"):
            return grpc.stream_stream_rpc_method_handler(lambda *_: iter([b"\xff\xff"]))
        if details.method.endswith("CheckCollection"):
            return grpc.unary_stream_rpc_method_handler(lambda *_: iter([b"\xff\xff"]))
        return grpc.unary_unary_rpc_method_handler(lambda *_: b"\xff\xff")


@pytest.mark.parametrize("use", [listed(), embed(), embed(40), lambda client: client.check_collection("photos")])
def test_a_response_that_is_no_message_is_an_error_of_the_protocol(connect: Connect, use: Use) -> None:
    server = grpc.server(ThreadPoolExecutor(2), handlers=[Unreadable()])
    port = server.add_insecure_port("localhost:0")
    server.start()
    try:
        with pytest.raises(EmbedserveError) as caught:
            use(connect(f"localhost:{port}", timeout_s=5))
        assert type(caught.value) is ProtocolError
    finally:
        server.stop(None).wait()
