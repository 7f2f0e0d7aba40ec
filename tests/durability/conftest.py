"""The numbers of the durability tests: printed at the end, and written to the file in CRASH_JSON."""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

from tests.store.fixtures import data, store

__all__ = ["data", "store"]

_PARTS: dict[str, dict[str, int]] = {}


@pytest.fixture
def count() -> Callable[..., None]:
    """``count("power loss", points=3, lost=0)`` adds to the numbers of a part."""

    def add(part: str, **numbers: int) -> None:
        sums = _PARTS.setdefault(part, {})
        for name, number in numbers.items():
            sums[name] = sums.get(name, 0) + number

    return add


@pytest.fixture
def work() -> Iterator[Path]:
    """An empty directory, in memory where possible: these tests create thousands of data directories."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield Path(name)


@pytest.fixture
def seed() -> int:
    """Seed of all random choices; CRASH_SEED repeats a run."""
    return int(os.environ.get("CRASH_SEED", "1"))


@pytest.fixture
def thorough() -> int:
    """How often a test is repeated with other seeds, or how much denser it checks: 1 in `make test`."""
    return int(os.environ.get("CRASH_THOROUGH", "1"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _PARTS:
        return
    terminalreporter.section("crash tests")
    for part, numbers in sorted(_PARTS.items()):
        terminalreporter.line(f"{part}: " + ", ".join(f"{number:,} {name}" for name, number in numbers.items()))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    path = os.environ.get("CRASH_JSON")
    if not path or not _PARTS:
        return
    report = {
        "passed": exitstatus == 0,
        "failed_tests": session.testsfailed,
        "seed": int(os.environ.get("CRASH_SEED", "1")),
        "parts": {part: {name.replace(" ", "_"): n for name, n in numbers.items()} for part, numbers in _PARTS.items()},
        "versions": {
            "python": platform.python_version(),
            "sqlite": sqlite3.sqlite_version,
            "sqlite_of_apsw": apsw.sqlite_lib_version(),
        },
    }
    Path(path).write_text(json.dumps(report, indent=1, sort_keys=True) + "\n", encoding="utf-8")
