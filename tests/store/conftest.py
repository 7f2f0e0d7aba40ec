from __future__ import annotations

from tests.store.fixtures import data, small_segments, store

__all__ = ["data", "small_segments", "store"]
