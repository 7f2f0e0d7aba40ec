"""Encoder files, data directories and backups of an older version open, and give the answers that it gave."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict
from grpc import insecure_channel

from embedserve.client import Client, ItemInput
from embedserve.encoder import encoder_file
from embedserve.encoder.session import Encoder
from embedserve.types import Eq
from embedserve.v1 import collection_service_pb2 as pb
from embedserve.v1.collection_service_pb2_grpc import CollectionServiceStub
from tests.running import serving

Answers = dict[str, Any]
KINDS = ("stripes", "checks", "discs")


@contextmanager
def served(old: Path) -> Iterator[tuple[Client, str]]:
    """A client of a server with the old encoder and data directory, and the server's address."""
    with serving(Encoder.open(old / "encoder.onnx", device="cpu"), old / "data") as address, Client(address) as client:
        yield client, address


def collection(address: str, name: str = "photos") -> dict[str, Any]:
    """The answer of GetCollection on the wire."""
    with insecure_channel(address) as channel:
        response = CollectionServiceStub(channel).GetCollection(pb.GetCollectionRequest(name=name))
    document: dict[str, Any] = MessageToDict(response.collection)
    return document


def query_images(old: Path) -> list[Path]:
    return [old / "images" / kind / "00.png" for kind in KINDS]


def searched(client: Client, old: Path, answers: Answers, name: str = "pictures") -> dict[str, list[tuple[str, float]]]:
    """The hits of the recorded searches."""
    images, fingerprint = query_images(old), answers["encoder"]["fingerprint"]
    axis = np.eye(1, answers["encoder"]["dimension"], dtype=np.float32)[0]
    searches: dict[str, dict[str, Any]] = {
        "image": {"image": images[0]},
        "exact": {"image": images[1], "exact": True},
        "id": {"id": "discs/05"},
        "vector": {"vector": axis, "encoder_fingerprint": fingerprint},
        "filtered": {"image": images[2], "filter": Eq("kind", "stripes")},
    }
    return {key: [(hit.id, hit.score) for hit in client.search(name, **words)] for key, words in searches.items()}


def assert_same_hits(found: dict[str, list[tuple[str, float]]], answers: Answers) -> None:
    assert found.keys() == answers["searches"].keys()
    for name, hits in found.items():
        expected = answers["searches"][name]
        assert [id for id, _ in hits] == [id for id, _ in expected], name
        assert [score for _, score in hits] == pytest.approx([score for _, score in expected], abs=2e-6), name


def test_an_old_encoder_file_has_its_fingerprint_and_reproduces_its_reference_vectors(
    old: Path, answers: Answers
) -> None:
    file = encoder_file.read(old / "encoder.onnx")
    assert (file.fingerprint, file.metadata.name) == (answers["encoder"]["fingerprint"], answers["encoder"]["name"])
    encoder = Encoder.from_file(file, device="cpu")
    assert encoder.reference_cosine() > 0.999999
    # Writing the file again changes nothing, so an encoder keeps its fingerprint.
    assert encoder_file.pack(file.model, file.metadata).fingerprint == file.fingerprint


def test_an_old_encoder_file_gives_the_embeddings_that_it_gave(old: Path, answers: Answers) -> None:
    with served(old) as (client, _):
        assert client.encoder().fingerprint == answers["encoder"]["fingerprint"]
        vectors = client.embed(query_images(old)).vectors
    np.testing.assert_allclose(vectors, answers["embeddings"], atol=1e-6)


def test_an_old_data_directory_has_its_collections_items_and_hits(old: Path, answers: Answers) -> None:
    with served(old) as (client, address):
        found = collection(address)
        assert {name: found[name] for name in answers["collection"]} == answers["collection"]
        assert (found["segmentCount"], found["unsealedCount"], found["deadCount"]) == (1, "2", "3")
        assert [[item.id, dict(item.metadata)] for item in client.list_items("photos")] == answers["items"]
        assert_same_hits(searched(client, old, answers), answers)
        [item] = client.get_items("photos", ["discs/05"], include_media=True, include_vectors=True)
        assert item is not None
        assert item.vector is not None
        assert item.media is not None
        assert len(item.content_sha256) == 32
        report = client.check_collection("photos")
        assert report.problems == ()


def test_an_old_data_directory_takes_writes_and_keeps_them(old: Path, answers: Answers) -> None:
    with served(old) as (client, _):
        assert client.delete_items("photos", ["discs/00"]) == 1
        [added] = client.add("pictures", [ItemInput(id="new", image=query_images(old)[2], metadata={"kind": "discs"})])
        assert added.error is None
    with served(old) as (client, _):
        assert len(list(client.list_items("photos"))) == len(answers["items"])
        [hit] = client.search("photos", image=query_images(old)[2], k=1)
        assert (hit.id, hit.score) == ("new", pytest.approx(1.0, abs=2e-6))


def test_an_old_backup_is_restored_with_its_items_and_hits(old: Path, answers: Answers) -> None:
    with served(old) as (client, address):
        client.restore_collection("restored", old / "photos.backup")
        found = collection(address, "restored")
        same = ("encoder", "keepMedia", "itemCount", "indexSpec", "targetRecall", "filterKeys")
        assert {name: found.get(name) for name in same} == {name: answers["collection"].get(name) for name in same}
        assert [[item.id, dict(item.metadata)] for item in client.list_items("restored")] == answers["items"]
        assert_same_hits(searched(client, old, answers, "restored"), answers)
