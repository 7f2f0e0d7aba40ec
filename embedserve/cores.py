"""The number of cores for this process."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Cores that this process may use; in a container, these may be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
