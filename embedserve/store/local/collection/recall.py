"""The recall of a collection, measured with real queries."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from random import Random
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from embedserve.index import tuning
from embedserve.index.ranking import Ranking
from embedserve.index.search_params import EXACT, SearchParams
from embedserve.index.snapshot import Snapshot
from embedserve.index.structures import Stopped
from embedserve.index.synthetic import kinds, synthetic_queries
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
_ENOUGH_TO_GIVE_UP = 20
"""Fewer real queries than this do not make searches exact."""
_OWN_SCORE = 1 - 1e-5
"""A query that finds a row as near as this is a copy of it, and says nothing about searches for new images."""


class RecallMonitor:
    """Remembers some queries, compares approximate with exact search for them, and corrects ef and nprobe. Where no
    correction suffices, searches are exact until it does.

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
        self.exact = False
        """Whether every row is compared, since no multiplier reaches the target."""
        self.found = 1.0
        """The recall of approximate search when it was last measured."""
        self._draw = Random(0).random

    def restore(self, *, multiplier: float, exact: bool, found: float, last: Recall | None) -> None:
        """Take over what was measured before a restart.

        Raises:
            ValueError: no measurement has this result.
        """
        if not (_MIN / _STEP <= multiplier <= _MAX * _STEP and 0 <= found <= 1):
            raise ValueError(f"a multiplier of {multiplier:g} and a recall of {found:g} are not from a measurement")
        self.multiplier, self.exact, self.found, self.last = multiplier, exact, found, last

    def sample(self, queries: NDArray[np.float32]) -> None:
        """Remember one of the queries [Q, D] of a call, each with the same chance."""
        query = queries[int(self._draw() * len(queries))].copy()
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
        lowered. If they do not reach it at all, searches are exact from then on, until a later measurement does.

        Raises:
            Stopped: ``stopped`` returned true.
        """
        with self._lock:
            real = list(self._queries)[-_MEASURED:]
            self._outdated = False
        approximate = [segment for segment in snapshot.segments if segment.structure is not None and segment.live]
        if not approximate:
            self.last, self.exact = None, False
            return None
        largest = max(approximate, key=len).vectors
        queries = np.stack(real) if real else synthetic_queries(largest, _MEASURED, stopped)
        comparison = Comparison(snapshot, queries, stopped)
        value = comparison.recall(self._params(self.multiplier))
        if real:
            self.multiplier, value = self._corrected(comparison, value)
            if len(real) >= _MEASURED:
                self.multiplier, value = self._lowered(snapshot, comparison, value, largest, stopped)
            if len(real) >= _ENOUGH_TO_GIVE_UP:
                least = min(self._target + (_MARGIN if self.exact else 0.0), tuning.ENOUGH)
                self.exact = value < least
        self.found = value
        if self.exact:
            value = 1.0
        self.last = Recall(value=value, queries=len(queries), real=bool(real), measured_unix_s=time.time())
        return self.last

    def _corrected(self, comparison: Comparison, value: float) -> tuple[float, float]:
        """The smallest multiplier from the present one on that suffices, and its recall."""
        multiplier = self.multiplier
        tried = multiplier
        # If several steps in a row gain nothing, the misses do not depend on ef or nprobe.
        while value < self._target and tried * _STEP <= min(_MAX, multiplier * _IN_VAIN):
            tried *= _STEP
            higher = comparison.recall(self._params(tried))
            if higher > value:
                multiplier, value = tried, higher
        return multiplier, value

    def _lowered(
        self,
        snapshot: Snapshot,
        comparison: Comparison,
        value: float,
        vectors: NDArray[np.float32],
        stopped: Callable[[], bool],
    ) -> tuple[float, float]:
        """A smaller multiplier that suffices as well, and its recall.

        Queries that are copies of rows do not count: most searches may be for more of what is there, which is easy, and
        the next one for something new. Among near-copies it must suffice for all kinds of synthetic queries too.
        """
        enough = min(self._target + _MARGIN, 1 - (1 - self._target) / 2)
        multiplier, others = self.multiplier, comparison.new_queries()
        if value < enough or not others.any() or others.mean() < 0.5:
            return multiplier, value
        made = kinds(vectors, _MEASURED, stopped)
        references = [Comparison(snapshot, queries, stopped) for queries in made] if len(made) > 1 else []
        while multiplier / _STEP >= _MIN:
            params = self._params(multiplier / _STEP)
            recalls = comparison.recalls(params)
            if recalls[others].mean() < enough or any(each.recall(params) < enough for each in references):
                break
            multiplier, value = multiplier / _STEP, float(recalls.mean())
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
        rankings = self._search(EXACT)
        self._lowest = [ranking.scores[: tuning.K][-1:] for ranking in rankings]
        self._highest = np.array([ranking.scores[0] if len(ranking.scores) else -1.0 for ranking in rankings])

    def recall(self, params: SearchParams) -> float:
        """Mean recall@10 of a search with these parameters; any of several rows with the score of the tenth counts."""
        return float(self.recalls(params).mean())

    def recalls(self, params: SearchParams) -> NDArray[np.float64]:
        """The same for each query: float64 [Q]."""
        wanted = min(tuning.K, self._snapshot.items)
        if not wanted:
            return np.ones(len(self._queries))
        found = zip(self._search(params), self._lowest, strict=True)
        return np.array([(ranking.scores[:wanted] >= lowest).sum() / wanted for ranking, lowest in found])

    def new_queries(self) -> NDArray[np.bool_]:
        """Which queries are no copies of a row: bool [Q]."""
        return self._highest < _OWN_SCORE

    def _search(self, params: SearchParams) -> list[Ranking]:
        rankings = []
        for start in range(0, len(self._queries), _BATCH):
            some = self._queries[start : start + _BATCH]
            rankings += self._snapshot.nearest(some, tuning.K, params=params, wanted=Asking(self._check))
        return rankings

    def _check(self) -> None:
        if self._stopped():
            raise Stopped
