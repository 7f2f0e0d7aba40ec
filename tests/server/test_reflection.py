"""A client without our generated code: all it knows comes from the server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.fakes import picture


class Reflected:
    """Calls by name, with messages from the descriptors of server reflection."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self._reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        self._pool = descriptor_pool.DescriptorPool()
        self._known: set[str] = set()

    def services(self) -> set[str]:
        answer = self._ask(reflection_pb2.ServerReflectionRequest(list_services=""))
        return {service.name for service in answer.list_services_response.service}

    def call(self, service: str, method: str, **fields: Any) -> Any:
        self._learn(self._ask(reflection_pb2.ServerReflectionRequest(file_containing_symbol=service)))
        descriptor = self._pool.FindServiceByName(service).methods_by_name[method]
        request = message_factory.GetMessageClass(descriptor.input_type)(**fields)
        response = message_factory.GetMessageClass(descriptor.output_type)
        invoke: Any = self._channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response.FromString,
        )
        return invoke(request, timeout=20)

    def _ask(self, request: reflection_pb2.ServerReflectionRequest) -> Any:
        [answer] = self._reflection.ServerReflectionInfo(iter([request]), timeout=20)
        return answer

    def _learn(self, answer: Any) -> None:
        files = [
            descriptor_pb2.FileDescriptorProto.FromString(data)
            for data in answer.file_descriptor_response.file_descriptor_proto
        ]
        for file in files:
            if file.name in self._known:
                continue
            for dependency in file.dependency:
                if dependency not in self._known:
                    self._learn(self._ask(reflection_pb2.ServerReflectionRequest(file_by_filename=dependency)))
            if file.name not in self._known:
                self._pool.Add(file)
                self._known.add(file.name)


@pytest.fixture
def reflected(address: str) -> Iterator[Reflected]:
    with grpc.insecure_channel(address) as channel:
        yield Reflected(channel)


def test_reflection_lists_every_service(reflected: Reflected) -> None:
    assert reflected.services() == {
        "embedserve.v1.EmbeddingService",
        "embedserve.v1.SearchService",
        "embedserve.v1.CollectionService",
        "embedserve.v1.AdminService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }


def test_a_client_without_our_code_embeds_adds_and_searches(reflected: Reflected) -> None:
    embedded = reflected.call("embedserve.v1.EmbeddingService", "Embed", images=[picture(1), picture(2)])
    vectors = [list(result.vector.values) for result in embedded.results]
    assert [sum(number**2 for number in vector) for vector in vectors] == pytest.approx([1, 1], abs=1e-5)

    reflected.call("embedserve.v1.CollectionService", "CreateCollection", name="photos")
    items = [{"id": str(seed), "image": picture(seed)} for seed in range(6)]
    written = reflected.call("embedserve.v1.CollectionService", "Upsert", collection="photos", items=items)
    assert [result.id for result in written.results] == ["0", "1", "2", "3", "4", "5"]

    found = reflected.call(
        "embedserve.v1.SearchService",
        "Search",
        collection="photos",
        queries=[{"image": picture(4)}, {"vector": {"values": vectors[0]}}, {"item_id": "5"}],
        k=2,
        encoder_fingerprint=embedded.encoder.fingerprint,
    )
    best = [result.hits.hits[0] for result in found.results]
    assert (best[0].id, best[1].id) == ("4", "1")
    assert best[2].id != "5"
