"""What the comparisons share: things measured in turns over several rounds, and their figures as medians."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TypeVar

import numpy as np

_ThingT = TypeVar("_ThingT")


def in_turns(things: Sequence[_ThingT], rounds: int, *, reverse: bool = False) -> Iterator[tuple[int, _ThingT]]:
    """Each thing once in every round, with the number of the round: what drifts on a machine meets all of them.

    The order moves on by one with each round, or with ``reverse`` is turned round in every second one.
    """
    for number in range(rounds):
        shift = 0 if reverse else number % len(things)
        order = [*things[shift:], *things[:shift]]
        for thing in reversed(order) if reverse and number % 2 else order:
            yield number, thing


@dataclass
class Figures:
    """Figures of one thing, a value of each for every round, and the latencies of the calls of all rounds."""

    values: dict[str, list[float]] = field(default_factory=dict)
    latencies_ms: list[float] = field(default_factory=list)

    def add(self, **figures: float) -> None:
        """The values of one more round."""
        for name, value in figures.items():
            self.values.setdefault(name, []).append(value)

    def __getitem__(self, name: str) -> list[float]:
        """The values of a figure, one for each round; none if it was not measured."""
        return self.values.get(name, [])

    def median(self, name: str, digits: int = 4) -> float | None:
        """The median over the rounds; None if it was not measured."""
        return round(median(self[name]), digits) if self[name] else None

    def percentile_ms(self, percent: float) -> float | None:
        """A percentile of the latencies; None if there are none."""
        return percentile(self.latencies_ms, percent)

    def by_round(self, *names: str, digits: int = 4) -> dict[str, list[float]]:
        """The values of each round."""
        return {name: [round(value, digits) for value in self[name]] for name in names}

    def calls(self) -> dict[str, float | int | None]:
        """How many calls there were, and the percentiles of their latencies."""
        return {"calls": len(self.latencies_ms), "p50_ms": self.percentile_ms(50), "p99_ms": self.percentile_ms(99)}


def percentile(values: Sequence[float], percent: float) -> float | None:
    """A percentile, interpolated; None if there are no values."""
    return round(float(np.percentile(values, percent)), 3) if len(values) else None


def ratios(own: Sequence[float], other: Sequence[float]) -> list[float]:
    """The ratios within each round."""
    return [one / reference for one, reference in zip(own, other, strict=False) if reference]
