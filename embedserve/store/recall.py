"""The recall of a collection, measured with queries that were really asked."""

from __future__ import annotations

import time
from collections import deque
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from embedserve.index import tuning
from embedserve.index.effort import EXACT, Effort
from embedserve.index.snapshot import Snapshot
from embedserve.types import Recall

_KEPT = 256
"""Queries that are remembered, the latest ones."""
_MEASURED = 64
_TOGETHER = 8
"""Queries searched in one go, so that other threads get their turn."""
_BOOST = 1.3
_MOST_BOOST = 16.0


class RecallMonitor:
    """Remembers some queries and compares what approximate search finds for them with exact search.

    Args:
        target: recall@10 that searches are tuned to.
    """

    def __init__(self, target: float) -> None:
        self._target = target
        self._queries: deque[NDArray[np.float32]] = deque(maxlen=_KEPT)
        self._lock = Lock()
        self._new = False
        self.last: Recall | None = None
        """As last measured; None if never."""
        self.boost = 1.0
        """Factor on the efforts that structures were tuned to: real queries may be harder than those made up for it."""

    def sample(self, queries: NDArray[np.float32]) -> None:
        """Remember one of the queries [Q, D] of a call."""
        query = queries[len(self._queries) % len(queries)].copy()
        with self._lock:
            self._queries.append(query)
            self._new = True

    @property
    def has_news(self) -> bool:
        """Whether queries have come since the last measurement."""
        return self._new

    def forget(self) -> None:
        """What was measured concerns an index that is gone."""
        self._new = True

    def measure(self, snapshot: Snapshot) -> Recall | None:
        """Measure it now; None if every search is exact. Raises the effort where real queries need it."""
        approximate = [segment for segment in snapshot.segments if segment.structure is not None and segment.live]
        if not approximate:
            self.last = None
            return None
        with self._lock:
            asked = list(self._queries)[-_MEASURED:]
            self._new = False
        queries = np.stack(asked) if asked else tuning.made_queries(max(approximate, key=len).vectors, _MEASURED)
        value = recall_of(snapshot, queries, Effort(target_recall=self._target, boost=self.boost))
        self.last = Recall(value=value, queries=len(queries), real=bool(asked), measured_unix_s=time.time())
        if asked and value < self._target and self.boost < _MOST_BOOST:
            self.boost *= _BOOST
            self._new = True  # so that it is seen whether that was enough
        return self.last


def recall_of(snapshot: Snapshot, queries: NDArray[np.float32], effort: Effort) -> float:
    """recall@10 of a search with this effort against exact search, the mean over queries [Q, D]."""
    shared = possible = 0
    for start in range(0, len(queries), _TOGETHER):
        some = queries[start : start + _TOGETHER]
        found = snapshot.nearest(some, tuning.K, effort=effort)
        truth = snapshot.nearest(some, tuning.K, effort=EXACT)
        for got, right in zip(found, truth, strict=True):
            # Any of several rows with the score of the tenth is right.
            wanted = min(tuning.K, len(right.rids))
            if wanted:
                shared += int((got.scores[:wanted] >= right.scores[wanted - 1]).sum())
                possible += wanted
    return shared / possible if possible else 1.0
