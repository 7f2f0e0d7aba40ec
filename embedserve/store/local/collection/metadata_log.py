"""Which rows had their metadata changed, and when, so that what was read of them earlier can be brought up to date."""

from __future__ import annotations

import threading
from collections import deque

import numpy as np
from numpy.typing import NDArray

_MAX_ROWS = 1 << 14
"""Row numbers that are remembered, and writes: some 2 MB at most."""


class MetadataLog:
    """The latest changes of metadata in place. Safe to use from several threads."""

    def __init__(self) -> None:
        self._changes: deque[tuple[int, NDArray[np.int64]]] = deque()
        self._rows = 0
        self._complete_after = 0
        """All changes with a higher sequence number are here."""
        self._lock = threading.Lock()

    def add(self, seq: int, rids: NDArray[np.int64]) -> None:
        """Remember that a write changes the metadata of these rows; called before any reader can see that write.

        If the write fails after all, what is remembered does no harm: more is read again than needed.
        """
        if not len(rids):
            return
        with self._lock:
            self._changes.append((seq, rids))
            self._rows += len(rids)
            while self._rows > _MAX_ROWS:
                dropped, gone = self._changes.popleft()
                self._rows -= len(gone)
                self._complete_after = max(self._complete_after, dropped)

    def between(self, after: int, upto: int, first: int, last: int) -> NDArray[np.int64] | None:
        """The rows numbered ``first`` to ``last`` that writes changed.

        Args:
            after: sequence number of the last write before those that count.
            upto: sequence number of the last of them.
            first: row number.
            last: row number.

        Returns:
            Row numbers, ascending, each once: int64 [U]; None if some of these writes are forgotten.
        """
        with self._lock:
            if after < self._complete_after:
                return None
            found = []
            for seq, rids in reversed(self._changes):
                if seq <= after:
                    break
                if seq <= upto:
                    found.append(rids)
        if not found:
            return np.empty(0, np.int64)
        changed = np.unique(np.concatenate(found))
        return changed[np.searchsorted(changed, first) : np.searchsorted(changed, last, "right")]
