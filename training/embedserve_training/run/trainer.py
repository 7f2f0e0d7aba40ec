"""The training loop over decoded images, and its exact continuation from a checkpoint.

The order of the images, the augmentations, everything else that is random in a step, and the learning rate are
functions of seed and step, so a run that is stopped and continued takes exactly the steps of an uninterrupted one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from embedserve.errors import TrainingError
from embedserve_training import methods
from embedserve_training.data.batches import Batches
from embedserve_training.data.cache import DecodedImages
from embedserve_training.distributed.launch import ProcessGroup
from embedserve_training.methods.method import StepOutput
from embedserve_training.networks import batch_norm, whitening
from embedserve_training.plan.config import Settings, drops
from embedserve_training.run import checkpoint, optim, run_folder
from embedserve_training.run.budget import Budget, Spent
from embedserve_training.run.checkpoint import Checkpoint
from embedserve_training.run.gradient import BatchGradient
from embedserve_training.seeds import seed_of
from embedserve_training.watch import representation
from embedserve_training.watch.monitor import CHECK_EVERY_STEPS, Monitor
from embedserve_training.watch.progress import Progress

REPORT_EVERY_S = 5.0
CHECKPOINT_EVERY_S = 60.0
_CHECK_LOSS_EVERY_STEPS = 50
"""On a GPU the loss is read only this often: reading it waits for the GPU."""
_FEW_STEPS = 50


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How far a run got."""

    finished: bool
    """False if it was stopped before its budget was used."""
    step: int
    seconds: float
    """Spent training since the first start of the run."""
    progress: Progress | None
    """The last report since this start; only process 0 has it."""


class Trainer:
    """A run in progress.

    Args:
        run: its folder.
        settings: of the run.
        images: the decoded images.
        report: called with each line of text.
        stop_requested: called after every step; returns whether to stop.
        group: the processes that train together.
        stop_on_collapse: end the run if its embeddings collapse; else only warn.
    """

    def __init__(
        self,
        run: Path,
        settings: Settings,
        images: DecodedImages,
        report: Callable[[str], None],
        stop_requested: Callable[[], bool],
        *,
        group: ProcessGroup | None = None,
        stop_on_collapse: bool = False,
    ) -> None:
        self.run = run
        self.settings = settings
        self.device = torch.device(settings.device)
        self.report = report
        self.stop_requested = stop_requested
        self.group = group or ProcessGroup()
        torch.backends.cudnn.benchmark = True  # all batches have the same shape
        torch.manual_seed(settings.seed)  # the same in every process, so all start with the same weights
        processes = self.group.processes
        method = methods.build(settings, len(images.positions), processes)
        # The fast convolutions of both oneDNN and cuDNN take channels-last.
        self.method = method.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.method.global_batch_norm:
            batch_norm.synchronise(self.method, processes)
        self.optimizer = optim.build(settings, self.method)
        self.gradient = BatchGradient(self.method, settings)
        self.batches = Batches(
            images.pixels_NTTC, settings.batch_size, settings.seed, self.device, rows_B=self.gradient.rows_B
        )
        self.budget = Budget(epochs=settings.epochs, minutes=settings.minutes, steps_per_epoch=self.batches.per_epoch)
        self.pixels_NTTC = images.pixels_NTTC
        self.loss_references = self.method.loss_references(settings.batch_size)
        self.monitor = Monitor(
            run / run_folder.METRICS,
            report,
            loss_references=self.loss_references,
            stop_on_collapse=stop_on_collapse,
            tensorboard=run / run_folder.TENSORBOARD,
        )
        self.step = 0
        self.seconds = 0.0
        self._step_s = 0.0
        self._saved_step = -1
        self._interval = _Interval()

    @property
    def _spent(self) -> Spent:
        return Spent(step=self.step, seconds=self.seconds, step_s=self._step_s)

    @property
    def done(self) -> bool:
        """Whether the budget is used."""
        return self.budget.done(self._spent)

    def resume(self, saved: Checkpoint) -> None:
        """Continue from a checkpoint."""
        checkpoint.load_weights(self.method, saved, self.run)
        self.optimizer.load_state_dict(dict(saved.optimizer))
        self.step, self.seconds, self._saved_step = saved.step, saved.seconds, saved.step
        self._step_s = saved.step_s
        if self.group.is_first:
            self.monitor.forget_after(saved.step)

    def train(self) -> Outcome:
        """Train until the budget is used or a stop is requested; either way write a checkpoint.

        Raises:
            TrainingError: the loss is not finite, the disk is full, or with ``stop_on_collapse`` the embeddings have
                collapsed.
        """
        self.method.train()
        if self._saved_step < 0:
            self.save(finished=False)  # an unwritable disk is found now and not in an hour
        with closing(self.batches.start_at(self.step)) as batches, closing(self.monitor):
            progress = self._train(batches)
        if not self.done:
            self.save(finished=False)  # before the whitening, which a second signal may interrupt
        self.save(finished=self.done, whitening=self._whitening())
        return Outcome(finished=self.done, step=self.step, seconds=self.seconds, progress=progress)

    def _train(self, batches: Iterator[tuple[Tensor, Tensor]]) -> Progress | None:
        """Take steps until the budget is used or a stop is requested; the last report."""
        reported = saved = start = time.perf_counter()
        before = self.seconds
        progress: Progress | None = None
        output: StepOutput | None = None
        stopped = 0.0
        first = self.step
        while not self.done and not stopped:
            started = time.perf_counter()
            indices_B, pixels_BTTC = next(batches)
            fetched = time.perf_counter()
            output = self._step(indices_B, pixels_BTTC)
            now = time.perf_counter()
            check_loss = self.device.type == "cpu" or self.step % _CHECK_LOSS_EVERY_STEPS == 1
            not_finite = check_loss and not math.isfinite(output.loss.item())
            # Process 0 decides when to report and save, but the time of the slowest process counts: with a budget in
            # minutes the learning rate depends on it and must be the same everywhere.
            asked = self.stop_requested()
            stopped, failing, report_now, save_now, self.seconds, self._step_s = self.group.all_reduce_max(
                asked,
                not_finite,
                self.group.is_first and now - reported >= REPORT_EVERY_S,
                self.group.is_first and now - saved >= CHECKPOINT_EVERY_S,
                before + now - start,
                # The first step may be slow, as with compilation, and does not predict the next.
                now - started if self.step > first + 1 else 0.0,
            )
            if stopped and not asked:
                self.report("another process was asked to stop: stopping after this step")
            self._interval.add(output, self.settings.batch_size, fetched - started, now - started)
            if failing or self.step % CHECK_EVERY_STEPS == 0:
                with self.group.fail_together():
                    self._check(output)
            if report_now:
                progress = self._report(output)
                reported = now
            if save_now:
                self.save(finished=False)
                saved = time.perf_counter()
        if output and self._interval.steps:
            progress = self._report(output)
        if self.done and self.settings.minutes and self.step < _FEW_STEPS:
            steps = "1 step" if self.step == 1 else f"{self.step} steps"
            minutes = "1 minute" if self.settings.minutes == 1 else f"{self.settings.minutes:g} minutes"
            self.report(
                f"warning: only {steps} fitted into {minutes}, too few to learn from;"
                " give more minutes or a smaller --batch-size"
            )
        return progress

    def _step(self, indices_B: Tensor, pixels_BTTC: Tensor) -> StepOutput:
        settings = self.settings
        progress = self.budget.middle_of_next(self._spent)
        lr = settings.lr * optim.lr_factor(progress, settings.warmup, drops(settings.lr_drops), settings.lr_end)
        optim.set_lr(self.optimizer, lr)
        # For random layers of the network such as dropout; each process has other images and so another seed.
        torch.manual_seed(seed_of(settings.seed, f"network {self.group.processes.rank}", self.step))
        self.optimizer.zero_grad(set_to_none=True)
        try:
            output = self.gradient.of(pixels_BTTC, indices_B, self.step)
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"the memory of the GPU is too small for {settings.batch_size} images per step; {self._last_good}",
                hint=f"--batch-size {max(settings.batch_size // 2, 2)}, a smaller network, or a smaller --size-px",
            ) from error
        except RuntimeError as error:
            if not settings.compile or not _from_compiler(error):
                raise
            raise TrainingError(
                f"the network cannot be compiled here: {str(error).strip().splitlines()[0]}", hint="leave out --compile"
            ) from error
        if settings.clip_norm:
            norm = clip_grad_norm_(self.method.parameters(), settings.clip_norm)
            output = replace(output, diagnostics={**output.diagnostics, "grad_norm": norm})
        self.optimizer.step()
        self.step += 1
        self.method.after_step()
        return output

    def _check(self, output: StepOutput) -> None:
        loss = output.loss.item()
        if not math.isfinite(loss):
            raise self._not_finite(f"the loss is {loss} at step {self.step - 1}")
        if self.group.is_first:
            try:
                self.monitor.check_collapse(output, self.step)
            except TrainingError as error:
                raise TrainingError(f"{error.message}; {self._last_good}", hint=error.hint) from error

    def _not_finite(self, problem: str) -> TrainingError:
        lr = self.optimizer.param_groups[0]["lr"]
        return TrainingError(
            f"{problem} (lr {lr:.2g}, {self.settings.precision}); {self._last_good}",
            hint=f"a lower learning rate helps most: --fresh --set lr={self.settings.lr / 4:.2g}",
        )

    @property
    def _last_good(self) -> str:
        return f"the last good checkpoint is {self.run / run_folder.CHECKPOINT}, of step {self._saved_step}"

    def _report(self, output: StepOutput) -> Progress | None:
        interval, self._interval = self._interval, _Interval()
        loss = self.group.mean(float(interval.loss_sum) / interval.steps)
        progress = None
        with self.group.fail_together():
            if not math.isfinite(loss):
                raise self._not_finite(f"the loss is {loss} near step {self.step}")
            if self.group.is_first:
                progress = self._progress(output, interval, loss)
                self.monitor.record(progress, self.budget.used(self._spent))
        return progress

    def _progress(self, output: StepOutput, interval: _Interval, loss: float) -> Progress:
        measured = representation.measure(output.features_ND, output.projections_ND, output.views)
        steps = self.budget.total_steps(self._spent)
        return Progress(
            epoch=math.ceil(self.step / self.batches.per_epoch),
            epochs=math.ceil(steps / self.batches.per_epoch),
            estimated=not self.settings.epochs,
            step=self.step,
            steps=steps,
            loss=loss,
            chance=self.loss_references.chance,
            collapse=self.loss_references.collapse,
            rank=measured.rank,
            dimension=measured.dimension,
            std=measured.std,
            alignment=measured.alignment,
            uniformity=measured.uniformity,
            lr=self.optimizer.param_groups[0]["lr"],
            images_per_s=interval.images / interval.total_s,
            data_wait=interval.waited_s / interval.total_s,
            seconds=self.seconds,
            eta_s=self.budget.left_s(self._spent, interval.total_s / interval.steps),
            diagnostics={name: float(value) for name, value in output.diagnostics.items()},
        )

    def _whitening(self) -> Mapping[str, Tensor] | None:
        if not self.settings.whiten or not self.group.is_first:
            return None
        return whitening.fit_to_images(self.method.backbone, self.pixels_NTTC, self.settings.size_px).state_dict()

    def save(self, *, finished: bool, whitening: Mapping[str, Tensor] | None = None) -> None:
        """Write a checkpoint, but never one with a weight that is not finite.

        Raises:
            TrainingError: a weight is not finite, or the checkpoint cannot be written.
        """
        with self.group.fail_together():
            if self.group.is_first:
                self._save(finished, whitening)
        self._saved_step = self.step

    def _save(self, finished: bool, whitening: Mapping[str, Tensor] | None) -> None:
        state = self.method.state_dict()
        for name, value in state.items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise self._not_finite(f"{name} is not finite after step {self.step}")
        checkpoint.save(
            Checkpoint(
                step=self.step,
                seconds=self.seconds,
                step_s=self._step_s,
                finished=finished,
                method=state,
                optimizer=self.optimizer.state_dict(),
                whitening=whitening,
            ),
            self.run,
        )


def _from_compiler(error: RuntimeError) -> bool:
    # Imported here because it takes seconds; compiling has imported it already.
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException)


class _Interval:
    """Sums since the last report. The loss stays on its device until it is read."""

    def __init__(self) -> None:
        self.loss_sum: Tensor | float = 0.0
        self.steps = 0
        self.images = 0
        self.waited_s = 0.0
        self.total_s = 0.0

    def add(self, output: StepOutput, images: int, waited_s: float, total_s: float) -> None:
        self.loss_sum = self.loss_sum + output.loss
        self.steps += 1
        self.images += images
        self.waited_s += waited_s
        self.total_s += total_s
