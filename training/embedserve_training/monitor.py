"""Watching a run without labels: the progress line, ``metrics.jsonl``, and the signs of collapse."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from embedserve_training.health import Health, effective_rank, measure
from embedserve_training.method import Anchors, StepOutput

__all__ = ["CHECK_EVERY_STEPS", "Health", "Monitor", "Progress", "duration", "effective_rank", "measure"]

CHECK_EVERY_STEPS = 25
"""Between two looks for collapse: looking means waiting for the GPU."""

_WARN_FROM = 0.2
"""Share of the budget after which a run that has not learned anything is called out."""
_WARN_FROM_STEP = 50
"""No run has learned anything before."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run is. Losses and rates are means since the last report."""

    epoch: int
    """The one under way, from 1."""
    epochs: int
    """Of all the run; an estimate if the budget is in minutes."""
    estimated: bool
    step: int
    steps: int
    loss: float
    chance: float
    """The loss of embeddings that say nothing."""
    rank: float
    """Effective rank of a batch of backbone features; see ``effective_rank``."""
    dimension: int
    lr: float
    images_per_s: float
    data_wait: float
    """Share of the time spent waiting for pixels, 0–1."""
    seconds: float
    """Spent training so far."""
    eta_s: float
    collapse: float = math.nan
    """The loss of embeddings that are all alike."""
    std: float = math.nan
    """This and the next two as in ``Health``; nan where the method has no such thing."""
    alignment: float = math.nan
    uniformity: float = math.nan
    diagnostics: dict[str, float] = field(default_factory=dict)
    """What the method says of the last step, as in ``pos``."""

    def line(self) -> str:
        """The progress line."""
        tilde = "~" if self.estimated else ""
        pos = f"  pos {self.diagnostics['pos']:.2f}" if "pos" in self.diagnostics else ""
        return (
            f"epoch {self.epoch}/{tilde}{self.epochs}  step {self.step}"
            f"  loss {self.loss:.3f} (chance {self.chance:.3f}){pos}"
            f"  rank {self.rank:.0f}/{self.dimension}  lr {self.lr:.2g}  {self.images_per_s:.0f} img/s"
            f"  data-wait {100 * self.data_wait:.0f} %  ETA {duration(self.eta_s)}"
        )

    def to_json(self) -> str:
        """The same numbers as one line of JSON."""
        values = asdict(self)
        return json.dumps({**values.pop("diagnostics"), **values})


class Monitor:
    """Reports progress to a person and to ``metrics.jsonl``, and warns once of a run that learns nothing."""

    def __init__(
        self,
        path: Path,
        report: Callable[[str], None],
        *,
        anchors: Anchors | None = None,
        stop_on_collapse: bool = False,
        tensorboard: Path | None = None,
    ) -> None:
        self._path = path
        self._report = report
        self._warned = False

    def record(self, progress: Progress, used: float) -> None:
        """Report; ``used`` is the share of the budget that is used."""
        self._report(progress.line())
        with self._path.open("a") as out:
            out.write(progress.to_json() + "\n")
        if used >= _WARN_FROM and progress.step >= _WARN_FROM_STEP and not self._warned:
            warning = sign_of_failure(progress)
            if warning:
                self._warned = True
                self._report(f"warning: {warning}")

    def watch(self, output: StepOutput, step: int) -> None:
        """Look for collapse; call after each step, of which one in CHECK_EVERY_STEPS is looked at.

        Raises:
            TrainingError: the run has collapsed, and ``stop_on_collapse`` was asked for.
        """

    def close(self) -> None:
        """Write what is not yet written."""

    def forget_after(self, step: int) -> None:
        """Drop records of steps that are done again after a resume."""
        if not self._path.exists():
            return
        kept = [line for line in self._path.read_text().splitlines() if _step_of(line) <= step]
        partial = self._path.with_name(f".{self._path.name}.partial")
        partial.write_text("".join(f"{line}\n" for line in kept))
        partial.replace(self._path)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a line cut short by a crash
        return float("inf")


def sign_of_failure(progress: Progress) -> str:
    """What is wrong with a run that is well under way; empty if nothing is."""
    if progress.rank < 2:
        return (
            f"the embeddings have collapsed (effective rank {progress.rank:.1f}); a lower learning rate may help:"
            f" --set lr={progress.lr / 4:.2g}"
        )
    if progress.loss > progress.chance - 0.05:
        return (
            f"nothing is being learned (loss {progress.loss:.3f}, chance {progress.chance:.3f});"
            " another learning rate may help, or weaker augmentation"
        )
    return ""


def duration(seconds: float) -> str:
    """A time span for a person, as in "42s", "12m" or "3h05m"."""
    whole = round(max(seconds, 0))
    if whole < 100:
        return f"{whole}s"
    minutes = round(whole / 60)
    return f"{minutes}m" if minutes < 100 else f"{minutes // 60}h{minutes % 60:02d}m"
