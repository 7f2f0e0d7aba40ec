from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from embedserve import Client
from embedserve.store.local.store import LocalStore
from embedserve.types import CheckProgress, CheckReport, CollectionInfo, Keep
from embedserve.v1.collection_service_pb2_grpc import CollectionServiceStub
from tests.fakes import FakeEncoder
from tests.running import serving
from tests.server.services.scripted_store import Script


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    script = Script()

    def check_collection(_: LocalStore, name: str, on_progress: Callable[[CheckProgress], None]) -> CheckReport:
        script.begun.set()
        try:
            return script.check(on_progress)
        finally:
            script.ended.set()

    @contextmanager
    def backup_collection(_: LocalStore, name: str, on_progress: Callable[[], None]) -> Iterator[io.BytesIO]:
        script.begun.set()
        try:
            script.on_copy(on_progress)
            yield io.BytesIO(script.backup)
        finally:
            script.ended.set()

    def restore_collection(
        store: LocalStore, name: str, chunks: Iterable[bytes], on_progress: Callable[[], None]
    ) -> CollectionInfo:
        script.begun.set()
        try:
            received = []
            for chunk in chunks:
                received.append(chunk)
                script.on_chunk()
            script.received = b"".join(received)
            script.on_received(on_progress)
            return store.create_collection(name, fingerprint="ab" * 32, encoder_name="a", dimension=3, keep=Keep.NONE)
        finally:
            script.ended.set()

    monkeypatch.setattr(LocalStore, "check_collection", check_collection)
    monkeypatch.setattr(LocalStore, "backup_collection", backup_collection)
    monkeypatch.setattr(LocalStore, "restore_collection", restore_collection)
    return script


@pytest.fixture
def target(script: Script, tmp_path: Path) -> Iterator[str]:
    """A server with an empty collection photos."""
    with serving(FakeEncoder(), tmp_path / "data") as address:
        with Client(address) as client:
            client.create_collection("photos")
        yield address


@pytest.fixture
def client(target: str) -> Iterator[Client]:
    with Client(target, timeout_s=20) as client:
        yield client


@pytest.fixture
def stub(target: str) -> Iterator[Any]:
    with grpc.insecure_channel(target) as channel:
        yield CollectionServiceStub(channel)
