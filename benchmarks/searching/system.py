"""The interface of a system: build, open, tune, search. Every peer imports it; it needs only NumPy, and this
repository on the path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from embedserve.cores import usable_cores

K = 10
"""Hits for each query."""

CORES = usable_cores()

Client: TypeAlias = Callable[[NDArray[np.float32]], NDArray[np.int64]]
"""Queries float32 [B, D] → the rows of their ten closest vectors int64 [B, 10]. Used by one thread."""


class System:
    """A library or server that searches vectors by cosine; their ids are their rows, 0 to N − 1."""

    ladder: tuple[str, ...] = ()
    """Search parameters, from the fastest to the most accurate."""
    own_processes = False
    """True for a server: its clients are separate processes."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options

    def build(self, vectors: NDArray[np.float32], folder: Path) -> dict[str, Any]:
        """Write everything that a search needs to ``folder``; returns the seconds of its parts, if known."""
        raise NotImplementedError

    def open(self, folder: Path) -> str:
        """Make the built system ready; returns the address for other processes, or an empty string."""
        raise NotImplementedError

    def connect(self, address: str) -> None:
        """Become a client of the system that another process has opened."""
        raise NotImplementedError

    def about(self) -> str:
        """A description of the index and its construction."""
        raise NotImplementedError

    def tune(self, value: str) -> None:
        """Use this setting of the ladder for the next searches."""
        raise NotImplementedError

    def client(self, threads: int) -> Client:
        """The search function of one thread, called in that thread; a batch may use ``threads`` threads."""
        raise NotImplementedError

    def close(self) -> None:
        """Release what was opened."""
