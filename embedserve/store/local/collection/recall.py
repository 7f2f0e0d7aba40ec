"""The recall of a collection, measured with real queries."""

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
from embedserve.wanted import Asking

_KEPT = 256
"""Number of queries that are remembered, the latest ones."""
_MEASURED = 100
"""Number of queries in a measurement."""
_BATCH = 25
"""Queries per search: from 20 on FAISS reads the vectors once for all of them."""
_STEP = 2**0.5
"""Factor between two multipliers that are tried."""
_MIN, _MAX = 0.25, 16.0
_IN_VAIN = 3.0
"""Multipliers are raised up to this factor although recall does not rise."""
_MARGIN = 0.01
"""A lower multiplier is taken only if its recall exceeds the target by this; about the standard error of a
measurement."""


class RecallMonitor:
    """Remembers some queries, compares approximate with exact search for them, and corrects ef and nprobe.

    Args:
        target: recall@10 that searches are tuned to.
    """

    def __init__(self, target: float) -> None:
        self._target = target
        self._queries: deque[NDArray[np.float32]] = deque(maxlen=_KEPT)
        self._lock = Lock()
        self._outdated = False
        self.last: Recall | None = None
        """The last measurement; None if there was none."""
        self.multiplier = 1.0
        """Factor on the ef or nprobe that structures were tuned to: real queries may be harder, or easier, than the
        synthetic ones of tuning."""

    def sample(self, queries: NDArray[np.float32]) -> None:
        """Remember one of the queries [Q, D] of a call."""
        query = queries[len(self._queries) % len(queries)].copy()
        with self._lock:
            self._queries.append(query)
            self._outdated = True

    @property
    def is_outdated(self) -> bool:
        """Whether there were new queries or segments since the last measurement."""
        return self._outdated

    def invalidate(self) -> None:
        """The index has changed since the last measurement."""
        self._outdated = True

    def measure(self, snapshot: Snapshot, stopped: Callable[[], bool] = lambda: False) -> Recall | None:
        """Measure recall now; None if every search is exact.

        If real queries do not reach the target, the multiplier is raised; if enough of them reach it with less, it is
        lowered.

        Raises:
            Stopped: ``stopped`` returned true.
        """
        with self._lock:
            real = list(self._queries)[-_MEASURED:]
            self._outdated = False
        approximate = [segment for segment in snapshot.segments if segment.structure is not None and segment.live]
        if not approximate:
            self.last = None
            return None
        queries = np.stack(real) if real else tuning.synthetic_queries(max(approximate, key=len).vectors, _MEASURED)
        comparison = Comparison(snapshot, queries, stopped)
        value = comparison.recall(self._params(self.multiplier))
        if real:
            self.multiplier, value = self._corrected(comparison, value, may_lower=len(real) >= _MEASURED)
        self.last = Recall(value=value, queries=len(queries), real=bool(real), measured_unix_s=time.time())
        return self.last

    def _corrected(self, comparison: Comparison, value: float, *, may_lower: bool) -> tuple[float, float]:
        """The smallest multiplier that suffices, and its recall."""
        multiplier = self.multiplier
        tried = multiplier
        # If several steps in a row gain nothing, the misses do not depend on ef or nprobe.
        while value < self._target and tried * _STEP <= min(_MAX, multiplier * _IN_VAIN):
            tried *= _STEP
            higher = comparison.recall(self._params(tried))
            if higher > value:
                multiplier, value = tried, higher
        if multiplier > self.multiplier:
            return multiplier, value
        enough = min(self._target + _MARGIN, 1 - (1 - self._target) / 2)
        while may_lower and multiplier / _STEP >= _MIN:
            lower = comparison.recall(self._params(multiplier / _STEP))
            if lower < enough:
                break
            multiplier, value = multiplier / _STEP, lower
        return multiplier, value

    def _params(self, multiplier: float) -> SearchParams:
        return SearchParams(target_recall=self._target, multiplier=multiplier)


class Comparison:
    """What exact search finds in a snapshot for queries [Q, D], as the reference for approximate search."""

    def __init__(
        self, snapshot: Snapshot, queries: NDArray[np.float32], stopped: Callable[[], bool] = lambda: False
    ) -> None:
        self._snapshot = snapshot
        self._queries = queries
        self._stopped = stopped
        self._lowest = [ranking.scores[: tuning.K][-1:] for ranking in self._search(EXACT)]

    def recall(self, params: SearchParams) -> float:
        """Mean recall@10 of a search with these parameters; any of several rows with the score of the tenth counts."""
        wanted = min(tuning.K, self._snapshot.items)
        if not wanted:
            return 1.0
        shared = 0
        for ranking, lowest in zip(self._search(params), self._lowest, strict=True):
            shared += int((ranking.scores[:wanted] >= lowest).sum())
        return shared / (wanted * len(self._queries))

    def _search(self, params: SearchParams) -> list[Ranking]:
        rankings = []
        for start in range(0, len(self._queries), _BATCH):
            some = self._queries[start : start + _BATCH]
            rankings += self._snapshot.nearest(some, tuning.K, params=params, wanted=Asking(self._check))
        return rankings

    def _check(self) -> None:
        if self._stopped():
            raise Stopped
