"""What ``serve`` sets up before it serves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.cli.outcome import Cli

SETTINGS = {"OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_NUM_THREADS": "1"}


@pytest.mark.parametrize("given", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}, {"OPENBLAS_NUM_THREADS": "4"}])
def test_numpy_and_faiss_keep_to_the_thread_that_calls_them_unless_the_environment_says_otherwise(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: dict[str, str]
) -> None:
    for name in SETTINGS:
        monkeypatch.setenv(name, "")  # so that it is put back afterwards
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    seen: dict[str, str] = {}

    def run(*_: Any, **__: Any) -> None:
        seen.update({name: os.environ.get(name, "") for name in SETTINGS})

    monkeypatch.setattr("embedserve.server.process.run", run)
    (tmp_path / "encoder.onnx").touch()
    assert cli("serve", tmp_path / "encoder.onnx").exit_code == 0
    assert seen == SETTINGS | given
