"""What every test run does: it reports slow tests without a mark, and it can do without PyTorch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from tests.conftest import NEED_TORCH, SLOW_S, slow_without_mark

REPOSITORY = Path(__file__).resolve().parents[1]


def report(name: str, duration: float, *marks: str, when: Literal["setup", "call"] = "call") -> pytest.TestReport:
    return pytest.TestReport(
        nodeid=name,
        location=("test_file.py", 1, name),
        keywords=dict.fromkeys(marks, 1),
        outcome="passed",
        longrepr=None,
        when=when,
        duration=duration,
    )


def test_tests_above_the_limit_without_a_mark_are_reported_longest_first() -> None:
    reports = [report("a", SLOW_S + 1), report("b", SLOW_S), report("c", SLOW_S + 2), report("d", 60, "slow")]
    assert slow_without_mark(reports) == [(SLOW_S + 2, "c"), (SLOW_S + 1, "a")]


def test_the_time_of_a_fixture_does_not_make_its_first_test_slow() -> None:
    assert slow_without_mark([report("a", SLOW_S + 1, when="setup")]) == []


def run_pytest(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
    )


def test_without_torch_nothing_can_import_it(tmp_path: Path) -> None:
    (tmp_path / "torch.py").touch()  # could be imported otherwise, even where PyTorch is not installed
    (tmp_path / "test_import.py").write_text(
        "import subprocess, sys\n"
        "import pytest\n"
        "def test_here() -> None:\n"
        "    with pytest.raises(ModuleNotFoundError):\n"
        "        import torch\n"
        "def test_in_a_process() -> None:\n"
        "    assert subprocess.run([sys.executable, '-c', 'import torch']).returncode == 1\n"
    )
    arguments = ["--rootdir", str(tmp_path), "-c", os.devnull, "-p", "tests.conftest", "--without-torch", str(tmp_path)]
    done = run_pytest(*arguments, PYTHONPATH=f"{REPOSITORY}{os.pathsep}{tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_without_torch_the_tests_that_need_it_are_left_out() -> None:
    folders = [str(folder) for folder in NEED_TORCH]
    done = run_pytest("--without-torch", "--collect-only", *folders, "tests/test_conftest.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {line.split("::")[0] for line in done.stdout.splitlines() if "::" in line} == {"tests/test_conftest.py"}
