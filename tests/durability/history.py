"""What was written to a collection and when, as the reference for concurrent answers.

Each id is written by one thread only, so the versions of an item follow each other. A version exists at the latest
when the call that wrote it returns, and is gone at the latest when the call that replaced or deleted it returns.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

now = time.perf_counter


@dataclass(slots=True, eq=False)
class Version:
    """An item from one write to the next."""

    id: str
    number: int
    """0, 1, 2, … for each id."""
    vector: NDArray[np.float32]
    """float32 [D]."""
    begun: float
    """When the call that wrote it began, in seconds."""
    there: float = math.inf
    """When it returned."""
    going: float = math.inf
    """When the call that ended it began."""
    gone: float = math.inf
    """When that returned."""

    def may_be_seen(self, start: float, end: float) -> bool:
        """Whether a call between these times may see this version."""
        return self.begun <= end and self.gone >= start


@dataclass
class Writer:
    """The versions that one thread wrote."""

    versions: list[Version] = field(default_factory=list)
    current: dict[str, Version] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def putting(self, ids: Sequence[str], vectors: NDArray[np.float32]) -> Iterator[list[Version]]:
        """The versions to write inside the block: the next ones of these ids, with these vectors [N, D]."""
        begun = now()
        new = [
            Version(id, self.numbers.get(id, -1) + 1, vector, begun) for id, vector in zip(ids, vectors, strict=True)
        ]
        with self.ending(ids):
            self.versions += new  # before the write, as readers may see them during it
            self.current |= {version.id: version for version in new}
            self.numbers |= {version.id: version.number for version in new}
            yield new
        there = now()
        for version in new:
            version.there = there

    @contextmanager
    def deleting(self, ids: Sequence[str]) -> Iterator[None]:
        """Delete these inside the block."""
        with self.ending(ids):
            for id in ids:
                self.current.pop(id, None)
            yield

    @contextmanager
    def ending(self, ids: Iterable[str]) -> Iterator[None]:
        ended = [self.current[id] for id in ids if id in self.current]
        going = now()
        for version in ended:
            version.going = going
        yield
        gone = now()
        for version in ended:
            version.gone = gone


class History:
    """All versions of several writers, once nothing is written any more."""

    def __init__(self, writers: Iterable[Writer]) -> None:
        self.versions = [version for writer in writers for version in writer.versions]
        self.vectors = np.stack([version.vector for version in self.versions])
        self._there = np.array([version.there for version in self.versions])
        self._going = np.array([version.going for version in self.versions])
        self.by_id: dict[str, list[Version]] = {}
        for version in self.versions:
            self.by_id.setdefault(version.id, []).append(version)

    def live(self) -> Mapping[str, Version]:
        """The versions that exist at the end."""
        return {version.id: version for version in self.versions if version.gone == math.inf}

    def stable(self, start: float, end: float) -> NDArray[np.bool_]:
        """Which versions exist during the whole of a call between these times: bool [V]."""
        return (self._there <= start) & (self._going >= end)

    def seen(
        self,
        id: str,
        start: float,
        end: float,
        *,
        number: int | None,
        vector: NDArray[np.float32] | None,
        scored: tuple[NDArray[np.float32], float] | None,
    ) -> Version:
        """The version that an answer shows.

        Args:
            id: of the item.
            start: when the call began.
            end: when it returned.
            number: of the version, if the answer contains it.
            vector: of the item, if the answer contains it.
            scored: a query and the score of the item for it, if there is one.

        Raises:
            AssertionError: there is none that the call may see.
        """
        possible = [version for version in self.by_id.get(id, []) if version.may_be_seen(start, end)]
        assert possible, f"{id} was not there during the call"
        if number is not None:
            possible = [version for version in possible if version.number == number]
        if vector is not None:
            possible = [version for version in possible if version.vector.tobytes() == vector.tobytes()]
        if scored is not None:
            query, score = scored
            wide = query.astype(np.float64)
            possible = [
                version for version in possible if abs(float(version.vector.astype(np.float64) @ wide) - score) <= 1e-6
            ]
        assert possible, f"{id} never was like that during the call"
        return possible[-1]
