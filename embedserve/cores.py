"""The number of cores for this process."""

from __future__ import annotations

import math
import os
from functools import cache
from pathlib import Path

from embedserve import cgroup


def usable_cores(root: Path = cgroup.ROOT) -> int:
    """Cores that this process may use: those it may run on, or as many as its CPU quota pays for if that is less.

    A part of a core counts as one: with a quota of 1.5, one thread would leave a third of it unused, while two are
    paused a quarter of the time.

    Args:
        root: where the files of the system are.
    """
    quota = _quota(root)
    return _cores() if quota is None else min(_cores(), max(math.ceil(quota), 1))


def limit_libraries() -> None:
    """Let the libraries that compute, and are loaded later, use the cores that this process may use, and no more.

    OpenMP and OpenBLAS know nothing of quotas: with 64 threads for two cores' worth of time, most of a search or of a
    training step is waiting. What the environment says already stays.
    """
    if (cores := usable_cores()) < _cores():
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def _quota(root: Path) -> float | None:
    return cgroup.cpu_quota(root)
