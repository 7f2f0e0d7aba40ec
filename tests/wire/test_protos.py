"""What is generated from protos/ is committed unchanged, and keeps the rules of the wire."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions

from embedserve.types import Limits
from embedserve.v1 import collection_service_pb2, embedding_service_pb2, search_service_pb2

REPOSITORY = Path(__file__).resolve().parents[2]

SERVICES: list[ServiceDescriptor] = [
    service
    for module in (embedding_service_pb2, search_service_pb2, collection_service_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
]
CALLS: list[MethodDescriptor] = [call for service in SERVICES for call in service.methods]


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the output of `make proto`."""
    root = tmp_path_factory.mktemp("generated")
    command = [sys.executable, str(REPOSITORY / "scripts/proto.py"), "--root", str(root)]
    subprocess.run(command, capture_output=True, text=True, check=True)
    return root


def contents(root: Path, folder: str, pattern: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((root / folder).glob(pattern))}


def test_the_committed_code_is_generated_from_the_protos(generated: Path) -> None:
    committed = contents(REPOSITORY, "embedserve/v1", "*_pb2*")
    ours = contents(generated, "embedserve/v1", "*")
    assert committed.keys() == ours.keys()
    assert [name for name in ours if committed[name] != ours[name]] == [], "run: make proto"


def test_the_committed_reference_is_generated_from_the_comments(generated: Path) -> None:
    assert contents(REPOSITORY, "docs", "wire.md") == contents(generated, "docs", "*"), "run: make proto"


def test_the_committed_code_runs_with_every_protobuf_since_6_31() -> None:
    # Code of protobuf 6.31 runs with the runtimes 6.31 to 7.x, that of a newer compiler not with older runtimes.
    for name, content in contents(REPOSITORY, "embedserve/v1", "*_pb2.py").items():
        assert b"# Protobuf Python Version: 6.31.1\n" in content, name


def test_every_call_has_its_own_request_and_response() -> None:
    for call in CALLS:
        assert call.input_type.name == f"{call.name}Request"
        assert call.output_type.name == f"{call.name}Response"


def test_calls_without_side_effects_and_idempotent_calls_are_marked() -> None:
    levels = {
        MethodOptions.NO_SIDE_EFFECTS: {
            *["Embed", "EmbedStream", "GetEncoder", "GetServerInfo", "Search"],
            *["GetCollection", "ListCollections", "GetItems", "ListItems", "BackupCollection", "CheckCollection"],
            "CountItems",
        },
        MethodOptions.IDEMPOTENT: {
            *["DeleteCollection", "SetAlias", "Upsert", "UpsertStream", "DeleteItems", "UpdateMetadata"]
        },
        MethodOptions.IDEMPOTENCY_UNKNOWN: {"CreateCollection", "RestoreCollection"},
    }
    for level, names in levels.items():
        assert {call.name for call in CALLS if call.GetOptions().idempotency_level == level} == names


def test_every_limit_of_the_server_is_published() -> None:
    published = [field.name for field in embedding_service_pb2.ServerLimits.DESCRIPTOR.fields]
    assert published == [limit.name for limit in fields(Limits)]
