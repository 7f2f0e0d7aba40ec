"""Writes of several callers go to disk together: one sync for all who wait.

Whoever comes first commits alone. While he does, others gather; the next one of them commits for all. So nobody waits
for company, and the more callers there are, the fewer syncs a write costs (databases call it group commit).
"""

from __future__ import annotations

import threading
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
        self.leads = False
        self.woken = threading.Event()
        """Set when it is done, or has to lead."""

    def finish(self) -> None:
        self.done = True
        self.woken.set()

    def lead(self) -> None:
        self.leads = True
        self.woken.set()


class Commits(Generic[_T, _R]):
    """Carries out writes, several at a time.

    Those whose write is committed are woken one by one, and do not stand in line for ``lock``: there they came after
    writers with new writes, who then committed nearly alone.

    Args:
        commit: carries out some writes, all or none of them, and gives a result for each. Called by one thread at a
            time, which holds ``lock``.
        most: how many go together.
    """

    def __init__(self, commit: Callable[[Sequence[_T]], Sequence[_R]], most: int = 64) -> None:
        self.lock = threading.RLock()
        """Held while something is committed; whoever else holds it makes writers wait, and must not write himself."""
        self._commit = commit
        self._most = most
        self._gathered: list[_Waiting[_T, _R]] = []
        """Nobody, or the one who leads and those who came after him."""
        self._led = False
        """Whether somebody commits, or is about to."""
        self._gathering = threading.Lock()

    def do(self, write: _T) -> _R:
        """The result of a write, once it is committed.

        Raises:
            Exception: whatever ``commit`` raised for this write alone.
        """
        mine: _Waiting[_T, _R] = _Waiting(write)
        try:
            with self._gathering:
                self._gathered.append(mine)
                if not self._led:
                    self._led = True
                    mine.lead()
            mine.woken.wait()
            if mine.leads:
                with self.lock:
                    with self._gathering:
                        group = self._gathered[: self._most]
                    self._carry_out(group)
        finally:
            self._leave(mine)
        if mine.error is not None:
            raise mine.error
        return mine.result  # type: ignore[return-value]  # set where there is no error

    def _leave(self, mine: _Waiting[_T, _R]) -> None:
        with self._gathering:
            if mine.leads:
                # If this one was interrupted, others of its group are not done; they come first.
                self._gathered = [waiting for waiting in self._gathered if not waiting.done and waiting is not mine]
                if self._gathered:
                    self._gathered[0].lead()
                else:
                    self._led = False
            elif not mine.done and mine in self._gathered:
                self._gathered.remove(mine)  # interrupted while it waited

    def _carry_out(self, group: Sequence[_Waiting[_T, _R]]) -> None:
        try:
            results = self._commit([waiting.write for waiting in group])
        except Exception as error:
            if len(group) == 1:
                group[0].error = error
                group[0].finish()
                return
            # What is wrong with one write, or too much for the disk together, concerns the others not.
            for waiting in group:
                self._carry_out([waiting])
            return
        for waiting, result in zip(group, results, strict=True):
            waiting.result = result
            waiting.finish()
