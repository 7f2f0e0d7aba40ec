"""Fixtures over a local store, for the conftest of each folder whose tests open one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from embedserve.store.local.store import LocalStore
from tests.sizes import small_delta
from tests.store.store_cases import new_collection


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Path of a data directory that does not exist yet."""
    return tmp_path / "data"


@pytest.fixture
def store(data: Path) -> Iterator[LocalStore]:
    """A store with the empty collection "photos" of dimension 4."""
    with LocalStore.open(data) as opened:
        new_collection(opened)
        yield opened


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start a new delta after every eight rows."""
    small_delta(monkeypatch, rows=8)
