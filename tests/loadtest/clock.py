"""An event loop in simulated time: a sleep of an hour returns at once, and takes exactly an hour."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

_ResultT = TypeVar("_ResultT")


class _Skipping(selectors.SelectSelector):
    """Advances the time instead of waiting."""

    now_s = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now_s += timeout or 0
        return super().select(0 if timeout is not None else None)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._skipping = _Skipping()
        super().__init__(self._skipping)

    def time(self) -> float:
        return self._skipping.now_s


def run(main: Coroutine[Any, Any, _ResultT]) -> _ResultT:
    """``asyncio.run`` in simulated time."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(main)
