"""The memory of this machine, or of the container that this process runs in."""

from __future__ import annotations

import os
from pathlib import Path

from embedserve import cgroup


def usable_bytes(root: Path = cgroup.ROOT) -> int:
    """Bytes of memory that this process may use: the machine's, or the limit of its container if that is less.

    Args:
        root: where the files of the system are.
    """
    limit = cgroup.memory_limit_bytes(root)
    return _machine_bytes() if limit is None else min(_machine_bytes(), limit)


def _machine_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
