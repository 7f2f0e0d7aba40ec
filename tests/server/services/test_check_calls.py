"""Checks over a real socket, of a scripted store."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from embedserve import Client
from embedserve.errors import (
    CollectionNotFound,
    InternalError,
)
from embedserve.server.services import collections
from embedserve.types import CheckProgress, CheckReport
from embedserve.v1 import collection_service_pb2 as pb
from tests.fakes import FakeEncoder
from tests.server.services.scripted_store import (
    REPORT,
    Script,
    code_of,
    forever,
    progress,
)


def test_a_check_reports_its_progress_and_then_its_findings(client: Client, script: Script) -> None:
    def check(on_progress: Callable[[CheckProgress], None]) -> CheckReport:
        on_progress(CheckProgress("items", 0, 20))
        on_progress(CheckProgress("search", 5, 20))
        return REPORT

    script.check = check
    told: list[CheckProgress] = []
    assert client.check_collection("photos", told.append) == REPORT
    assert told == [CheckProgress("items", 0, 20), CheckProgress("search", 5, 20)]


def test_a_check_reports_progress_a_few_times_a_second_however_often_the_store_does(
    client: Client, script: Script
) -> None:
    def check(on_progress: Callable[[CheckProgress], None]) -> CheckReport:
        for done in range(20_000):
            on_progress(CheckProgress("items", done, 20_000))
        return REPORT

    script.check = check
    told: list[CheckProgress] = []
    client.check_collection("photos", told.append)
    assert told[0] == CheckProgress("items", 0, 20_000)
    assert len(told) < 100


def test_a_check_without_progress_still_reports_that_it_is_running(
    client: Client, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collections, "_KEEP_ALIVE_S", 0.01)
    said = threading.Semaphore(0)

    def check(on_progress: Callable[[CheckProgress], None]) -> CheckReport:
        on_progress(progress(3))
        for _ in range(3):
            assert said.acquire(timeout=20)
        return REPORT

    script.check = check
    told: list[CheckProgress] = []

    def tell(step: CheckProgress) -> None:
        told.append(step)
        said.release()

    assert client.check_collection("photos", tell) == REPORT
    assert {*told} <= {CheckProgress("waiting", 0, 0), progress(3)}
    assert len(told) >= 3


def test_a_cancelled_check_ends(stub: Any, script: Script) -> None:
    script.check = forever
    call = stub.CheckCollection(pb.CheckCollectionRequest(name="photos"))
    assert next(call).progress.stage == "stage 0"
    call.cancel()
    assert script.ended.wait(20)


def test_a_bug_in_a_check_is_reported_as_one(client: Client, script: Script) -> None:
    def check(on_progress: Callable[[CheckProgress], None]) -> CheckReport:
        raise ZeroDivisionError

    script.check = check
    with pytest.raises(InternalError, match="this is a bug in embedserve: ZeroDivisionError"):
        client.check_collection("photos")


@pytest.mark.parametrize("work", ["check", "backup"])
def test_a_job_on_a_missing_collection_is_refused(client: Client, work: str, tmp_path: Path) -> None:
    with pytest.raises(CollectionNotFound):
        client.check_collection("none") if work == "check" else client.backup_collection("none", tmp_path / "b")
    assert list(tmp_path.glob("*b*")) == []


def test_a_request_that_is_not_a_message_is_refused(target: str) -> None:
    with grpc.insecure_channel(target) as channel:
        check: Any = channel.unary_stream("/embedserve.v1.CollectionService/CheckCollection")
        restore: Any = channel.stream_unary("/embedserve.v1.CollectionService/RestoreCollection")
        assert code_of(lambda: list(check(b"\xff"))) is grpc.StatusCode.INVALID_ARGUMENT
        assert code_of(lambda: restore(iter([b"\xff"]))) is grpc.StatusCode.INVALID_ARGUMENT


def test_at_most_two_jobs_run_at_a_time_and_searches_continue(
    client: Client, stub: Any, script: Script, tmp_path: Path
) -> None:
    let_go = threading.Event()
    entered = threading.Semaphore(0)

    def check(on_progress: Callable[[CheckProgress], None]) -> CheckReport:
        entered.release()
        assert let_go.wait(20)
        return REPORT

    script.check = check
    request = pb.CheckCollectionRequest(name="photos")
    checks = [stub.CheckCollection(request) for _ in range(3)]
    assert entered.acquire(timeout=20)
    assert entered.acquire(timeout=20)
    assert client.search("photos", vector=[1.0] * 16, encoder_fingerprint=FakeEncoder().fingerprint) == []
    assert not entered.acquire(timeout=0.1)
    let_go.set()
    assert [list(check)[-1].report.item_count for check in checks] == [20, 20, 20]
