"""From a folder of images to a run folder: plan, decode, train; and the same line again goes on where it stopped."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from embedserve.errors import TrainingError
from embedserve_training.data import cache
from embedserve_training.data.cache import DecodedImages
from embedserve_training.data.folders import Skipped
from embedserve_training.distributed.launch import ProcessGroup, join_process_group
from embedserve_training.plan.config import TrainConfig
from embedserve_training.plan.plan import Plan
from embedserve_training.run import checkpoint
from embedserve_training.run.checkpoint import Checkpoint
from embedserve_training.run.prepare import Prepared, Report, check_device, prepare, versions
from embedserve_training.run.signals import stop_on_signals
from embedserve_training.run.trainer import Trainer
from embedserve_training.watch.monitor import Progress

__all__ = ["RunResult", "run_training", "versions"]


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What became of a run."""

    run: Path
    status: str
    """"planned" (a dry run), "finished", "stopped" (by a signal; the same line goes on) or "finished before"."""
    plan: Plan
    images: int
    """Images used; for a dry run, image files seen."""
    skipped: tuple[Skipped, ...] = ()
    steps: int = 0
    seconds: float = 0.0
    """Spent training, since the run was first begun."""
    progress: Progress | None = None
    """The last report since this start."""
    rank: int = 0
    """Number of this process among those that trained together; 0 speaks for all."""


def run_training(
    folder: Path,
    *,
    config: TrainConfig,
    out: Path,
    report: Report,
    dry_run: bool = False,
    fresh: bool = False,
    stop_on_collapse: bool = False,
    from_environment: Collection[str] = (),
) -> RunResult:
    """Train an encoder on a folder of images, or go on with a run that was stopped.

    In each of several processes that ``torchrun`` started the same call trains together with the others; process 0
    reports, plans, decodes and writes. They need not see the images, but all have to see the same ``out``.

    Args:
        folder: images, flat or nested; labels are not used.
        config: what a person wants.
        out: the run folder. If it holds a run of the same config, that run goes on.
        report: takes lines for a person.
        dry_run: report the plan and stop before anything is written.
        fresh: begin anew even if there is a run in ``out``.
        stop_on_collapse: end the run if its embeddings collapse; else that is only said.
        from_environment: names of the settings that an environment variable said, which the plan then tells.

    Raises:
        DataError: the folder is missing or holds too few images that can be read.
        InvalidInput: a value of the config is not usable.
        TrainingError: ``out`` holds a run of another config, other images or another number of processes, the loss is
            not finite, the embeddings have collapsed, or another process is gone.
        SetupError: the device that was asked for is not there.
        SystemExit: another of several processes has one of these errors, and says so.
    """
    with join_process_group(config.device) as group, ExitStack() as held:
        say = report if group.is_first else _nobody
        count = group.processes.count
        prepared = group.broadcast_from_first(
            lambda: prepare(
                folder,
                config,
                out,
                say,
                processes=count,
                dry_run=dry_run,
                fresh=fresh,
                held=held,
                from_environment=from_environment,
            )
        )
        if prepared.status:
            return _result(prepared, out, group)
        with group.fail_together():
            images, saved = _open(prepared, out, group)
        with stop_on_signals(say) as stop_wanted:
            trainer = Trainer(
                out,
                prepared.plan.settings,
                images,
                say,
                stop_wanted,
                group=group,
                stop_on_collapse=stop_on_collapse,
            )
            if saved:
                with group.fail_together():
                    trainer.resume(saved)
                say(f"going on at step {saved.step}")
            outcome = trainer.train()
        if outcome.finished and group.is_first:
            shutil.rmtree(out / checkpoint.CACHE, ignore_errors=True)  # it is large, and only training needs it
        return RunResult(
            run=out,
            status="finished" if outcome.finished else "stopped",
            plan=prepared.plan,
            images=prepared.images,
            skipped=prepared.skipped,
            steps=outcome.step,
            seconds=outcome.seconds,
            progress=outcome.progress,
            rank=group.processes.rank,
        )


def _result(prepared: Prepared, out: Path, group: ProcessGroup) -> RunResult:
    return RunResult(
        run=out,
        status=prepared.status,
        plan=prepared.plan,
        images=prepared.images,
        steps=prepared.step or 0,
        seconds=prepared.seconds,
        rank=group.processes.rank,
    )


def _open(prepared: Prepared, out: Path, group: ProcessGroup) -> tuple[DecodedImages, Checkpoint | None]:
    """What process 0 has prepared, as this process sees it."""
    check_device(prepared.plan.settings.device, "all processes need the same device")
    images = cache.find_cache(out / checkpoint.CACHE, prepared.side_px, prepared.fingerprint)
    saved = checkpoint.load(out) if prepared.step is not None and images else None
    if images is None or (saved and saved.step != prepared.step):
        raise TrainingError(
            f"process {group.processes.rank} does not see in {out} what process 0 wrote there",
            hint="put the run into a folder that all machines share: -o FOLDER",
        )
    return images, saved


def _nobody(line: str) -> None:
    """Takes lines that process 0 says for all."""
