"""Collections over the wire, with the real store behind a fake encoder."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from embedserve import Client
from embedserve.client import ItemInput
from embedserve.errors import (
    AlreadyExists,
    CollectionNotFound,
    DimensionMismatch,
    EncoderMismatch,
    FailedPrecondition,
    ImageUndecodable,
    InvalidInput,
    ItemNotFound,
    LimitExceeded,
)
from embedserve.types import Eq, Keep, Limits
from embedserve.v1 import collection_service_pb2 as collection_pb
from embedserve.v1.collection_service_pb2_grpc import CollectionServiceStub
from tests.fakes import DIMENSION, FakeEncoder, picture
from tests.running import serving

OURS = FakeEncoder().fingerprint


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address) as connected:
        yield connected


def vector(seed: int, dimension: int = DIMENSION) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(dimension).astype(np.float32)


def test_an_image_is_its_own_nearest_neighbour(client: Client) -> None:
    client.create_collection("photos")
    client.add("photos", [ItemInput(id=str(seed), image=picture(seed)) for seed in range(20)])
    hits = client.search("photos", image=picture(7), k=3)
    assert hits[0].id == "7"
    assert hits[0].score == 1.0
    assert len(hits) == 3


def test_an_item_is_not_among_the_hits_of_a_search_for_it(client: Client) -> None:
    client.create_collection("photos")
    client.add("photos", [ItemInput(id=str(seed), image=picture(seed)) for seed in range(5)])
    assert {hit.id for hit in client.search("photos", id="3", k=10)} == {"0", "1", "2", "4"}


def test_a_bad_item_fails_alone_under_its_own_id(client: Client) -> None:
    client.create_collection("photos")
    added = client.add(
        "photos",
        [
            ItemInput(id="good", image=picture(1)),
            ItemInput(id="cut", image=picture(2)[:60]),
            ItemInput(id="nan", vector=np.full(DIMENSION, np.nan)),
            ItemInput(id="short", vector=vector(1, 3)),
            ItemInput(id="also good", image=picture(3)),
        ],
        errors="keep",
        encoder_fingerprint=OURS,
    )
    assert [type(result.error) for result in added] == [
        type(None),
        ImageUndecodable,
        InvalidInput,
        DimensionMismatch,
        type(None),
    ]
    assert [result.id for result in added] == ["good", "cut", "nan", "short", "also good"]
    assert {item.id for item in client.list_items("photos")} == {"good", "also good"}


def test_vectors_of_another_encoder_are_refused(client: Client) -> None:
    client.create_collection("photos")
    with pytest.raises(EncoderMismatch, match="bound to encoder fake"):
        client.add("photos", [ItemInput(id="a", vector=vector(1))], encoder_fingerprint="00" * 32)
    with pytest.raises(EncoderMismatch, match="bound to encoder fake"):
        client.search("photos", vector=vector(1), encoder_fingerprint="00" * 32)


def test_vectors_of_an_encoder_are_refused_by_an_external_collection_in_words(client: Client) -> None:
    client.create_collection("outside", external=True, dimension=5)
    with pytest.raises(EncoderMismatch, match="collection 'outside' is external and is bound to no encoder"):
        client.search("outside", vector=vector(1), encoder_fingerprint="00" * 32)


def test_vectors_that_do_not_name_their_encoder_are_refused(client: Client) -> None:
    client.create_collection("photos")
    with pytest.raises(EncoderMismatch, match="do not say which encoder"):
        client.search("photos", vector=vector(1))


def test_an_external_collection_takes_vectors_and_no_images(client: Client) -> None:
    client.create_collection("outside", external=True, dimension=5)
    client.add("outside", [ItemInput(id=str(seed), vector=vector(seed, 5)) for seed in range(4)])
    assert client.search("outside", vector=vector(2, 5) * 100, k=1)[0].id == "2"
    with pytest.raises(FailedPrecondition, match="takes no images"):
        client.search("outside", image=picture(1))


def test_a_collection_of_another_encoder_still_answers_ids_and_vectors_but_not_images(tmp_path: Path) -> None:
    with serving(FakeEncoder(fingerprint="aa" * 32, name="old"), tmp_path) as address, Client(address) as client:
        client.create_collection("photos")
        client.add("photos", [ItemInput(id=str(seed), image=picture(seed)) for seed in range(4)])
    with serving(FakeEncoder(fingerprint="bb" * 32, name="new"), tmp_path) as address, Client(address) as client:
        [item] = client.get_items("photos", ["2"], include_vectors=True)
        assert len(client.search("photos", id="2", k=9)) == 3
        assert item is not None
        assert client.search("photos", vector=item.vector, encoder_fingerprint="aa" * 32, k=1)[0].id == "2"
        with pytest.raises(EncoderMismatch, match="this server runs new"):
            client.search("photos", image=picture(2))
        with pytest.raises(EncoderMismatch, match="this server runs new"):
            client.add("photos", [ItemInput(id="x", image=picture(2))])


def test_a_restart_finds_everything_again(tmp_path: Path) -> None:
    with serving(FakeEncoder(), tmp_path) as address, Client(address) as client:
        client.create_collection("photos")
        client.set_alias("live", "photos")
        client.add(
            "photos",
            [ItemInput(id=str(seed), image=picture(seed), metadata={"even": seed % 2 == 0}) for seed in range(10)],
        )
        client.delete_items("photos", ["4"])
        before = client.search("live", image=picture(3), k=10)
    with serving(FakeEncoder(), tmp_path) as address, Client(address) as client:
        assert client.search("live", image=picture(3), k=10) == before
        assert client.get_collection("live").items == 9
        assert {hit.id for hit in client.search("photos", id="3", filter=Eq("even", True))} == {"0", "2", "6", "8"}


@pytest.mark.parametrize(("keep", "media_type"), [(Keep.THUMBNAILS, "image/jpeg"), (Keep.ORIGINALS, "image/png")])
def test_thumbnails_or_originals_are_kept_as_asked(client: Client, keep: Keep, media_type: str) -> None:
    client.create_collection("photos", keep=keep)
    client.add("photos", [ItemInput(id="a", image=picture(1, size=(600, 300)))])
    [item] = client.get_items("photos", ["a"], include_media=True)
    assert item is not None
    assert item.media is not None
    assert item.media.media_type == media_type
    if keep is Keep.THUMBNAILS:
        assert Image.open(io.BytesIO(item.media.data)).size == (256, 128)
    else:
        assert item.media.data == picture(1, size=(600, 300))


def test_nothing_is_kept_if_nothing_was_requested(client: Client) -> None:
    client.create_collection("photos", keep=Keep.NONE)
    client.add("photos", [ItemInput(id="a", image=picture(1))])
    [item] = client.get_items("photos", ["a"], include_media=True)
    assert item is not None
    assert item.media is None


def test_an_item_without_an_id_gets_one(client: Client) -> None:
    client.create_collection("photos")
    [added] = client.add("photos", [ItemInput(image=picture(1))])
    assert [item.id for item in client.list_items("photos")] == [added.id]


def test_what_does_not_exist_is_named(client: Client) -> None:
    with pytest.raises(CollectionNotFound, match="nowhere"):
        client.search("nowhere", image=picture(1))
    client.create_collection("photos")
    with pytest.raises(ItemNotFound, match="'ghost'"):
        client.search("photos", id="ghost")
    with pytest.raises(AlreadyExists, match="photos"):
        client.create_collection("photos")


def test_an_exceeded_limit_is_named_with_its_value(client: Client) -> None:
    client.create_collection("photos")
    with pytest.raises(LimitExceeded, match="max_k is 1000"):
        client.search("photos", image=picture(1), k=1001)


def test_a_server_without_data_has_no_collections_and_says_how_to_get_them() -> None:
    with serving(FakeEncoder()) as address, Client(address) as client:
        assert client.server_info().has_collections is False
        with pytest.raises(FailedPrecondition, match="no data directory") as caught:
            client.list_collections()
        assert "--data" in caught.value.hint


def test_limits_are_those_of_the_server(tmp_path: Path) -> None:
    limits = Limits(max_images=2, max_image_pixels=1000)
    with serving(FakeEncoder(), tmp_path, limits=limits) as address, Client(address) as client:
        assert client.server_info().limits == limits
        outcome = client.embed([picture(1), picture(2), picture(3, size=(20, 20))], errors="keep")
        assert [type(outcome.errors.get(n)).__name__ for n in range(3)] == [
            "ImageTooLarge",
            "ImageTooLarge",
            "NoneType",
        ]


def test_a_collection_that_takes_the_name_of_another_while_images_are_embedded_is_not_written_to(
    tmp_path: Path,
) -> None:
    entered, released = threading.Event(), threading.Event()

    def hold(images: np.ndarray) -> None:
        if armed.is_set():
            entered.set()
            assert released.wait(20)

    armed = threading.Event()
    with serving(FakeEncoder(on_batch=hold), tmp_path) as address, Client(address) as client:
        client.create_collection("photos")
        armed.set()
        outcome: list[object] = []

        def add() -> None:
            try:
                outcome.append(client.add("photos", [ItemInput(id="a", image=picture(1))]))
            except CollectionNotFound as error:
                outcome.append(error)

        adding = threading.Thread(target=add)
        adding.start()
        assert entered.wait(20)
        client.delete_collection("photos")
        client.create_collection("photos", external=True, dimension=DIMENSION)
        released.set()
        adding.join()
        assert isinstance(outcome[0], CollectionNotFound)
        assert client.get_collection("photos").items == 0


def test_a_search_whose_collection_is_replaced_by_one_of_another_dimension_is_refused(tmp_path: Path) -> None:
    entered, released, armed = threading.Event(), threading.Event(), threading.Event()

    def hold(images: np.ndarray) -> None:
        if armed.is_set():
            entered.set()
            assert released.wait(20)

    with serving(FakeEncoder(on_batch=hold), tmp_path) as address, Client(address) as client:
        client.create_collection("photos")
        armed.set()
        outcome: list[object] = []

        def search() -> None:
            try:
                outcome.append(client.search("photos", image=picture(1)))
            except CollectionNotFound as error:
                outcome.append(error)

        searching = threading.Thread(target=search)
        searching.start()
        assert entered.wait(20)
        client.delete_collection("photos")
        client.create_collection("photos", external=True, dimension=65536)
        client.add("photos", [ItemInput(id="a", vector=np.ones(65536))])
        released.set()
        searching.join()
        assert isinstance(outcome[0], CollectionNotFound)


def test_a_stream_stays_with_the_collection_that_it_began_with(tmp_path: Path) -> None:
    with serving(FakeEncoder(), tmp_path) as address, Client(address) as client:
        client.create_collection("one")
        client.create_collection("two")
        client.set_alias("live", "one")
        first_answered = threading.Event()

        def requests() -> Iterator[Any]:
            for number in range(3):
                if number == 1:
                    assert first_answered.wait(20)
                    client.set_alias("live", "two")
                item = collection_pb.UpsertItem(id=str(number), image=picture(number))
                yield collection_pb.UpsertStreamRequest(collection="live", item=item)

        with grpc.insecure_channel(address) as channel:
            for _ in CollectionServiceStub(channel).UpsertStream(requests(), timeout=30):
                first_answered.set()
        assert [item.id for item in client.list_items("one")] == ["0", "1", "2"]
        assert list(client.list_items("two")) == []


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"ef": 65_537}, "ef is 65537; it lies between 1 and 65536"),
        ({"nprobe": 65_537}, "nprobe is 65537; it lies between 1 and 65536"),
        ({"target_recall": 0.0}, "target_recall is 0.0; it lies above 0 and is at most 1"),
        ({"target_recall": 1.1}, "target_recall is 1.1; it lies above 0 and is at most 1"),
        ({"ef": 8, "nprobe": 8}, "ef and nprobe are given"),
        ({"ef": 8, "exact": True}, "ef and exact are given"),
        ({"target_recall": 0.9, "exact": True}, "target_recall and exact are given"),
    ],
    ids=str,
)
def test_search_parameters_exclude_each_other_and_have_bounds(
    client: Client, options: dict[str, Any], why: str
) -> None:
    client.create_collection("photos")
    with pytest.raises(InvalidInput, match=why):
        client.search("photos", vector=vector(1), encoder_fingerprint=OURS, **options)


def test_a_search_may_set_search_parameters(client: Client) -> None:
    client.create_collection("photos")
    client.add("photos", [ItemInput(id="a", image=picture(1))])
    for options in ({"ef": 1}, {"ef": 65_536}, {"nprobe": 65_536}, {"target_recall": 1.0}, {"exact": True}):
        assert [hit.id for hit in client.search("photos", image=picture(1), **options)] == ["a"]


@pytest.mark.parametrize(
    ("made_with", "why"),
    [
        ({"target_recall": 0.0}, "target_recall is 0.0"),
        ({"target_recall": 1.5}, "target_recall is 1.5"),
        ({"filter_keys": ["a'b"]}, "metadata key"),
        ({"encoder_name": "x"}, "encoder_name is given without encoder_fingerprint"),
        ({"encoder_fingerprint": "AB" * 32, "dimension": 3}, "is not 64 hexadecimal digits"),
        ({"encoder_fingerprint": "cd" * 32}, "needs a dimension of 1–65536"),
        ({"encoder_fingerprint": "cd" * 32, "dimension": 65_537}, "needs a dimension of 1–65536"),
        ({"encoder_fingerprint": "cd" * 32, "dimension": 3, "external": True}, "external and encoder_fingerprint"),
        ({"encoder_fingerprint": "cd" * 32, "dimension": 3, "encoder_name": "x" * 257}, "has 257 characters"),
        ({"encoder_fingerprint": OURS, "dimension": 3}, "the encoder makes vectors of 16"),
    ],
    ids=str,
)
def test_a_collection_with_invalid_settings_is_refused(client: Client, made_with: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        client.create_collection("photos", **made_with)
    assert client.list_collections() == []


def test_the_fingerprint_of_the_servers_encoder_binds_to_it(client: Client) -> None:
    info = client.create_collection("photos", encoder_fingerprint=OURS, encoder_name="another name", target_recall=0.9)
    assert (info.encoder_name, info.dimension, info.target_recall) == ("fake", DIMENSION, 0.9)
    client.add("photos", [ItemInput(id="a", image=picture(1))])
    assert [hit.id for hit in client.search("photos", image=picture(1))] == ["a"]
