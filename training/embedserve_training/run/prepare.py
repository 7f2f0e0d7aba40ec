"""The preparation of a run: its plan, its decoded images, and the checkpoint to continue from. Process 0 does it."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

import embedserve
from embedserve.cores import usable_cores
from embedserve.errors import DataError, SetupError
from embedserve.images.preprocess import PreprocessSpec
from embedserve_training import methods
from embedserve_training.data import cache, folders
from embedserve_training.data.cache import DecodedImages
from embedserve_training.data.folders import ImageFolder, Skipped
from embedserve_training.plan.config import MIN_IMAGES, Settings, TrainConfig
from embedserve_training.plan.plan import Facts, Plan, plan
from embedserve_training.plan.sizes import is_small
from embedserve_training.run import checkpoint, image_list, resume, run_folder, speed
from embedserve_training.run.run_folder import StoredPlan
from embedserve_training.run.served import sees_whole_images
from embedserve_training.watch.progress import counted, duration, line_columns

Report = Callable[[str], None]
SAMPLES = 32
"""Images kept in the run folder, with which export compares its result."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What all processes of a run need to know before they train."""

    plan: Plan
    images: int
    """Images used; for a dry run, image files found."""
    status: str = ""
    """"planned" or "finished before", if there is nothing to train; else empty."""
    skipped: tuple[Skipped, ...] = ()
    fingerprint: str = ""
    """Of the decoded images."""
    side_px: int = 0
    """Of the decoded images."""
    step: int | None = None
    """Of the checkpoint to continue from; None for a new run."""
    seconds: float = 0.0
    """Spent training so far."""
    whole: bool | None = None
    """Whether the encoder sees images whole, and not without a margin."""


def prepare(
    folder: Path,
    config: TrainConfig,
    out: Path,
    report: Report,
    *,
    processes: int,
    dry_run: bool,
    fresh: bool,
    held: ExitStack,
    from_environment: Collection[str] = (),
    measure_speed: Callable[[], float] = speed.measure,
) -> Prepared:
    """Plan a new run and decode its images, or find the run to continue.

    Args:
        folder: images.
        config: what the user gave.
        out: the run folder.
        report: called with each line of text.
        processes: size of the process group.
        dry_run: report the plan and stop before anything is written.
        fresh: start over even if there is a run in ``out``.
        held: receives the lock on the run folder, which the caller holds as long as the run.
        from_environment: names of the settings of ``config`` that environment variables gave.
        measure_speed: GFLOP/s of this machine at training; called only for a new plan that depends on it.

    Raises:
        DataError: the folder is missing or holds too few readable images.
        InvalidInput: a value of the config is not valid.
        TrainingError: ``out`` holds a run with another config, other images or another number of processes.
        SetupError: the requested device is not available.
    """
    files = folders.scan(folder)
    before = None if fresh or dry_run else resume.earlier_run(out, config)
    if before:
        facts = None
        the_plan, side_px = resume.plan_of(before, config), int(before.data["cached_side_px"])
        check_device(the_plan.settings.device, "the run started on that device; continue there, or start over: --fresh")
    else:
        facts = _with_speed(config, _facts(files, processes), measure_speed)
        the_plan = _make_plan(config, facts, from_environment)
        side_px = cache.cached_side_px(the_plan.settings.size_px, facts.median_side_px)
    if dry_run:
        report(f"{len(files.paths)} image files in {folder}")
        _report_plan(the_plan, report)
        return Prepared(status="planned", plan=the_plan, images=len(files.paths))
    saved = checkpoint.load(out) if before else None
    if before and saved and saved.finished:
        report(f"{out} is finished: {counted(saved.step, 'step')} in {duration(saved.seconds)}; --fresh starts over")
        images = int(before.data["images"])
        return Prepared(status="finished before", plan=the_plan, images=images, step=saved.step, seconds=saved.seconds)
    if before:
        resume.check_same_processes(before, processes, out)
    held.enter_context(run_folder.locked(out))
    saved = checkpoint.load(out) if before else None  # another process may have continued it since
    decoded = _decode(files, side_px, the_plan.settings.workers, out, report)
    if before:
        resume.check_same_images(before, decoded.fingerprint, _digests(files, decoded), folder, out)
        resume.remember_folder(before, folder, out)
        whole = sees_whole_images(before.preprocess)
    else:
        # There may be fewer images than the plan assumed: some files may be unreadable.
        facts = replace(facts or _facts(files, processes), images=len(decoded.positions))
        the_plan = _make_plan(config, facts, from_environment)
        spec = _begin(files, decoded, config, the_plan, side_px, processes, out)
        whole = sees_whole_images(spec.to_json())
    report(f"{len(decoded.positions)} images in {folder}, {counted(len(decoded.skipped), 'file')} left out")
    _report_plan(the_plan, report)
    return Prepared(
        plan=the_plan,
        images=len(decoded.positions),
        skipped=decoded.skipped,
        fingerprint=decoded.fingerprint,
        side_px=side_px,
        step=saved.step if saved else None,
        seconds=saved.seconds if saved else 0.0,
        whole=whole,
    )


def versions() -> dict[str, str]:
    """Versions of the packages that a run depends on."""
    import torchvision

    return {
        "embedserve": embedserve.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
    }


def _facts(files: ImageFolder, processes: int) -> Facts:
    seen = folders.summarise(files)
    return Facts(
        images=len(files.paths),
        files=len(files.paths),
        median_side_px=seen.median_side_px,
        grey=seen.grey,
        cuda=torch.cuda.is_available(),
        mps=torch.backends.mps.is_available(),
        cores=usable_cores(),
        processes=processes,
    )


def _with_speed(config: TrainConfig, facts: Facts, measure_speed: Callable[[], float]) -> Facts:
    """The facts with the speed of the CPU, where a plan depends on it; a dry run measures too, and plans the same."""
    settings = plan(config, facts).settings
    if settings.device != "cpu" or not settings.minutes:
        return facts
    return replace(facts, gflop_per_s=measure_speed())


def _make_plan(config: TrainConfig, facts: Facts, from_environment: Collection[str]) -> Plan:
    check_device(config.device, "--device cpu works everywhere")
    the_plan = plan(config, facts, from_environment=from_environment)
    if facts.processes > 1 and the_plan.settings.device == "mps":
        raise SetupError("several processes cannot train on mps", hint="--device cpu, or a single process")
    # On the meta device, where it costs nothing: an error appears before anything is decoded or removed.
    with torch.device("meta"):
        methods.build(the_plan.settings, images=1)
    return the_plan


def check_device(device: str, hint: str) -> None:
    """Check that a device is available.

    Raises:
        SetupError: it is not.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise SetupError("device cuda was asked for, but torch sees no CUDA GPU", hint=hint)
    if device == "mps" and not torch.backends.mps.is_available():
        raise SetupError("device mps was asked for, but is not available", hint=hint)


def _report_plan(the_plan: Plan, report: Report) -> None:
    for line in the_plan.lines(line_columns() - 4):
        report(f"  {line}")


def _preprocess(settings: Settings) -> PreprocessSpec:
    """How the encoder's images are cropped: small ones to a square, larger ones also without a margin of a seventh.

    Classification encoders take the centre of photographs as well (256 → 224).
    """
    resize_px = settings.size_px if is_small(settings.size_px) else round(settings.size_px * cache.MARGIN)
    return PreprocessSpec(size_px=settings.size_px, resize_px=resize_px, filter="bicubic")


def _decode(files: ImageFolder, side_px: int, workers: int, out: Path, report: Report) -> DecodedImages:
    """The pixels of all readable files, cached in the run folder."""
    progress = _decoding_progress(report)
    images = cache.open_cache(files, side_px, out / run_folder.CACHE, workers=workers, progress=progress)
    _report_skipped(images.skipped, out, report)
    count = len(images.positions)
    if count < MIN_IMAGES:
        raise DataError(f"{files.root} has {count} readable images; training needs at least {MIN_IMAGES}")
    return images


def _digests(files: ImageFolder, images: DecodedImages) -> dict[str, str]:
    """sha256 of each image's bytes by its name; empty if a cache of an older version does not have them."""
    return {files.paths[position]: digest for position, digest in zip(images.positions, images.digests, strict=False)}


def _begin(
    files: ImageFolder,
    images: DecodedImages,
    config: TrainConfig,
    the_plan: Plan,
    side_px: int,
    processes: int,
    out: Path,
) -> PreprocessSpec:
    """Remove the files of an earlier run, and write those that do not change during this one; the preprocessing."""
    run_folder.clear(out)
    spec = _preprocess(the_plan.settings)
    _write_samples(files, images.positions, spec, out)
    stored = StoredPlan(
        config=asdict(config),
        settings=the_plan.settings,
        sources={entry.name: entry.source for entry in the_plan.entries},
        preprocess=spec.to_json(),
        data={
            "folder": str(files.root.resolve()),
            "fingerprint": images.fingerprint,
            "images": len(images.positions),
            "cached_side_px": side_px,
            "processes": processes,
        },
        versions=versions(),
    )
    digests = _digests(files, images)
    if digests:
        image_list.write(digests, out)
    run_folder.write_plan(stored, out)
    return spec


def _write_samples(files: ImageFolder, positions: tuple[int, ...], spec: PreprocessSpec, out: Path) -> None:
    """Keep some images as the encoder sees them, with which export compares its result."""
    chosen = [positions[i] for i in np.linspace(0, len(positions) - 1, min(SAMPLES, len(positions))).astype(int)]
    squares, _, _ = folders.load_squares(files.subset(chosen), spec, workers=1)
    np.save(out / run_folder.SAMPLES, squares)


def _report_skipped(skipped: tuple[Skipped, ...], out: Path, report: Report) -> None:
    path = run_folder.write_skipped(skipped, out)
    for entry in skipped[:3]:
        report(f"left out: {entry.path}: {entry.reason}")
    if len(skipped) > 3:
        report(f"left out: {len(skipped) - 3} more, listed in {path}")


def _decoding_progress(report: Report) -> Callable[[int, int], None]:
    last = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= 5:
            last = time.monotonic()
            report(f"decoding  {done}/{total} images")

    return progress
