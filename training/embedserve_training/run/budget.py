"""The budget of a run, in passes over the images or in minutes, and how much of it is used."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a run has used so far."""

    step: int = 0
    """Steps taken."""
    seconds: float = 0.0
    """Time spent training."""
    step_s: float = 0.0
    """Time of the last step; 0 if it does not predict that of the next."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a run may use: ``epochs`` or, where that is zero, ``minutes``."""

    epochs: int
    minutes: float
    steps_per_epoch: int
    reserve_s: float = 0.0
    """Seconds of the minutes that are kept for what follows the last step."""

    @property
    def training_s(self) -> float:
        """Seconds that steps may take; 0 if the budget is in epochs."""
        return max(60 * self.minutes - self.reserve_s, 0.0)

    def used(self, spent: Spent) -> float:
        """Share of the budget that is used, from 0; a step may exceed the minutes."""
        if self.epochs:
            return spent.step / (self.epochs * self.steps_per_epoch)
        return spent.seconds / self.training_s

    def middle_of_next(self, spent: Spent) -> float:
        """Share of the budget that is used in the middle of the next step, at most 1.

        The learning rate of a step is that of its middle: it is above 0 at the first step and at the last.
        """
        half = 0.5 / (self.epochs * self.steps_per_epoch) if self.epochs else spent.step_s / 2 / self.training_s
        return min(self.used(spent) + half, 1.0)

    def done(self, spent: Spent) -> bool:
        """Whether the budget is used; in minutes, whether more than half of another step would exceed it."""
        if self.epochs:
            return spent.step >= self.epochs * self.steps_per_epoch
        return spent.seconds + spent.step_s / 2 >= self.training_s

    def total_steps(self, spent: Spent) -> int:
        """Steps of the whole run; an estimate if the budget is in minutes."""
        if self.epochs:
            return self.epochs * self.steps_per_epoch
        return max(round(spent.step / max(self.used(spent), 1e-6)), spent.step)

    def left_s(self, spent: Spent, seconds_per_step: float) -> float:
        """Seconds until the end of the run, if every step takes ``seconds_per_step``."""
        if self.epochs:
            return (self.total_steps(spent) - spent.step) * seconds_per_step
        return max(self.training_s - spent.seconds, 0.0)
