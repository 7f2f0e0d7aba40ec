"""One training run, from a folder of images to a run folder that can be exported, and its exact continuation.

The order of the images, the augmentations and the learning rate are functions of seed and step, so a run that is
stopped and started again takes the very steps it would have taken.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from embedserve.errors import TrainingError
from embedserve_training import augment, checkpoint, methods, optim
from embedserve_training.batches import Batches
from embedserve_training.cache import DecodedImages
from embedserve_training.checkpoint import Checkpoint
from embedserve_training.config import Settings, drops
from embedserve_training.method import StepOutput
from embedserve_training.monitor import Monitor, Progress, effective_rank

REPORT_EVERY_S = 5.0
CHECKPOINT_EVERY_S = 60.0
_CHECK_EVERY_STEPS = 50
_FEW_STEPS = 50
"""On a GPU the loss is looked at only now and then: looking means waiting for the GPU."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How far a run came."""

    finished: bool
    """False if it was stopped before its budget was used."""
    step: int
    seconds: float
    """Spent training, since the run was first begun."""
    progress: Progress | None
    """The last report since this start."""


class Trainer:
    """A run in progress.

    Args:
        run: its folder.
        settings: what it uses.
        images: its pixels.
        report: takes lines for a person.
        stop_wanted: asked after every step whether to stop.
    """

    def __init__(
        self,
        run: Path,
        settings: Settings,
        images: DecodedImages,
        report: Callable[[str], None],
        stop_wanted: Callable[[], bool],
    ) -> None:
        self.run = run
        self.settings = settings
        self.device = torch.device(settings.device)
        self.report = report
        self.stop_wanted = stop_wanted
        self.recipes = augment.recipes_for(settings.augmentation, settings.crop_min)
        torch.backends.cudnn.benchmark = True  # all batches have the same shape
        torch.manual_seed(settings.seed)
        method = methods.build(settings, len(images.positions))
        # Channels-last is what the fast convolutions of both oneDNN and cuDNN take.
        self.method = method.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = optim.build(settings, self.method)
        self.batches = Batches(images.pixels_NTTC, settings.batch_size, settings.seed, self.device)
        self.monitor = Monitor(run / checkpoint.METRICS, report)
        self.chance = self.method.anchors(settings.batch_size).chance
        self.generator = torch.Generator()
        self.step = 0
        self.seconds = 0.0
        self._step_s = 0.0
        self._saved_step = -1
        self._since = _Since()

    @property
    def total_steps(self) -> int:
        """Steps of the whole run; an estimate if the budget is in minutes."""
        if self.settings.epochs:
            return self.settings.epochs * self.batches.per_epoch
        return max(round(self.step / max(self.used, 1e-6)), self.step)

    @property
    def used(self) -> float:
        """Share of the budget that is used, 0–1."""
        if self.settings.epochs:
            return self.step / (self.settings.epochs * self.batches.per_epoch)
        return self.seconds / (60 * self.settings.minutes)

    @property
    def done(self) -> bool:
        """Whether the budget is used; in minutes, whether most of one more step would exceed it."""
        if self.settings.epochs:
            return self.step >= self.settings.epochs * self.batches.per_epoch
        return self.seconds + self._step_s / 2 >= 60 * self.settings.minutes

    def resume(self, saved: Checkpoint) -> None:
        """Go on from a checkpoint."""
        checkpoint.load_weights(self.method, saved, self.run)
        self.optimizer.load_state_dict(dict(saved.optimizer))
        torch.set_rng_state(saved.rng["cpu"].cpu())
        if self.device.type == "cuda" and "cuda" in saved.rng:
            torch.cuda.set_rng_state(saved.rng["cuda"].cpu())
        self.step, self.seconds, self._saved_step = saved.step, saved.seconds, saved.step
        self._step_s = saved.step_s
        self.monitor.forget_after(saved.step)

    def train(self) -> Outcome:
        """Train until the budget is used or a stop is wanted; either way a checkpoint is written.

        Raises:
            TrainingError: the loss is not finite, or the disk is full.
        """
        self.method.train()
        if self._saved_step < 0:
            self.save(finished=False)  # a disk that cannot be written to shows now and not in an hour
        with closing(self.batches.start_at(self.step)) as batches:
            progress = self._train(batches)
        self.save(finished=self.done)
        return Outcome(finished=self.done, step=self.step, seconds=self.seconds, progress=progress)

    def _train(self, batches: Iterator[tuple[Tensor, Tensor]]) -> Progress | None:
        """Steps until the budget is used or a stop is wanted."""
        reported = saved = begun = time.perf_counter()
        before = self.seconds
        progress: Progress | None = None
        output: StepOutput | None = None
        stopped = False
        while not self.done and not stopped:
            started = time.perf_counter()
            indices_B, pixels_BTTC = next(batches)
            fetched = time.perf_counter()
            output = self._step(indices_B, pixels_BTTC)
            now = time.perf_counter()
            self.seconds = before + now - begun
            self._step_s = now - started
            self._since.add(output, self.settings.batch_size, fetched - started, now - started)
            stopped = self.stop_wanted()
            if now - reported >= REPORT_EVERY_S:
                progress = self._report(output)
                reported = now
            if now - saved >= CHECKPOINT_EVERY_S:
                self.save(finished=False)
                saved = time.perf_counter()
        if output and self._since.steps:
            progress = self._report(output)
        if self.done and self.settings.minutes and self.step < _FEW_STEPS:
            self.report(
                f"warning: only {self.step} steps fitted into {self.settings.minutes:g} minutes, too few to learn from;"
                " give more minutes or a smaller --batch-size"
            )
        return progress

    def _step(self, indices_B: Tensor, pixels_BTTC: Tensor) -> StepOutput:
        settings = self.settings
        # The middle of the step stands for it: the first one moves already, the last one is all but at the end.
        half_s = self._step_s / 2
        half = 0.5 / (settings.epochs * self.batches.per_epoch) if settings.epochs else half_s / 60 / settings.minutes
        lr = settings.lr * optim.lr_factor(
            min(self.used + half, 1.0), settings.warmup, drops(settings.lr_drops), settings.lr_end
        )
        optim.set_lr(self.optimizer, lr)
        self.generator.manual_seed((settings.seed << 31) + self.step)
        with torch.no_grad():
            views_VBCSS = [
                augment.augment(pixels_BTTC, settings.size_px, self.recipes[view % len(self.recipes)], self.generator)
                for view in range(self.method.views)
            ]
        bf16 = settings.precision == "bf16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16):
            output: StepOutput = self.method(views_VBCSS, indices_B, self.generator)
        self.optimizer.zero_grad(set_to_none=True)
        output.loss.backward()  # type: ignore[no-untyped-call]
        if self.device.type == "cpu" or self.step % _CHECK_EVERY_STEPS == 0:
            self._check_finite(output.loss)
        self.optimizer.step()
        self.step += 1
        self.method.after_step()
        return output

    def _check_finite(self, loss: Tensor) -> None:
        if not math.isfinite(loss.item()):
            raise self._not_finite(f"the loss is {loss.item()} at step {self.step}")

    def _not_finite(self, what: str) -> TrainingError:
        lr = self.optimizer.param_groups[0]["lr"]
        return TrainingError(
            f"{what} (lr {lr:.2g}, {self.settings.precision});"
            f" the last good checkpoint is {self.run / checkpoint.CHECKPOINT}, of step {self._saved_step}",
            hint=f"a lower learning rate helps most: --fresh --set lr={self.settings.lr / 4:.2g}",
        )

    def _report(self, output: StepOutput) -> Progress:
        since, self._since = self._since, _Since()
        loss = float(since.loss_sum) / since.steps
        if not math.isfinite(loss):
            raise self._not_finite(f"the loss is {loss} near step {self.step}")
        seconds_per_step = since.total_s / since.steps
        left_s = (
            (self.total_steps - self.step) * seconds_per_step
            if self.settings.epochs
            else 60 * self.settings.minutes - self.seconds
        )
        progress = Progress(
            epoch=math.ceil(self.step / self.batches.per_epoch),
            epochs=math.ceil(self.total_steps / self.batches.per_epoch),
            estimated=not self.settings.epochs,
            step=self.step,
            steps=self.total_steps,
            loss=loss,
            chance=self.chance,
            rank=effective_rank(output.features_ND),
            dimension=self.method.backbone.dimension,
            lr=self.optimizer.param_groups[0]["lr"],
            images_per_s=since.images / since.total_s,
            data_wait=since.waited_s / since.total_s,
            seconds=self.seconds,
            eta_s=max(left_s, 0.0),
            diagnostics={name: float(value) for name, value in output.diagnostics.items()},
        )
        self.monitor.record(progress, self.used)
        return progress

    def save(self, *, finished: bool) -> None:
        """Write a checkpoint, but never one with numbers that are not finite.

        Raises:
            TrainingError: a weight is not finite, or the checkpoint cannot be written.
        """
        for name, value in self.method.state_dict().items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise self._not_finite(f"{name} is not finite after step {self.step}")
        rng = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state()
        state: dict[str, Any] = self.method.state_dict()
        checkpoint.save(
            Checkpoint(
                step=self.step,
                seconds=self.seconds,
                step_s=self._step_s,
                finished=finished,
                method=state,
                optimizer=self.optimizer.state_dict(),
                rng=rng,
            ),
            self.run,
        )
        self._saved_step = self.step


class _Since:
    """Sums since the last report. The loss stays on its device until it is needed."""

    def __init__(self) -> None:
        self.loss_sum: Tensor | float = 0.0
        self.steps = 0
        self.images = 0
        self.waited_s = 0.0
        self.total_s = 0.0

    def add(self, output: StepOutput, images: int, waited_s: float, total_s: float) -> None:
        self.loss_sum = self.loss_sum + output.loss.detach()
        self.steps += 1
        self.images += images
        self.waited_s += waited_s
        self.total_s += total_s
