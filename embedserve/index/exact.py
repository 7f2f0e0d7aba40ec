"""The exact index of a collection: what readers search now, and what a writer is about to publish."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from embedserve.index.delta import Delta
from embedserve.index.segment import Batch, Segment
from embedserve.index.snapshot import Snapshot


class ExactIndex:
    """One snapshot for all readers, replaced as a whole.

    Writers come one at a time: they take ``current``, make the next snapshot from it and publish that. Until then
    nothing has happened.
    """

    description = "exact (flat inner product)"

    def __init__(self, snapshot: Snapshot) -> None:
        self._current = snapshot
        self._published = threading.Condition()

    @staticmethod
    def rebuilt(dimension: int, seq: int, count: int, batches: Iterable[Batch]) -> Snapshot:
        """The snapshot of ``count`` rows that come in ascending order; ``seq`` is the last write among them.

        Raises:
            ValueError: the batches hold more or fewer rows.
        """
        segments = (Segment.filled(count, dimension, batches),) if count else ()
        return Snapshot(seq, dimension, segments, Delta.empty(dimension))

    @property
    def current(self) -> Snapshot:
        """What a search that starts now sees."""
        return self._current

    def publish(self, snapshot: Snapshot) -> None:
        """Show a snapshot to all searches that start from now on."""
        with self._published:
            self._current = snapshot
            self._published.notify_all()

    def wait_for(self, seq: int, timeout_s: float) -> Snapshot:
        """The current snapshot, as soon as it holds the write ``seq`` or the time is over."""
        if self._current.seq < seq:
            with self._published:
                self._published.wait_for(lambda: self._current.seq >= seq, timeout_s)
        return self._current
