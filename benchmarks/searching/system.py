"""What a system is asked to do: be filled, opened and tuned, and answer. Every peer imports it: it needs only NumPy."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

K = 10
"""Hits for each query."""

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

Client: TypeAlias = Callable[[NDArray[np.float32]], NDArray[np.int64]]
"""Queries float32 [B, D] → the rows of their ten closest vectors int64 [B, 10]. Used by one thread."""


class System:
    """A library or a server with vectors, whose ids are their rows 0 to N − 1, to be searched by cosine."""

    ladder: tuple[str, ...] = ()
    """Settings of the search, from the fastest to the most accurate."""
    own_processes = False
    """True for a server: its clients are processes of their own."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options

    def build(self, vectors: NDArray[np.float32], folder: Path) -> dict[str, Any]:
        """Take the vectors and leave all that a search needs in ``folder``; seconds of parts of it, if known."""
        raise NotImplementedError

    def open(self, folder: Path) -> str:
        """Make ready what ``build`` left; the address at which other processes can ask, or nothing."""
        raise NotImplementedError

    def connect(self, address: str) -> None:
        """Be a client of what another process has opened."""
        raise NotImplementedError

    def about(self) -> str:
        """The index and how it was built, in words."""
        raise NotImplementedError

    def tune(self, value: str) -> None:
        """Search from now on with this setting of the ladder."""
        raise NotImplementedError

    def client(self, threads: int) -> Client:
        """What one thread searches with. Called in that thread; a batch may use as many threads as are given."""
        raise NotImplementedError

    def close(self) -> None:
        """Give back what was opened."""
