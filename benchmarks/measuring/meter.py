"""CPU time between two moments: of what is measured, of this process, and of everything else on the machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from measuring.machine import busy_s, spent_s


@dataclass(frozen=True)
class Spent:
    """CPU seconds between two readings."""

    measured_s: float
    """Of the processes that are measured."""
    own_s: float
    """Of this process."""
    others_s: float
    """Of all other processes of the machine; 0 if there is no /proc."""
    seconds: float
    """Time between the readings."""

    @property
    def foreign_cores(self) -> float:
        """Cores that other processes kept busy."""
        return self.others_s / self.seconds


class Meter:
    """Reads the counters twice: when the measurement begins and when it ends.

    Args:
        cpu: CPU seconds of each process that is measured, by pid.
    """

    def __init__(self, cpu: Callable[[], dict[int, float]]) -> None:
        self._cpu = cpu
        self._readings: list[tuple[dict[int, float], float, float, float]] = []

    def read(self) -> None:
        """Read the counters."""
        self._readings.append((self._cpu(), time.process_time(), busy_s(), time.perf_counter()))

    def spent(self) -> Spent:
        """What was spent between the first reading and the last."""
        (cpu, own, machine, begun), (cpu_after, own_after, machine_after, ended) = self._readings[0], self._readings[-1]
        measured_s, own_s = spent_s(cpu, cpu_after), own_after - own
        others_s = max(machine_after - machine - measured_s - own_s, 0.0)
        return Spent(measured_s, own_s, others_s, ended - begun)
