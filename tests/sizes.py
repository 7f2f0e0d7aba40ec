"""Sizes and intervals of ours that many tests lower, so that seconds and a few rows reach what takes a million."""

from __future__ import annotations

import pytest


def small_delta(patch: pytest.MonkeyPatch, rows: int) -> None:
    """Start a new delta after so few rows."""
    patch.setattr("embedserve.index.delta._BYTES", 0)
    patch.setattr("embedserve.index.delta._ROWS", rows)


def small_seals(
    patch: pytest.MonkeyPatch, *, few_bytes: int, some_bytes: int | None = None, many_bytes: int | None = None
) -> None:
    """Seal waiting rows of so few bytes: while nothing is written, some time after the last build, and in any case."""
    for name, value in {"_FEW_BYTES": few_bytes, "_SOME_BYTES": some_bytes, "_MANY_BYTES": many_bytes}.items():
        if value is not None:
            patch.setattr(f"embedserve.index.compaction.{name}", value)


def fast_retries(patch: pytest.MonkeyPatch) -> None:
    """Let a client ask again after a millisecond when no server answers."""
    patch.setattr("embedserve.client.failures._UNAVAILABLE_PAUSE_S", 0.001)
