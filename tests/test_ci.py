"""The workflow on GitHub runs what .ci/run runs, with the versions that pyproject.toml promises."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from scripts.lowest import lowest

REPOSITORY = Path(__file__).resolve().parents[1]
WORKFLOW = (REPOSITORY / ".github/workflows/ci.yml").read_text(encoding="utf-8")
PROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def job(name: str) -> str:
    """The text of a job."""
    found = re.search(rf"^  {name}:\n((?:    .*\n|\n)+)", WORKFLOW, re.MULTILINE)
    assert found is not None, f"there is no job {name!r}"
    return found[1]


def test_the_matrix_runs_what_everybody_runs() -> None:
    assert re.findall(r"- run: (.*)", job("test")) == ["bash .ci/run"]


def test_the_matrix_has_every_python_of_the_classifiers_from_the_oldest_that_is_allowed() -> None:
    [listed] = re.findall(r"python: \[(.*)\]", job("test"))
    versions = re.findall(r'"(3\.\d+)"', listed)
    classifiers = [entry.rpartition(" ")[2] for entry in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", entry)]
    assert versions[: len(classifiers)] == classifiers
    assert PROJECT["requires-python"] == f">={versions[0]}"


def test_the_lowest_versions_are_tried_with_the_oldest_python() -> None:
    text = job("lowest")
    assert "run: python scripts/lowest.py > lowest.txt" in text
    assert "--constraint lowest.txt" in text
    assert f'python-version: "{PROJECT["requires-python"].removeprefix(">=")}"' in text


# --- scripts/lowest.py ---------------------------------------------------------------------------------------------


def test_constraints_are_the_lower_bounds_of_dependencies_and_of_the_extras_for_users() -> None:
    project = {
        "name": "photos",
        "dependencies": ["numpy>=2.0", "protobuf>=6.31.1,<8", "runtime>=1.20; sys_platform == 'linux'"],
        "optional-dependencies": {"train": ["torch>=2.9"], "dev": ["photos[train]", "pytest>=8"], "peers": ["a==1"]},
    }
    assert lowest(project) == [
        "numpy==2.0",
        "protobuf==6.31.1",
        "runtime==1.20 ; sys_platform == 'linux'",
        "torch==2.9",
    ]


def test_a_dependency_without_a_lower_bound_is_an_error() -> None:
    with pytest.raises(ValueError, match="'rich<15' has no lower bound"):
        lowest({"name": "photos", "dependencies": ["rich<15"], "optional-dependencies": {}})


def test_every_dependency_of_users_has_a_lower_bound() -> None:
    assert len(lowest(PROJECT)) == len({entry.partition("==")[0] for entry in lowest(PROJECT)}) >= 20
