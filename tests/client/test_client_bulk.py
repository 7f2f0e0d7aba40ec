"""Embedding, adding and reading many: how inputs are cut into messages, and the result of each input."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedserve import AddResult, EncoderRef, Eq, Item, ItemInput, Limits, Media, wire
from embedserve.errors import (
    DataError,
    EmbedserveError,
    EncoderMismatch,
    ImageTooLarge,
    ImageUndecodable,
    InvalidInput,
    ItemNotFound,
    LimitExceeded,
    ProtocolError,
)
from embedserve.v1 import collection_service_pb2 as collection_pb
from embedserve.v1 import embedding_service_pb2 as embedding_pb
from tests.client.fake_server import DIMENSION, FINGERPRINT, Connect, FakeServer, encoder_ref, status, vector_of


def refusing(refused: set[bytes]) -> Callable[[Any], Any]:
    """An Embed script that refuses some images, with their positions as the real server gives them."""

    def script(request: Any) -> Any:
        response = embedding_pb.EmbedResponse(encoder=encoder_ref())
        for position, image in enumerate(request.images, start=1):
            if image in refused:
                error: EmbedserveError = ImageUndecodable("the image is damaged", hint="save it again")
                if len(request.images) > 1:
                    error = error.at(f"image {position} of {len(request.images)}")
                response.results.add(error=status(error))
            else:
                response.results.add(vector=wire.vector_to_proto(vector_of(image), wire.PACKED_F32))
        return response

    return script


# --- Embed ---


def test_embeddings_come_in_the_order_of_the_images(connect: Connect, small_server: FakeServer) -> None:
    images = [bytes([number]) * number for number in range(1, 12)]
    embeddings = connect(small_server.target).embed(images)
    assert embeddings.vectors.dtype == np.float32
    assert embeddings.vectors.tolist() == [[number, number, 0, 0] for number in range(1, 12)]
    assert embeddings.errors == {}
    assert embeddings.encoder == EncoderRef("fake", FINGERPRINT, DIMENSION)


def test_no_message_has_more_images_than_the_server_takes(connect: Connect, small_server: FakeServer) -> None:
    connect(small_server.target).embed([b"1"] * 8)
    assert [len(request.images) for request in small_server.asked("EmbedStream")] == [3, 3, 2]


def test_no_message_is_larger_than_the_server_takes(connect: Connect, small_server: FakeServer) -> None:
    # Two of 900 bytes fit 2,000; the server itself refuses more.
    connect(small_server.target).embed([b"x" * 900] * 5)
    assert [len(request.images) for request in small_server.asked("EmbedStream")] == [2, 2, 1]


def test_what_fits_one_message_is_one_call_and_more_is_a_stream(connect: Connect, server: FakeServer) -> None:
    client = connect(server.target)
    client.embed([b"1"] * 16)
    client.add("photos", [ItemInput(id=str(number), image=b"1") for number in range(16)])
    assert [len(server.asked(method)) for method in ("Embed", "Upsert", "EmbedStream", "UpsertStream")] == [1, 1, 0, 0]
    client.embed([b"1"] * 17)
    client.add("photos", [ItemInput(id=str(number), image=b"1") for number in range(17)])
    assert [len(server.asked(method)) for method in ("Embed", "Upsert", "EmbedStream", "UpsertStream")] == [1, 1, 2, 2]
    assert [method for method, _ in server.streams] == ["EmbedStream", "UpsertStream"]


def test_vectors_are_requested_in_bytes(connect: Connect, server: FakeServer) -> None:
    client = connect(server.target)
    client.embed([b"1"])
    client.embed([b"1"] * 17)
    requests = [*server.asked("Embed"), *server.asked("EmbedStream")]
    assert [request.vector_encoding for request in requests] == [wire.PACKED_F32] * 3


def test_limits_are_asked_for_once(connect: Connect, small_server: FakeServer) -> None:
    client = connect(small_server.target)
    for _ in range(3):
        client.embed([b"1"] * 5)
    assert len(small_server.asked("GetServerInfo")) == 1


def no_items(request: Any) -> Any:
    """A GetItems script of a collection without items."""
    error = status(ItemNotFound("there is no such item"))
    return collection_pb.GetItemsResponse(results=[collection_pb.GetItemsResult(error=error) for _ in request.ids])


def test_a_few_calls_are_in_flight_at_once(connect: Connect, small_server: FakeServer) -> None:
    four = threading.Barrier(4)

    def script(request: Any) -> Any:
        four.wait(20)  # breaks unless four calls are in flight
        return no_items(request)

    small_server.on("GetItems", script)
    assert connect(small_server.target).get_items("photos", ["a"] * 4 * 12) == [None] * 4 * 12
    assert small_server.max_in_flight == 4


def test_if_one_call_fails_the_others_in_flight_are_cancelled(connect: Connect, small_server: FakeServer) -> None:
    all_there, released = threading.Barrier(4), threading.Event()

    def script(request: Any) -> Any:
        all_there.wait(20)
        if request.ids[0] == "first":
            raise InvalidInput("no")
        released.wait(60)
        return no_items(request)

    small_server.on("GetItems", script)
    try:
        with pytest.raises(InvalidInput):
            connect(small_server.target).get_items("photos", ["first", *["a"] * 15])
        # One for the limits and four for the items have ended for the client, while the server still works.
        assert [small_server.ended.acquire(timeout=20) for _ in range(5)] == [True] * 5
        assert not released.is_set()
    finally:
        released.set()


def test_paths_are_read(connect: Connect, server: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"abc")
    vectors = connect(server.target).embed([path, str(path), b"z"]).vectors
    assert vectors[:, 0].tolist() == [3, 3, 1]


def test_no_images_give_an_empty_array_of_the_right_width(connect: Connect, server: FakeServer) -> None:
    embeddings = connect(server.target).embed([])
    assert embeddings.vectors.shape == (0, DIMENSION)
    assert embeddings.encoder.fingerprint == FINGERPRINT
    assert server.asked("Embed") == []


def test_the_first_bad_image_is_raised_with_its_position_among_all(connect: Connect, small_server: FakeServer) -> None:
    small_server.on("Embed", refusing({b"5"}))
    with pytest.raises(ImageUndecodable) as caught:
        connect(small_server.target).embed([b"1", b"2", b"3", b"4", b"5"])
    assert caught.value.message == "image 5 of 5: the image is damaged"
    assert caught.value.hint == "save it again"


def test_a_bad_file_is_raised_with_its_name(connect: Connect, server: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"5")
    server.on("Embed", refusing({b"5"}))
    with pytest.raises(ImageUndecodable) as caught:
        connect(server.target).embed([b"1", path])
    assert caught.value.message == f"{path}: the image is damaged"


def test_kept_errors_leave_rows_of_nan_and_say_why_by_position(connect: Connect, small_server: FakeServer) -> None:
    small_server.on("Embed", refusing({b"2", b"5"}))
    embeddings = connect(small_server.target).embed([b"1", b"2", b"3", b"4", b"5"], errors="keep")
    assert np.isnan(embeddings.vectors).all(axis=1).tolist() == [False, True, False, False, True]
    assert {position: error.message for position, error in embeddings.errors.items()} == {
        1: "the image is damaged",
        4: "the image is damaged",
    }
    assert all(isinstance(error, ImageUndecodable) for error in embeddings.errors.values())


def test_a_file_that_cannot_be_read_fails_alone(connect: Connect, server: FakeServer, tmp_path: Path) -> None:
    embeddings = connect(server.target).embed([b"1", tmp_path / "gone.jpg", b"3"], errors="keep")
    assert embeddings.vectors[:, 0].tolist() == pytest.approx([1, np.nan, 1], nan_ok=True)
    assert embeddings.errors[1].message == f"{tmp_path}/gone.jpg cannot be read: No such file or directory"
    assert isinstance(embeddings.errors[1], DataError)


def test_an_image_above_the_limit_is_never_sent(connect: Connect, small_server: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    path.write_bytes(b"x" * 1501)
    embeddings = connect(small_server.target).embed([b"1", b"x" * 1501, path], errors="keep")
    assert [type(embeddings.errors[position]) for position in (1, 2)] == [ImageTooLarge, ImageTooLarge]
    assert "max_image_bytes is 1500" in embeddings.errors[2].message
    assert [list(request.images) for request in small_server.asked("Embed")] == [[b"1"]]


def test_if_the_client_refuses_every_image_nothing_is_sent(connect: Connect, server: FakeServer) -> None:
    embeddings = connect(server.target).embed(["/nowhere/a.jpg"] * 3, errors="keep")
    assert sorted(embeddings.errors) == [0, 1, 2]
    assert embeddings.vectors.shape == (3, DIMENSION)
    assert server.asked("Embed") == []


@pytest.mark.parametrize("image", [7, None, [1, 2]])
def test_what_is_no_image_is_refused(connect: Connect, server: FakeServer, image: object) -> None:
    with pytest.raises(InvalidInput, match=r"image 1 of 1: image is "):
        connect(server.target).embed([image])


@pytest.mark.parametrize("images", [b"abc", "a.jpg", Path("a.jpg")])
def test_a_single_image_instead_of_a_list_is_refused(connect: Connect, server: FakeServer, images: object) -> None:
    with pytest.raises(InvalidInput, match="give a list"):
        connect(server.target).embed(images)


def test_an_unknown_value_of_errors_is_refused(connect: Connect, server: FakeServer) -> None:
    with pytest.raises(InvalidInput, match='errors is \'ignore\', not "raise" or "keep"'):
        connect(server.target).embed([b"1"], errors="ignore")


def test_vectors_of_two_encoders_are_never_mixed(connect: Connect, small_server: FakeServer) -> None:
    def script(request: Any) -> Any:
        response = refusing(set())(request)
        if request.images[0] == b"4":
            response.encoder.fingerprint = "cd" * 32
        return response

    small_server.on("Embed", script)
    with pytest.raises(EncoderMismatch, match="was replaced while these images were embedded"):
        connect(small_server.target).embed([b"1", b"2", b"3", b"4"])


def test_the_requested_encoder_is_passed_on(connect: Connect, server: FakeServer) -> None:
    client = connect(server.target)
    client.embed([b"1"], encoder_fingerprint=FINGERPRINT)
    client.embed([b"1"] * 17, encoder_fingerprint=FINGERPRINT)
    requests = [*server.asked("Embed"), *server.asked("EmbedStream")]
    assert [request.encoder_fingerprint for request in requests] == [FINGERPRINT] * 3


def test_a_wrong_number_of_results_is_a_bug_of_the_server(connect: Connect, server: FakeServer) -> None:
    server.on("Embed", lambda _: embedding_pb.EmbedResponse(encoder=encoder_ref()))
    with pytest.raises(ProtocolError, match="0 results for 2 inputs"):
        connect(server.target).embed([b"1", b"2"])


def test_an_empty_result_is_a_bug_of_the_server(connect: Connect, server: FakeServer) -> None:
    answer = embedding_pb.EmbedResponse(encoder=encoder_ref(), results=[embedding_pb.EmbedResult()])
    server.on("Embed", lambda _: answer)
    with pytest.raises(ProtocolError, match="empty result"):
        connect(server.target).embed([b"1"])


def test_results_one_by_one_hold_vectors_and_errors(connect: Connect, small_server: FakeServer) -> None:
    small_server.on("Embed", refusing({b"2"}))
    first, second, third, fourth = connect(small_server.target).embed_each([b"1", b"2", b"3", b"4"])
    assert (first[1], third[1], fourth[1]) == (ord("1"), ord("3"), ord("4"))
    assert isinstance(second, ImageUndecodable)


# --- Add ---


def test_items_are_sent_with_ids_images_vectors_and_metadata(connect: Connect, server: FakeServer) -> None:
    items = [
        ItemInput(id="a", image=b"123", metadata={"label": "cat", "year": 1999, "ok": True, "x": 0.5, "tags": ["p"]}),
        ItemInput(id="b", vector=[1, 0, 0, 0.5]),
    ]
    results = connect(server.target).add("photos", items, encoder_fingerprint=FINGERPRINT)
    assert results == [AddResult("a"), AddResult("b")]
    [request] = server.asked("Upsert")
    assert (request.collection, request.encoder_fingerprint) == ("photos", FINGERPRINT)
    first, second = request.items
    assert first.image == b"123"
    assert wire.metadata_from_proto(first.metadata) == {
        "label": "cat",
        "year": 1999,
        "ok": True,
        "x": 0.5,
        "tags": ["p"],
    }
    assert np.frombuffer(second.vector.packed_f32, "<f4").tolist() == [1, 0, 0, 0.5]


def test_images_vectors_and_bytes_of_a_call_stay_within_the_limits(connect: Connect, small_server: FakeServer) -> None:
    client = connect(small_server.target)
    client.add("photos", [ItemInput(id=str(number), image=b"1") for number in range(7)])
    client.add("photos", [ItemInput(id=str(number), vector=[1, 2, 3, 4]) for number in range(9)])
    client.add("photos", [ItemInput(id=str(number), image=b"x" * 900) for number in range(3)])
    assert [len(request.items) for request in small_server.asked("UpsertStream")] == [3, 3, 1, 4, 4, 1, 2, 1]


def test_an_item_that_cannot_be_sent_fails_alone(connect: Connect, server: FakeServer, tmp_path: Path) -> None:
    items = [
        ItemInput(id="a", image=b"1"),
        ItemInput(id="gone", image=tmp_path / "gone.jpg"),
        ItemInput(id="bad", image=b"1", metadata={"x": {"nested": 1}}),
        ItemInput(id="\udc80", image=b"1"),
        ItemInput(id="text", vector=["one", "two"]),
        ItemInput(id="matrix", vector=[[1, 2], [3, 4]]),
        ItemInput(id="b", image=b"2"),
    ]
    results = connect(server.target).add("photos", items, errors="keep")
    assert [result.id for result in results] == ["a", "gone", "bad", "\udc80", "text", "matrix", "b"]
    assert [type(result.error) for result in results] == [
        type(None),
        DataError,
        InvalidInput,
        InvalidInput,
        InvalidInput,
        InvalidInput,
        type(None),
    ]
    [request] = server.asked("Upsert")
    assert [item.id for item in request.items] == ["a", "b"]


def test_an_item_that_the_server_refuses_fails_alone(connect: Connect, server: FakeServer) -> None:
    def script(request: Any) -> Any:
        response = collection_pb.UpsertResponse()
        response.results.add(id="a")
        response.results.add(error=status(ImageUndecodable("item 2 of 2: the image is damaged")))
        return response

    server.on("Upsert", script)
    first, second = connect(server.target).add(
        "photos", [ItemInput(id="a", image=b"1"), ItemInput(id="b", image=b"2")], errors="keep"
    )
    assert first == AddResult("a")
    assert second.id == "b"
    assert isinstance(second.error, ImageUndecodable)
    assert second.error.message == "the image is damaged"


def test_an_item_without_id_gets_one_before_it_is_sent(connect: Connect, server: FakeServer) -> None:
    # A retried call then replaces what the first attempt may have written.
    [first, second] = connect(server.target).add("photos", [ItemInput(image=b"1"), ItemInput(image=b"1")])
    [request] = server.asked("Upsert")
    assert [item.id for item in request.items] == [first.id, second.id]
    assert len({first.id, second.id}) == 2
    assert len(first.id) == 32


def test_an_id_that_occurs_twice_is_sent_twice_in_order(connect: Connect, small_server: FakeServer) -> None:
    old = [ItemInput(id=id, image=b"old") for id in ("a", "b", "c")]
    new = [ItemInput(id=id, image=b"new") for id in ("a", "d")]
    assert len(connect(small_server.target).add("photos", [*old, *new])) == 5
    assert len(small_server.streams) == 1
    sent = [(item.id, item.image) for request in small_server.asked("UpsertStream") for item in request.items]
    assert sent == [(item.id, item.image) for item in [*old, *new]]


def test_an_item_that_is_larger_than_a_message_is_not_sent(connect: Connect, small_server: FakeServer) -> None:
    [result] = connect(small_server.target).add("photos", [ItemInput(id="a", vector=np.ones(1000))], errors="keep")
    assert isinstance(result.error, LimitExceeded)
    assert small_server.asked("Upsert") == []


@pytest.mark.parametrize("content", [{}, {"image": b"1", "vector": [1.0]}], ids=["neither", "both"])
def test_an_item_is_either_an_image_or_a_vector(content: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="item 'a' needs either an image or a vector"):
        ItemInput(id="a", **content)


# --- Read, delete, list ---


def test_items_are_read_in_the_order_of_the_ids_with_none_for_a_missing_one(
    connect: Connect, small_server: FakeServer
) -> None:
    def script(request: Any) -> Any:
        response = collection_pb.GetItemsResponse()
        for position, id in enumerate(request.ids, start=1):
            if id == "c":
                where = f"id {position} of {len(request.ids)}: "
                response.results.add(error=status(ItemNotFound(f"{where}collection 'photos' has no item 'c'")))
            else:
                response.results.add(
                    item=wire.item_to_proto(
                        Item(
                            id=id,
                            metadata={"n": 1},
                            vector=vector_of(id.encode()) if request.include_vectors else None,
                            content_sha256=b"\x01" * 32,
                            media=Media(data=b"jpeg", media_type="image/jpeg") if request.include_media else None,
                        ),
                        request.vector_encoding,
                    )
                )
        return response

    small_server.on("GetItems", script)
    items = connect(small_server.target).get_items("photos", list("abcdefghi"), include_vectors=True)
    assert [item and item.id for item in items] == ["a", "b", None, "d", "e", "f", "g", "h", "i"]
    assert items[0].metadata == {"n": 1}
    assert items[0].vector.tolist() == [1, ord("a"), 0, 0]
    assert items[0].content_sha256 == b"\x01" * 32
    assert items[0].media is None
    assert sorted(len(request.ids) for request in small_server.asked("GetItems")) == [1, 4, 4]
    [with_media] = connect(small_server.target).get_items("photos", ["a"], include_media=True)
    assert with_media.media == Media(data=b"jpeg", media_type="image/jpeg")


def test_as_few_originals_are_read_per_call_as_fit_one_message(connect: Connect, small_server: FakeServer) -> None:
    def script(request: Any) -> Any:
        return collection_pb.GetItemsResponse(
            results=[collection_pb.GetItemsResult(item=collection_pb.Item(id=id)) for id in request.ids]
        )

    small_server.on("GetItems", script)
    connect(small_server.target).get_items("photos", ["a", "b", "c"], include_media=True)
    assert [len(request.ids) for request in small_server.asked("GetItems")] == [1, 1, 1]


def test_items_are_removed_in_calls_of_max_items_and_counted_together(
    connect: Connect, small_server: FakeServer
) -> None:
    small_server.on(
        "DeleteItems", lambda request: collection_pb.DeleteItemsResponse(deleted_count=len(request.ids) - 1)
    )
    assert connect(small_server.target).delete_items("photos", [str(number) for number in range(10)]) == 3 + 3 + 1


def test_pages_are_read_one_by_one_as_they_are_needed(connect: Connect, server: FakeServer) -> None:
    pages = {"": (["a", "b"], "second"), "second": (["c"], "third"), "third": ([], "")}

    def script(request: Any) -> Any:
        ids, token = pages[request.page_token]
        return collection_pb.ListItemsResponse(items=[collection_pb.Item(id=id) for id in ids], next_page_token=token)

    server.on("ListItems", script)
    items = connect(server.target).list_items("photos", filter=Eq("label", "cat"), page_size=2)
    assert next(items).id == "a"
    assert len(server.asked("ListItems")) == 1
    assert [item.id for item in items] == ["b", "c"]
    requests = server.asked("ListItems")
    assert [request.page_token for request in requests] == ["", "second", "third"]
    assert {request.page_size for request in requests} == {2}
    assert {wire.filter_from_proto(request.filter, Limits()) for request in requests} == {Eq("label", "cat")}
    assert all(request.include_metadata and not request.include_vectors for request in requests)


def test_a_page_has_at_least_one_item(connect: Connect, server: FakeServer) -> None:
    with pytest.raises(InvalidInput, match="page_size is 0"):
        list(connect(server.target).list_items("photos", page_size=0))
