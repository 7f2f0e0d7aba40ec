"""Processes that join, agree, and end together; and what is reported if they cannot."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from embedserve.errors import DataError, EmbedserveError, SetupError
from embedserve_training.distributed.launch import ProcessGroup, join_process_group

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""The environment variables of ``torchrun``."""


@pytest.fixture(autouse=True)
def not_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)


def fail() -> None:
    raise DataError("there are no images")


def test_without_torchrun_there_is_one_process_which_is_the_first() -> None:
    with join_process_group("auto") as group:
        assert (group.processes.count, group.is_first) == (1, True)
        assert group.all_reduce_max(3, -1.5, False) == [3, -1.5, False]
        assert group.mean(0.25) == 0.25
        assert group.broadcast_from_first(lambda: "found") == "found"
    assert not dist.is_initialized()


def test_a_single_process_of_torchrun_exchanges_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    with join_process_group("cpu") as group:
        assert group.processes.count == 1
    assert not dist.is_initialized()


def test_in_a_single_process_a_failure_is_raised_unchanged() -> None:
    with pytest.raises(DataError, match="there are no images"), ProcessGroup().fail_together():
        fail()
    with pytest.raises(DataError, match="there are no images"):
        ProcessGroup().broadcast_from_first(fail)


def test_more_processes_than_gpus_are_refused_with_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with (
        pytest.raises(SetupError, match="process 3 of this machine has no GPU: there are 2") as refused,
        join_process_group("auto"),
    ):
        pass
    assert "--nproc-per-node 2" in refused.value.hint


def test_environment_variables_without_torchrun_are_refused_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    what = "WORLD_SIZE is 4, but the processes cannot connect"
    with pytest.raises(SetupError, match=what) as refused, join_process_group("cpu"):
        pass
    assert "torchrun" in refused.value.hint


def work(folder: str) -> None:
    """One of three processes: its agreements with the others, until process 2 ends without notice."""
    outcomes: dict[str, Any] = {}
    rank = int(os.environ["RANK"])
    try:
        with join_process_group("cpu") as group:
            outcomes["highest"] = group.all_reduce_max(rank, -rank, rank == 1)
            outcomes["mean"] = group.mean(rank)
            outcomes["found"] = group.broadcast_from_first(lambda: {"by": rank})
            with group.fail_together():
                outcomes["nobody failed"] = True
            if rank == 2:
                os._exit(3)
            group.all_reduce_max(0)
    except EmbedserveError as error:
        outcomes["lost"] = [type(error).__name__, error.message]
    except BaseException:
        outcomes["unexpected"] = traceback.format_exc()
    Path(folder, f"{rank}.json").write_text(json.dumps(outcomes))


def fail_in_1_and_2(folder: str) -> None:
    """One of three processes, of which two fail with different errors."""
    rank = int(os.environ["RANK"])
    outcome: list[Any] = []
    try:
        with join_process_group("cpu") as group, group.fail_together():
            if rank == 1:
                fail()
            if rank == 2:
                raise SetupError("there is no disk")
    except EmbedserveError as error:
        outcome = [type(error).__name__, error.message]
    except SystemExit as end:
        # This process may end only now: the one that reports has done so.
        outcome = ["SystemExit", end.code, Path(folder, "1.json").exists()]
    Path(folder, f"{rank}.json").write_text(json.dumps(outcome))


def launched(function: str, folder: Path) -> list[Any]:
    """The output of three processes that run a function of this module."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = f"import sys; from tests.training.distributed.test_launch import {function}; {function}(sys.argv[1])"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(folder)],
            env={
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "3",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
            stderr=subprocess.DEVNULL,
        )
        for rank in range(3)
    ]
    for process in processes:
        process.wait()
    paths = [folder / f"{rank}.json" for rank in range(3)]
    return [json.loads(path.read_text()) if path.exists() else None for path in paths]


def test_processes_agree_and_a_lost_one_is_noticed_by_the_others(tmp_path: Path) -> None:
    *others, lost = launched("work", tmp_path)
    assert lost is None
    for rank, outcomes in enumerate(others):
        assert "unexpected" not in outcomes, outcomes["unexpected"]
        assert outcomes["highest"] == [2, 0, 1]
        assert outcomes["mean"] == 1
        assert outcomes["found"] == {"by": 0}
        assert outcomes["nobody failed"]
        kind, message = outcomes["lost"]
        assert kind == "TrainingError"
        assert message.startswith(f"process {rank} has lost the connection to another process of the run")


def test_the_first_process_that_failed_reports_and_the_others_wait_for_it_to_end(tmp_path: Path) -> None:
    outcomes = launched("fail_in_1_and_2", tmp_path)
    assert outcomes == [
        ["SystemExit", 1, True],
        ["DataError", "there are no images"],
        ["SystemExit", 1, True],
    ]
