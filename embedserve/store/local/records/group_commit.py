"""Group commit: concurrent writes go to disk in one transaction, with one sync.

The first caller commits alone. Writes arriving meanwhile are collected; then one of their callers commits for all. No
caller waits for others to come, and the more callers there are, the fewer syncs a write costs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")


class _PendingWrite(Generic[_T, _R]):
    def __init__(self, write: _T) -> None:
        self.write = write
        self.result: _R | None = None
        self.error: Exception | None = None
        self.done = False
        self.leads = False
        self.woken = threading.Event()
        """Set when the write is done, or its caller must lead."""

    def finish(self) -> None:
        self.done = True
        self.woken.set()

    def lead(self) -> None:
        self.leads = True
        self.woken.set()


class GroupCommit(Generic[_T, _R]):
    """Commits writes, several at a time.

    Callers whose write is committed are woken one by one, and do not queue for ``lock``: there they would come after
    callers with new writes, who would then commit nearly alone.

    Args:
        commit_group: commits some writes, all or none of them, and returns a result for each. Called by one thread at a
            time, which holds ``lock``.
        max_group: maximum number of writes in a group.
    """

    def __init__(self, commit_group: Callable[[Sequence[_T]], Sequence[_R]], max_group: int = 64) -> None:
        self.lock = threading.RLock()
        """Held while a group is committed. Another holder makes writers wait, and must not commit a write."""
        self._commit_group = commit_group
        self._max_group = max_group
        self._gathered: list[_PendingWrite[_T, _R]] = []
        """Empty, or the leader and those that came after it."""
        self._led = False
        """Whether a caller commits or is about to."""
        self._gathering = threading.Lock()

    def commit(self, write: _T) -> _R:
        """The result of a write, once it is committed.

        Raises:
            Exception: what ``commit_group`` raised for this write alone.
        """
        mine: _PendingWrite[_T, _R] = _PendingWrite(write)
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
                        group = self._gathered[: self._max_group]
                    self._carry_out(group)
        finally:
            self._leave(mine)
        if mine.error is not None:
            raise mine.error
        return mine.result  # type: ignore[return-value]  # set where there is no error

    def _leave(self, mine: _PendingWrite[_T, _R]) -> None:
        with self._gathering:
            if mine.leads:
                # If the leader was interrupted, some of its group are not done; they come first.
                self._gathered = [pending for pending in self._gathered if not pending.done and pending is not mine]
                if self._gathered:
                    self._gathered[0].lead()
                else:
                    self._led = False
            elif not mine.done and mine in self._gathered:
                self._gathered.remove(mine)  # interrupted while it waited

    def _carry_out(self, group: Sequence[_PendingWrite[_T, _R]]) -> None:
        try:
            results = self._commit_group([pending.write for pending in group])
        except Exception as error:
            if len(group) == 1:
                group[0].error = error
                group[0].finish()
                return
            # What is wrong with one write, or too large for the disk together, must not fail the others.
            for pending in group:
                self._carry_out([pending])
            return
        for pending, result in zip(group, results, strict=True):
            pending.result = result
            pending.finish()
