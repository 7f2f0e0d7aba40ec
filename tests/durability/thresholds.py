"""Small thresholds of the store, so that a test of seconds reaches what otherwise takes a million items."""

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
    # So few that files are closed and opened again all the time.
    "embedserve.store.local.records.open_files._LEAST": 4,
    "embedserve.store.local.records.open_files._MOST": 4,
    "embedserve.store.local.reserve._MOST_BYTES": 64 << 10,
}

DELETED_AT_ONCE: dict[str, object] = {"embedserve.store.local.collection.collection._BATCH": 3}
"""So that a crash interrupts a deletion by filter."""


def lower() -> None:
    """Set them for the rest of this process."""
    for path, value in {**SMALL, **DELETED_AT_ONCE}.items():
        module, _, name = path.rpartition(".")
        found = importlib.import_module(module)
        assert hasattr(found, name), path
        found.__dict__[name] = value


@contextmanager
def lowered(*, few_deleted_at_once: bool = False) -> Iterator[None]:
    """Set them for a block."""
    with pytest.MonkeyPatch.context() as patch:
        for path, value in {**SMALL, **(DELETED_AT_ONCE if few_deleted_at_once else {})}.items():
            patch.setattr(path, value)
        yield
