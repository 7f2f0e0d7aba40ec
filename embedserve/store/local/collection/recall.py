"""The recall of a collection, measured with queries that were really asked."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from embedserve.index import tuning
from embedserve.index.ranking import Ranking
from embedserve.index.search_params import EXACT, SearchParams
from embedserve.index.snapshot import Snapshot
from embedserve.index.structures import Stopped
from embedserve.types import Recall

_KEPT = 256
"""Queries that are remembered, the latest ones."""
_MEASURED = 100
_TOGETHER = 25
"""Queries searched in one go: from 20 on FAISS reads the vectors once for all of them."""
_STEP = 2**0.5
_LEAST, _MOST = 0.25, 16.0
_IN_VAIN = 3.0
_MARGIN = 0.01
"""Less effort is taken only if it still finds so much more than the target; about the standard error of a
measurement."""


class RecallMonitor:
    """Remembers some queries, compares approximate with exact search for them, and corrects the effort.

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
        self.multiplier = 1.0
        """Factor on the efforts that structures were tuned to: real queries may be harder, or easier, than those that
        were made up for it."""

    def sample(self, queries: NDArray[np.float32]) -> None:
        """Remember one of the queries [Q, D] of a call."""
        query = queries[len(self._queries) % len(queries)].copy()
        with self._lock:
            self._queries.append(query)
            self._new = True

    @property
    def has_news(self) -> bool:
        """Whether queries or segments have come since the last measurement."""
        return self._new

    def forget(self) -> None:
        """What was measured concerns an index that is gone."""
        self._new = True

    def measure(self, snapshot: Snapshot, stopped: Callable[[], bool] = lambda: False) -> Recall | None:
        """Measure it now; None if every search is exact.

        Real queries that are not found as well as they should be raise the effort; those that would be with less lower
        it, if there are enough of them.

        Raises:
            Stopped: ``stopped`` said so in between.
        """
        with self._lock:
            asked = list(self._queries)[-_MEASURED:]
            self._new = False
        approximate = [segment for segment in snapshot.segments if segment.structure is not None and segment.live]
        if not approximate:
            self.last = None
            return None
        queries = np.stack(asked) if asked else tuning.made_queries(max(approximate, key=len).vectors, _MEASURED)
        comparison = Comparison(snapshot, queries, stopped)
        value = comparison.recall(self._effort(self.multiplier))
        if asked:
            self.multiplier, value = self._corrected(comparison, value, may_lower=len(asked) >= _MEASURED)
        self.last = Recall(value=value, queries=len(queries), real=bool(asked), measured_unix_s=time.time())
        return self.last

    def _corrected(self, comparison: Comparison, value: float, *, may_lower: bool) -> tuple[float, float]:
        """The least effort that suffices, and its recall."""
        multiplier = self.multiplier
        tried = multiplier
        # Where some steps in a row gain nothing, what is missed is not a matter of effort.
        while value < self._target and tried * _STEP <= min(_MOST, multiplier * _IN_VAIN):
            tried *= _STEP
            higher = comparison.recall(self._effort(tried))
            if higher > value:
                multiplier, value = tried, higher
        if multiplier > self.multiplier:
            return multiplier, value
        enough = min(self._target + _MARGIN, 1 - (1 - self._target) / 2)
        while may_lower and multiplier / _STEP >= _LEAST:
            lower = comparison.recall(self._effort(multiplier / _STEP))
            if lower < enough:
                break
            multiplier, value = multiplier / _STEP, lower
        return multiplier, value

    def _effort(self, multiplier: float) -> SearchParams:
        return SearchParams(target_recall=self._target, multiplier=multiplier)


class Comparison:
    """What exact search finds in a snapshot for queries [Q, D], to compare with."""

    def __init__(
        self, snapshot: Snapshot, queries: NDArray[np.float32], stopped: Callable[[], bool] = lambda: False
    ) -> None:
        self._snapshot = snapshot
        self._queries = queries
        self._stopped = stopped
        self._lowest = [ranking.scores[: tuning.K][-1:] for ranking in self._search(EXACT)]

    def recall(self, effort: SearchParams) -> float:
        """Mean recall@10 of a search with this effort; any of several rows with the score of the tenth is right."""
        wanted = min(tuning.K, self._snapshot.items)
        if not wanted:
            return 1.0
        shared = 0
        for ranking, lowest in zip(self._search(effort), self._lowest, strict=True):
            shared += int((ranking.scores[:wanted] >= lowest).sum())
        return shared / (wanted * len(self._queries))

    def _search(self, effort: SearchParams) -> list[Ranking]:
        rankings = []
        for start in range(0, len(self._queries), _TOGETHER):
            if self._stopped():
                raise Stopped
            rankings += self._snapshot.nearest(self._queries[start : start + _TOGETHER], tuning.K, effort=effort)
        return rankings
