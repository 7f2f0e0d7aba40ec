"""How many threads a search may take, so that searches do not fight for the cores."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_QUERIES_PER_THREAD = 8
"""Fewer queries are not worth another thread."""


class Cores:
    """A number of cores, shared by those who search at the moment."""

    def __init__(self, count: int) -> None:
        self._free = self._count = count
        self._lock = threading.Lock()

    @contextmanager
    def for_queries(self, count: int) -> Iterator[int]:
        """Threads for so many queries: at least one, and more only as far as cores are free."""
        with self._lock:
            taken = max(1, min(count // _QUERIES_PER_THREAD, self._free))
            self._free -= taken
        try:
            yield taken
        finally:
            with self._lock:
                self._free += taken


def cores_here() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


CORES = Cores(cores_here())
