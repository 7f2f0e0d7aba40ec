"""Writes of several callers go to disk together: one sync for all who wait.

Whoever comes first commits alone. While he does, others gather; the next one of them commits for all. So nobody waits
for company, and the more callers there are, the fewer syncs a write costs (databases call it group commit).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")


class _Waiting(Generic[_T, _R]):
    def __init__(self, write: _T) -> None:
        self.write = write
        self.result: _R | None = None
        self.error: Exception | None = None
        self.done = False


class Commits(Generic[_T, _R]):
    """Carries out writes, several at a time.

    Args:
        commit: carries out some writes, all or none of them, and gives a result for each. Called by one thread at a
            time, which holds ``lock``.
        most: how many go together.
    """

    def __init__(self, commit: Callable[[Sequence[_T]], Sequence[_R]], most: int = 64) -> None:
        self.lock = threading.RLock()
        """Held while something is committed; whoever else holds it makes writers wait."""
        self._commit = commit
        self._most = most
        self._gathered: deque[_Waiting[_T, _R]] = deque()
        self._gathering = threading.Lock()

    def do(self, write: _T) -> _R:
        """The result of a write, once it is committed.

        Raises:
            Exception: whatever ``commit`` raised for this write alone.
        """
        mine: _Waiting[_T, _R] = _Waiting(write)
        with self._gathering:
            self._gathered.append(mine)
        with self.lock:
            if not mine.done:
                self._carry_out(self._group(mine))
        if mine.error is not None:
            raise mine.error
        return mine.result  # type: ignore[return-value]  # set where there is no error

    def _group(self, mine: _Waiting[_T, _R]) -> list[_Waiting[_T, _R]]:
        with self._gathering:
            group = [self._gathered.popleft() for _ in range(min(self._most, len(self._gathered)))]
            if mine not in group:
                # It stands further behind; or whoever took it was interrupted and did not get to it.
                group.append(mine)
                if mine in self._gathered:
                    self._gathered.remove(mine)
        return group

    def _carry_out(self, group: list[_Waiting[_T, _R]]) -> None:
        try:
            results = self._commit([waiting.write for waiting in group])
        except Exception as error:
            if len(group) == 1:
                group[0].error, group[0].done = error, True
                return
            # What is wrong with one write, or too much for the disk together, concerns the others not.
            for waiting in group:
                self._carry_out([waiting])
            return
        for waiting, result in zip(group, results, strict=True):
            waiting.result, waiting.done = result, True
