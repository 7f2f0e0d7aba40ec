"""A store whose checks, backups and restores a test scripts, and what such tests have in common."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator

import grpc
import pytest

from embedserve.types import CheckProgress, CheckReport, Recall
from embedserve.v1 import collection_service_pb2 as pb

REPORT = CheckReport(
    items=20,
    segments=2,
    searched=20,
    recall=Recall(value=0.97, queries=100, real=True, measured_unix_s=1_700_000_000.5),
    problems=("items.sqlite: row 7 does not fit its checksum",),
)
BACKUP = bytes(range(256)) * (5 << 12)
"""5 MiB: more than fits the flow-control window of a stream that is not read."""


class Script:
    """What the store does instead of its real work."""

    def __init__(self) -> None:
        self.check: Callable[[Callable[[CheckProgress], None]], CheckReport] = lambda _: REPORT
        self.backup = BACKUP
        self.received = b""
        self.on_chunk: Callable[[], None] = lambda: None
        self.on_copy: Callable[[Callable[[], None]], None] = lambda on_progress: on_progress()
        """Called before the backup is ready."""
        self.on_received: Callable[[Callable[[], None]], None] = lambda on_progress: on_progress()
        """Called before the restored collection exists."""
        self.begun = threading.Event()
        self.ended = threading.Event()
        """A job of the store has ended, successfully or not."""


def code_of(call: Callable[[], object]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    code: grpc.StatusCode = raised.value.code()
    return code


def progress(done: int) -> CheckProgress:
    return CheckProgress("items", done, 20)


def forever(on_progress: Callable[[CheckProgress], None]) -> CheckReport:
    """A check that ends only when it is cancelled."""
    stage = 0
    while True:
        on_progress(CheckProgress(f"stage {stage}", 0, 0))  # a new stage is reported at once
        stage += 1


def until_stopped(on_progress: Callable[[], None]) -> None:
    """A long job that reports progress, which raises once the job is cancelled."""
    while True:
        time.sleep(0.001)
        on_progress()


def pieces(name: str, chunks: Iterable[bytes], sha256: bytes | None) -> Iterator[pb.RestoreCollectionRequest]:
    yield pb.RestoreCollectionRequest(name=name)
    for chunk in chunks:
        yield pb.RestoreCollectionRequest(chunk=chunk)
    if sha256 is not None:
        yield pb.RestoreCollectionRequest(sha256=sha256)
