"""Reports of a run: the progress line, ``metrics.jsonl``, TensorBoard, and warnings of a run that does not learn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from embedserve.errors import TrainingError
from embedserve_training.methods.method import LossReferences, StepOutput
from embedserve_training.watch.collapse import measure_dispersion, sign_of_collapse
from embedserve_training.watch.progress import Progress, format_loss, line_columns
from embedserve_training.watch.representation import measure

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

CHECK_EVERY_STEPS = 25
"""Between two checks for collapse: a check waits for the GPU."""
CHECK_FROM_STEP = 50
"""First check. Before, the embeddings are still those of the initialisation, which may lie close together."""
_WARN_FROM = 0.2
"""Share of the budget after which a run that has learned nothing gets a warning."""
_WARN_FROM_EPOCH = 4
"""Instance Discrimination compares with the embeddings of the epoch before, and started to learn in the third. A run of
fewer epochs gets the warning after half of its budget."""
_WARN_FROM_STEP = 50
"""No run learns anything before this step."""
_NO_CURVES = ("epochs", "estimated", "step", "steps", "dimension")


class Monitor:
    """Reports progress as text, to ``metrics.jsonl`` and to TensorBoard, and warns once of a run that goes wrong.

    Args:
        path: of ``metrics.jsonl``.
        report: called with each line of text.
        loss_references: of the method, for the message about a collapse.
        stop_on_collapse: end a run that has collapsed; else warn once.
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
        """Report progress, and warn if the run should have learned something by now.

        Args:
            progress: where the run is.
            used: share of the budget that is used.

        Raises:
            TrainingError: the metrics cannot be written.
        """
        self._report(progress.line(line_columns()))
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

    def check_collapse(self, output: StepOutput, step: int) -> None:
        """Check for collapse; call after each step, of which one in CHECK_EVERY_STEPS is checked.

        Two signs in a row are a collapse, so it is reported at most 2 · CHECK_EVERY_STEPS steps after it happened.

        Raises:
            TrainingError: the run has collapsed, and ``stop_on_collapse`` is set.
        """
        if step % CHECK_EVERY_STEPS or step < CHECK_FROM_STEP or self._collapsed:
            return
        sign = _sign(output)
        self._signs = self._signs + 1 if sign else 0
        if self._signs < 2:
            return
        self._collapsed = True
        health = measure(output.features_ND, output.projections_ND, output.views)
        in_collapse = (
            f", {format_loss(self._loss_references.collapse)} if all are alike" if self._loss_references else ""
        )
        message = (
            f"the embeddings have collapsed at step {step}: {sign} (rank {health.rank:.1f}/{health.dimension},"
            f" std {health.std:.3f}, loss {format_loss(float(output.loss.detach()))}{in_collapse})"
        )
        hint = "a lower learning rate helps most: --fresh --set lr=…"
        if self._stop_on_collapse:
            raise TrainingError(message, hint=hint)
        self._report(f"warning: {message}; {hint}")

    def forget_after(self, step: int) -> None:
        """Drop the records of steps that a resumed run repeats."""
        self._first_step = step + 1
        if not self._path.exists():
            return
        kept = [line for line in self._path.read_text().splitlines() if _step_of(line) <= step]
        partial = self._path.with_name(f".{self._path.name}.partial")
        partial.write_text("".join(f"{line}\n" for line in kept))
        partial.replace(self._path)

    def close(self) -> None:
        """Close the event files."""
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
            self._report(f"no curves for TensorBoard, training continues: {error} (pip install tensorboard)")
            return None
        # From this step on TensorBoard ignores earlier files of the folder: a resumed run repeats these steps.
        return SummaryWriter(folder, purge_step=self._first_step)


def _sign(output: StepOutput) -> str:
    h = measure_dispersion(output.features_ND, 1)  # all from one network, and not always as many as z
    z = measure_dispersion(output.projections_ND, output.views)
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
    """What is wrong with a run that should have learned something; empty if nothing is. For collapse: ``collapse``."""
    if progress.loss > 0.99 * progress.chance:
        return (
            f"nothing is being learned (loss {format_loss(progress.loss)}, chance {format_loss(progress.chance)});"
            " another learning rate may help, or weaker augmentation"
        )
    return ""
