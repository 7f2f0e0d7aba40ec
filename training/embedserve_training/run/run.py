"""A training run from a folder of images to a run folder; the same call again continues a run that was stopped."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from embedserve.errors import TrainingError
from embedserve.types import Limits
from embedserve_training.data import cache
from embedserve_training.data.cache import DecodedImages
from embedserve_training.data.copies import Copies
from embedserve_training.data.folders import Noted, Skipped
from embedserve_training.distributed.launch import ProcessGroup, join_process_group
from embedserve_training.plan.config import TrainConfig
from embedserve_training.plan.plan import Plan
from embedserve_training.run import checkpoint, run_folder
from embedserve_training.run.checkpoint import Checkpoint
from embedserve_training.run.prepare import Prepared, Report, check_device, prepare, versions
from embedserve_training.run.signals import stop_on_signals
from embedserve_training.run.trainer import Trainer
from embedserve_training.watch.progress import Progress, long_duration

__all__ = ["RunResult", "run_training", "versions"]


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The outcome of a call of ``run_training``."""

    run: Path
    status: str
    """"planned" (a dry run), "finished", "stopped" (by a signal; the same command continues) or "finished before"."""
    plan: Plan
    images: int
    """Images used; for a dry run, image files found."""
    skipped: tuple[Skipped, ...] = ()
    passed_over: Mapping[str, int] = field(default_factory=dict)
    """Kind → files or folders that are no images."""
    notes: tuple[Noted, ...] = ()
    """What was decided for single images."""
    copies: Copies | None = None
    """Pictures that are there more than once; None if the images were not decoded now."""
    steps: int = 0
    seconds: float = 0.0
    """Spent training since the first start of the run."""
    whitening_s: float = 0.0
    """Spent after the last step, on the whitening layer."""
    progress: Progress | None = None
    """The last report since this start."""
    rank: int = 0
    """Rank of this process in its process group; only rank 0 reports."""

    @property
    def took(self) -> str:
        """How long it took as text, such as "6.2 minutes, then 48 seconds of whitening"."""
        training = long_duration(self.seconds)
        return f"{training}, then {long_duration(self.whitening_s)} of whitening" if self.whitening_s >= 1 else training


def run_training(
    folder: Path | Sequence[Path],
    *,
    exclude: Sequence[str] = (),
    config: TrainConfig,
    out: Path,
    report: Report,
    dry_run: bool = False,
    fresh: bool = False,
    stop_on_collapse: bool = False,
    from_environment: Collection[str] = (),
    limits: Limits | None = None,
) -> RunResult:
    """Train an encoder on a folder of images, or continue a run that was stopped.

    Processes that ``torchrun`` started all make the same call and train as one process group; process 0 reports, plans,
    decodes and writes. The others need not see the images, but all must see the same ``out``.

    Args:
        folder: images, flat or nested; labels are not used. Several folders, or lists of files as ``@NAME``, likewise.
        exclude: patterns of files and folders to leave out.
        config: what the user gave.
        out: the run folder. A run of the same config in it is continued.
        report: called with each line of text.
        dry_run: report the plan and stop before anything is written.
        fresh: start over even if there is a run in ``out``.
        stop_on_collapse: end the run if its embeddings collapse; else only warn.
        from_environment: names of the settings of ``config`` that environment variables gave, for the plan.
        limits: on an image; larger ones are left out.

    Raises:
        DataError: the folder is missing or holds too few readable images.
        InvalidInput: a value of the config is not valid.
        TrainingError: ``out`` holds a run with another config, other images or another number of processes, the loss is
            not finite, the embeddings have collapsed, or another process has died.
        SetupError: the requested device is not available.
        SystemExit: another process of the group has one of these errors, and reports it.
    """
    with join_process_group(config.device) as group, ExitStack() as held:
        say = report if group.is_first else _discard
        count = group.processes.count
        prepared = group.broadcast_from_first(
            lambda: prepare(
                folder,
                config,
                out,
                say,
                exclude=exclude,
                processes=count,
                dry_run=dry_run,
                fresh=fresh,
                held=held,
                from_environment=from_environment,
                limits=limits,
            )
        )
        if prepared.status:
            return _result(prepared, out, group)
        with group.fail_together():
            images, saved = _open(prepared, out, group)
        with stop_on_signals(say) as stop_requested:
            trainer = Trainer(
                out,
                prepared.plan.settings,
                images,
                say,
                stop_requested,
                group=group,
                stop_on_collapse=stop_on_collapse,
                planned_passes=prepared.plan.passes,
                whole=prepared.whole,
            )
            if saved:
                with group.fail_together():
                    trainer.resume(saved)
                say(f"continuing at step {saved.step}")
            outcome = trainer.train()
        if outcome.finished and group.is_first:
            run_folder.clear_cache(out)  # it is large, and only training needs it
        return RunResult(
            run=out,
            status="finished" if outcome.finished else "stopped",
            plan=prepared.plan,
            images=prepared.images,
            skipped=prepared.skipped,
            passed_over=prepared.passed_over,
            notes=prepared.notes,
            copies=prepared.copies,
            steps=outcome.step,
            seconds=outcome.seconds,
            whitening_s=outcome.whitening_s,
            progress=outcome.progress,
            rank=group.processes.rank,
        )


def _result(prepared: Prepared, out: Path, group: ProcessGroup) -> RunResult:
    return RunResult(
        run=out,
        status=prepared.status,
        plan=prepared.plan,
        images=prepared.images,
        skipped=prepared.skipped,
        passed_over=prepared.passed_over,
        steps=prepared.step or 0,
        seconds=prepared.seconds,
        rank=group.processes.rank,
    )


def _open(prepared: Prepared, out: Path, group: ProcessGroup) -> tuple[DecodedImages, Checkpoint | None]:
    """The decoded images and the checkpoint that process 0 has prepared."""
    check_device(prepared.plan.settings.device, "all processes need the same device")
    assert prepared.cached is not None, "there is nothing to train"
    images = cache.find_cache(out / run_folder.CACHE, prepared.cached, prepared.fingerprint)
    saved = checkpoint.load(out) if prepared.step is not None and images else None
    if images is None or (saved and saved.step != prepared.step):
        raise TrainingError(
            f"process {group.processes.rank} does not see in {out} what process 0 wrote there",
            hint="put the run in a folder that all machines share: -o FOLDER",
        )
    return images, saved


def _discard(line: str) -> None:
    """The report of every process but the first."""
