"""What tests of several rooms share. Imports only pytest and the standard library: the GPU tests load it on machines
that have little else."""

from __future__ import annotations

import importlib.util
import io
import os
import runpy
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TESTS = Path(__file__).resolve().parent
NEED_TORCH = (TESTS / "training", TESTS / "lightly")
SLOW_S = 10.0
"""A test whose call takes longer is marked ``slow``."""


class Encode(Protocol):
    """Makes an image file from drawn pixels."""

    def __call__(self, width: int = 64, height: int = 48, seed: int = 0) -> bytes: ...


# --- Without PyTorch -----------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--without-torch", action="store_true", help="run as if PyTorch were not installed")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--without-torch"):
        hide_torch()
    if hasattr(config, "workerinput"):
        # Of pytest-xdist there is a process for each core already; threads of OpenMP that wait for one another spin.
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def hide_torch() -> None:
    """Make ``import torch`` raise ModuleNotFoundError, in this process and in those that it starts."""
    folder = str(TESTS / "without_torch")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
    runpy.run_path(f"{folder}/sitecustomize.py")


def torch_is_here() -> bool:
    """Whether tests may import PyTorch."""
    return importlib.util.find_spec("torch") is not None


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    needs_torch = any(collection_path.is_relative_to(folder) for folder in NEED_TORCH)
    return True if needs_torch and not torch_is_here() else None


def pytest_report_header() -> str | None:
    return None if torch_is_here() else "without PyTorch: tests/training and tests/lightly are left out"


@pytest.fixture(scope="session", autouse=True)
def _torch_stays_out(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if request.config.getoption("--without-torch"):
        assert sys.modules.get("torch") is None, "a test has imported PyTorch"


# --- Time ----------------------------------------------------------------------------------------------------------


def slow_without_mark(reports: Iterable[pytest.TestReport]) -> list[tuple[float, str]]:
    """Seconds and name of each test that is not marked ``slow`` though its call took more than ``SLOW_S``."""
    found = [
        (report.duration, report.nodeid)
        for report in reports
        if report.when == "call" and report.duration > SLOW_S and "slow" not in report.keywords
    ]
    return sorted(found, reverse=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [
        report
        for outcome in ("passed", "failed", "xfailed")
        for report in terminalreporter.stats.get(outcome, [])
        if isinstance(report, pytest.TestReport)
    ]
    if found := slow_without_mark(reports):
        terminalreporter.section(f"not marked slow, and took more than {SLOW_S:.0f} s")
        for seconds, name in found:
            terminalreporter.line(f"{seconds:7.1f} s  {name}")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Under pytest-xdist, begin with the files that have slow tests, so that no process is left alone with one.

    pytest-randomly has shuffled by now; the order stays random among the files with slow tests and among the others.
    """
    if hasattr(config, "workerinput"):
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)


# --- Fixtures ------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("EMBEDSERVE_"):
            monkeypatch.delenv(name)


@pytest.fixture
def jpeg_bytes() -> Encode:
    """``jpeg_bytes(width, height, seed)``: a JPEG of a smooth picture, different for each seed."""

    def encode(width: int = 64, height: int = 48, seed: int = 0) -> bytes:
        return _encode(_picture(width, height, seed), "JPEG", quality=92)

    return encode


@pytest.fixture
def png_bytes() -> Encode:
    """The same as ``jpeg_bytes`` in a format that keeps every pixel."""

    def encode(width: int = 64, height: int = 48, seed: int = 0) -> bytes:
        return _encode(_picture(width, height, seed), "PNG")

    return encode


def _picture(width: int, height: int, seed: int) -> NDArray[np.uint8]:
    """uint8 [H, W, 3]: waves in three colours."""
    import numpy as np

    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    waves = [np.sin(x * a + y * b + c) for a, b, c in random.uniform(-12, 12, size=(3, 3))]
    return ((np.stack(waves, axis=-1) + 1) * 127.5).astype(np.uint8)


def _encode(pixels: NDArray[np.uint8], format: str, **options: Any) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format, **options)
    return out.getvalue()
