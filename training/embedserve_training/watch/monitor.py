"""Watching a run without labels: the progress line, ``metrics.jsonl``, TensorBoard, and the warning of a collapse."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from embedserve.errors import TrainingError
from embedserve_training.methods.method import LossReferences, StepOutput
from embedserve_training.watch.collapse import sign_of_collapse, spread
from embedserve_training.watch.representation import Health, effective_rank, measure

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["CHECK_EVERY_STEPS", "Health", "Monitor", "Progress", "duration", "effective_rank", "measure"]

CHECK_EVERY_STEPS = 25
"""Between two looks for collapse: looking means waiting for the GPU."""
CHECK_FROM_STEP = 50
"""First look. Before, the embeddings are still those of the initialisation, which may lie close together."""
COLUMNS = 120
"""Of the progress line."""
_WARN_FROM = 0.2
"""Share of the budget after which a run that has not learned anything is called out."""
_WARN_FROM_EPOCH = 4
"""Instance Discrimination compares to what it remembers from the last epoch, and began to learn in the third. A run of
fewer epochs is called out after half of its budget."""
_WARN_FROM_STEP = 50
"""No run has learned anything before."""
_NO_CURVES = ("epochs", "estimated", "step", "steps", "dimension")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run is. Losses and rates are means since the last report; what a method does not have is nan."""

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
    collapse: float = math.nan
    """The loss of embeddings that are all alike."""
    rank: float
    """This and the next four as in ``Health``."""
    dimension: int
    std: float = math.nan
    alignment: float = math.nan
    uniformity: float = math.nan
    lr: float
    images_per_s: float
    data_wait: float
    """Share of the time spent waiting for pixels, 0–1."""
    seconds: float
    """Spent training so far."""
    eta_s: float
    diagnostics: dict[str, float] = field(default_factory=dict)
    """What the method says of the last step, as in ``pos``."""

    def line(self) -> str:
        """The progress line: fields keep their columns from line to line, and what does not fit is left out."""
        tilde = "~" if self.estimated else ""
        of_all, of_dimension = f"{tilde}{self.epochs}", str(self.dimension)
        chance = _loss(self.chance)
        fields = {
            "epoch": f"epoch {self.epoch:>{len(str(self.epochs))}}/{of_all}",
            "step": f"step {self.step:>{len(str(self.steps))}}",
            "loss": f"loss {_loss(self.loss):>{len(chance)}} (chance {chance}",
            "collapse": f", collapse {_loss(self.collapse)}" if self._collapse_is_elsewhere else "",
            **{name: f"{name} {_share(self.diagnostics[name])}" for name in self._shown},
            "rank": f"rank {self.rank:>{len(of_dimension)}.0f}/{of_dimension}",
            "std": "" if math.isnan(self.std) else f"std {_share(self.std)}",
            "lr": f"lr {f'{self.lr:.2g}'.removeprefix('0'):<5}",
            "rate": f"{self.images_per_s:.0f} img/s",
            "wait": f"data-wait {100 * self.data_wait:.0f} %",
            "eta": f"ETA {duration(self.eta_s)}",
        }
        for leave_out in ("", "lr", "collapse", "std"):
            fields[leave_out] = ""
            line = _joined(fields)
            if len(line) <= COLUMNS:
                break
        return line

    @property
    def _shown(self) -> tuple[str, ...]:
        """The diagnostics that say most. Barlow Twins has no negatives, and its loss grows with the dimension."""
        for names in (("on", "off"), ("pos",), ("top1",)):
            if all(name in self.diagnostics for name in names):
                return names
        return ()

    @property
    def _collapse_is_elsewhere(self) -> bool:
        return abs(self.collapse - self.chance) > 0.01 * abs(self.chance)

    def numbers(self) -> dict[str, float]:
        """All of it by name, without what is not a finite number."""
        values = asdict(self)
        named: dict[str, float] = {**values.pop("diagnostics"), **values}
        return {name: value for name, value in named.items() if math.isfinite(value)}

    def to_json(self) -> str:
        """The same numbers as one line of JSON."""
        return json.dumps(self.numbers())


def _joined(fields: dict[str, str]) -> str:
    loss = f"{fields['loss']}{fields['collapse']})"
    parts = [loss if name == "loss" else text for name, text in fields.items() if text and name != "collapse"]
    return " ".join(parts)


def _loss(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"


def _share(value: float) -> str:
    """A number within −1…1, in three columns unless it is negative, as in ".61" and "1.0"."""
    text = f"{value:.2f}".replace("0.", ".", 1)
    return text.replace("1.00", "1.0")


class Monitor:
    """Reports progress to a person, to ``metrics.jsonl`` and to TensorBoard, and calls out a run that goes wrong.

    Args:
        path: of ``metrics.jsonl``.
        report: takes lines for a person.
        loss_references: of the method, for the words about a collapse.
        stop_on_collapse: end a run that has collapsed; else it is called out once.
        tensorboard: folder for event files; None for none.
    """

    def __init__(
        self,
        path: Path,
        report: Callable[[str], None],
        *,
        loss_references: LossReferences | None = None,
        stop_on_collapse: bool = False,
        tensorboard: Path | None = None,
    ) -> None:
        self._path = path
        self._report = report
        self._loss_references = loss_references
        self._stop_on_collapse = stop_on_collapse
        self._tensorboard = tensorboard
        self._writer: SummaryWriter | None = None
        self._first_step = 0
        self._signs = 0
        self._collapsed = False
        self._warned = False

    def record(self, progress: Progress, used: float) -> None:
        """Report; ``used`` is the share of the budget that is used."""
        self._report(progress.line())
        try:
            with self._path.open("a") as out:
                out.write(progress.to_json() + "\n")
            self._draw(progress)
        except OSError as error:
            raise TrainingError(f"the metrics cannot be written to {self._path.parent}: {error.strerror}") from error
        if self._warned or self._collapsed or not _should_have_learned(progress, used):
            return
        warning = sign_of_failure(progress)
        if warning:
            self._warned = True
            self._report(f"warning: {warning}")

    def watch(self, output: StepOutput, step: int) -> None:
        """Look for collapse; call after each step, of which one in CHECK_EVERY_STEPS is looked at.

        Two signs in a row are a collapse, so it is named at most 2 · CHECK_EVERY_STEPS steps after it happened.

        Raises:
            TrainingError: the run has collapsed, and ``stop_on_collapse`` was asked for.
        """
        if step % CHECK_EVERY_STEPS or step < CHECK_FROM_STEP or self._collapsed:
            return
        sign = _sign(output)
        self._signs = self._signs + 1 if sign else 0
        if self._signs < 2:
            return
        self._collapsed = True
        health = measure(output.features_ND, output.projections_ND, output.views)
        alike = f", {_loss(self._loss_references.collapse)} if all are alike" if self._loss_references else ""
        what = (
            f"the embeddings have collapsed at step {step}: {sign} (rank {health.rank:.1f}/{health.dimension},"
            f" std {health.std:.3f}, loss {_loss(float(output.loss.detach()))}{alike})"
        )
        hint = "a lower learning rate helps most: --fresh --set lr=…"
        if self._stop_on_collapse:
            raise TrainingError(what, hint=hint)
        self._report(f"warning: {what}; {hint}")

    def forget_after(self, step: int) -> None:
        """Drop records of steps that are done again after a resume."""
        self._first_step = step + 1
        if not self._path.exists():
            return
        kept = [line for line in self._path.read_text().splitlines() if _step_of(line) <= step]
        partial = self._path.with_name(f".{self._path.name}.partial")
        partial.write_text("".join(f"{line}\n" for line in kept))
        partial.replace(self._path)

    def close(self) -> None:
        """End the event files."""
        if self._writer:
            self._writer.close()
            self._writer = None

    def _draw(self, progress: Progress) -> None:
        if self._tensorboard and not self._writer:
            self._writer = self._open(self._tensorboard)
        if self._writer:
            for name, value in progress.numbers().items():
                if name not in _NO_CURVES:
                    self._writer.add_scalar(name, value, progress.step)
            self._writer.flush()

    def _open(self, folder: Path) -> SummaryWriter | None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            self._tensorboard = None
            self._report(f"no curves for TensorBoard, training goes on: {error} (pip install tensorboard)")
            return None
        # TensorBoard hides what earlier files of the folder hold from this step on: steps that are done again.
        return SummaryWriter(folder, purge_step=self._first_step)


def _sign(output: StepOutput) -> str:
    h = spread(output.features_ND, 1)  # all from one network, and not always as many as z
    z = spread(output.projections_ND, output.views)
    return sign_of_collapse(h, z)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a line cut short by a crash
        return float("inf")


def _should_have_learned(progress: Progress, used: float) -> bool:
    after = _WARN_FROM if progress.epoch >= _WARN_FROM_EPOCH else 0.5
    return used >= after and progress.step >= _WARN_FROM_STEP


def sign_of_failure(progress: Progress) -> str:
    """What is wrong with a run that is well under way; empty if nothing is. Collapse is another matter: ``watch``."""
    if progress.loss > 0.99 * progress.chance:
        return (
            f"nothing is being learned (loss {_loss(progress.loss)}, chance {_loss(progress.chance)});"
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
