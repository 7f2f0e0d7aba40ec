"""Thresholds of the store made so small that a test of seconds reaches what otherwise takes a million items."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

SMALL: dict[str, object] = {
    "embedserve.index.delta._BYTES": 0,
    "embedserve.index.delta._ROWS": 8,
    "embedserve.index.compaction._MANY_BYTES": 3_000,
    "embedserve.index.compaction._SOME_BYTES": 3_000,
    "embedserve.index.compaction._FEW_BYTES": 1_000,
    "embedserve.store.local.upkeep.maintenance._LOOK_S": 0.01,
    "embedserve.store.local.records.records._LOG_BYTES": 200_000,
}


def make_small() -> None:
    """For a process of its own, which ends with these values."""
    for path, value in SMALL.items():
        module, _, name = path.rpartition(".")
        found = importlib.import_module(module)
        assert hasattr(found, name), path
        found.__dict__[name] = value


@contextmanager
def small_parts() -> Iterator[None]:
    """For a block."""
    with pytest.MonkeyPatch.context() as patch:
        for path, value in SMALL.items():
            patch.setattr(path, value)
        yield
