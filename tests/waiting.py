"""Waiting for a condition instead of sleeping for a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

_INTERVAL_S = 0.005


def wait_until(condition: Callable[[], object], timeout_s: float = 20) -> None:
    """Return as soon as the condition is true; AssertionError after the timeout."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, f"not true within {timeout_s:g} s"
        time.sleep(_INTERVAL_S)


async def until(condition: Callable[[], object], timeout_s: float = 20) -> None:
    """``wait_until`` for coroutines: the event loop goes on meanwhile."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, f"not true within {timeout_s:g} s"
        await asyncio.sleep(_INTERVAL_S)
