"""The snapshot that readers search now, replaced as a whole."""

from __future__ import annotations

import threading

from embedserve.index.snapshot import Snapshot


class CurrentSnapshot:
    """One snapshot for all readers.

    One writer at a time takes ``current``, makes the next snapshot from it and publishes that. Until then readers see
    no change.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self._current = snapshot
        self._published = threading.Condition()

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
        """The current snapshot, as soon as it contains the write ``seq`` or the timeout expires."""
        if self._current.seq < seq:
            with self._published:
                self._published.wait_for(lambda: self._current.seq >= seq, timeout_s)
        return self._current
