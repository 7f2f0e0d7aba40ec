"""The files that an older version wrote, and what it answered about them; write.py says how they were made."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A folder with images/, run/, encoder.onnx, data/ and photos.backup, which tests may change."""
    with tarfile.open(HERE / "old.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.fixture(scope="session")
def answers() -> dict[str, Any]:
    """What the older version answered."""
    document: dict[str, Any] = json.loads((HERE / "answers.json").read_text())
    return document
