"""The preparation of a run: its plan, its decoded images, and the checkpoint to continue from. Process 0 does it."""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

import embedserve
from embedserve.cores import usable_cores
from embedserve.errors import DataError, SetupError
from embedserve.folder.scan import OLDER, RULE
from embedserve.images.preprocess import PreprocessSpec
from embedserve.types import Limits
from embedserve_training import methods
from embedserve_training.data import cache, folders, survey
from embedserve_training.data.cache import DecodedImages
from embedserve_training.data.copies import Copies
from embedserve_training.data.folders import ImageFolder, Noted, Skipped
from embedserve_training.plan.config import MIN_IMAGES, Settings, TrainConfig
from embedserve_training.plan.image_settings import preprocess_of
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
    passed_over: Mapping[str, int] = field(default_factory=dict)
    """Kind → files or folders that are no images."""
    fingerprint: str = ""
    """Of the decoded images."""
    notes: tuple[Noted, ...] = ()
    """What was decided for single images."""
    copies: Copies | None = None
    """Pictures that are there more than once; None if the images were not decoded now."""
    cached: PreprocessSpec | None = None
    """How the images were decoded; None if nothing is to be trained."""
    step: int | None = None
    """Of the checkpoint to continue from; None for a new run."""
    seconds: float = 0.0
    """Spent training so far."""
    whole: bool | None = None
    """Whether the encoder sees images whole, and not without a margin."""


def prepare(
    folder: Path | Sequence[Path],
    config: TrainConfig,
    out: Path,
    report: Report,
    *,
    exclude: Sequence[str] = (),
    processes: int,
    dry_run: bool,
    fresh: bool,
    held: ExitStack,
    from_environment: Collection[str] = (),
    limits: Limits | None = None,
    measure_speed: Callable[[], float] = speed.measure,
) -> Prepared:
    """Plan a new run and decode its images, or find the run to continue.

    Args:
        folder: images; several folders, or lists of files as ``@NAME``, likewise.
        config: what the user gave.
        out: the run folder.
        report: called with each line of text.
        exclude: patterns of files and folders to leave out.
        processes: size of the process group.
        dry_run: report the plan and stop before anything is written.
        fresh: start over even if there is a run in ``out``.
        held: receives the lock on the run folder, which the caller holds as long as the run.
        from_environment: names of the settings of ``config`` that environment variables gave.
        limits: on an image; larger ones are left out.
        measure_speed: GFLOP/s of this machine at training; called only for a new plan that depends on it.

    Raises:
        DataError: the folder is missing or holds too few readable images.
        InvalidInput: a value of the config is not valid.
        TrainingError: ``out`` holds something else than a run, or a run with another config, other images or another
            number of processes.
        SetupError: the requested device is not available.
    """
    before = None if fresh or dry_run else resume.earlier_run(out, config)
    # A run that an older release began keeps the images that it found.
    scan_rule = OLDER if before and "exclude" not in before.data else RULE
    files = replace(folders.scan(folder, exclude, rule=scan_rule, report=report), limits=limits or Limits())
    run_folder.check_place(out, files.folders)
    if before:
        facts = None
        the_plan, side_px = resume.plan_of(before, config), int(before.data["cached_side_px"])
        rule = PreprocessSpec.from_json(dict(before.preprocess))  # its own, whatever today's would be
        check_device(the_plan.settings.device, "the run started on that device; continue there, or start over: --fresh")
    else:
        facts = _with_speed(config, _facts(files, processes), measure_speed)
        the_plan = _make_plan(config, facts, from_environment)
        side_px = cache.cached_side_px(the_plan.settings.size_px, facts.median_side_px)
        rule = _preprocess(the_plan.settings)
    if dry_run:
        report(f"{len(files.paths)} image files in {files.name}")
        for entry in files.unreadable:
            report(f"left out: {entry.path}: {entry.reason}")
        _report_plan(the_plan, report)
        return Prepared(
            status="planned",
            plan=the_plan,
            images=len(files.paths),
            skipped=files.unreadable,
            passed_over=files.passed_over,
        )
    saved = checkpoint.load(out) if before else None
    if before and saved and saved.finished:
        report(f"{out} is finished: {counted(saved.step, 'step')} in {duration(saved.seconds)}; --fresh starts over")
        images = int(before.data["images"])
        return Prepared(status="finished before", plan=the_plan, images=images, step=saved.step, seconds=saved.seconds)
    if before:
        resume.check_same_processes(before, processes, out)
    held.enter_context(run_folder.locked(out))
    saved = checkpoint.load(out) if before else None  # another process may have continued it since
    cached = cache.cached_spec(rule, side_px)
    decoded = _decode(files, cached, the_plan.settings.workers, out, report)
    if before:
        resume.check_same_images(
            before, decoded.fingerprint, _digests(files, decoded), name=files.name, exclude=exclude, out=out
        )
        resume.remember_folders(before, files, out)
        whole = sees_whole_images(before.preprocess)
    else:
        # There may be fewer images than the plan assumed: some files may be unreadable.
        facts = replace(facts or _facts(files, processes), images=len(decoded.positions))
        the_plan = _make_plan(config, facts, from_environment)
        spec = _begin(files, decoded, config, the_plan, cached, processes, exclude, out)
        whole = sees_whole_images(spec.to_json())
    report(f"{len(decoded.positions)} images in {files.name}, {counted(len(decoded.skipped), 'file')} left out")
    if decoded.copies:
        _report_copies(decoded.copies, report)
    _report_notes(decoded.notes, out, report)
    _report_plan(the_plan, report)
    return Prepared(
        plan=the_plan,
        images=len(decoded.positions),
        skipped=decoded.skipped,
        passed_over=files.passed_over,
        fingerprint=decoded.fingerprint,
        notes=decoded.notes,
        copies=decoded.copies,
        cached=cached,
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
    seen = survey.summarise(files)
    return Facts(
        images=len(files.paths),
        files=len(files.paths),
        median_side_px=seen.median_side_px,
        grey=seen.grey,
        cuda=torch.cuda.is_available(),
        mps=torch.backends.mps.is_available(),
        cores=usable_cores(),
        processes=processes,
        pictures=seen.pictures,
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
    margin = 1.0 if is_small(settings.size_px) else cache.MARGIN
    return preprocess_of(settings, round(settings.size_px * margin))


def _decode(files: ImageFolder, spec: PreprocessSpec, workers: int, out: Path, report: Report) -> DecodedImages:
    """The pixels of all readable files, cached in the run folder."""
    progress = _decoding_progress(report)
    images = cache.open_cache(files, spec, out / run_folder.CACHE, workers=workers, progress=progress)
    _report_skipped(images.skipped, files, out, report)
    count = len(images.positions)
    if count < MIN_IMAGES:
        raise DataError(f"{files.name} has {count} readable images; training needs at least {MIN_IMAGES}")
    return images


def _digests(files: ImageFolder, images: DecodedImages) -> dict[str, str]:
    """sha256 of each image's bytes by its name; empty if a cache of an older version does not have them."""
    return {files.paths[position]: digest for position, digest in zip(images.positions, images.digests, strict=False)}


def _begin(
    files: ImageFolder,
    images: DecodedImages,
    config: TrainConfig,
    the_plan: Plan,
    cached: PreprocessSpec,
    processes: int,
    exclude: Sequence[str],
    out: Path,
) -> PreprocessSpec:
    """Remove the files of an earlier run, and write those that do not change during this one; the preprocessing."""
    run_folder.clear(out)
    spec = _preprocess(the_plan.settings)
    stored = StoredPlan(
        config=asdict(config),
        settings=the_plan.settings,
        sources={entry.name: entry.source for entry in the_plan.entries},
        preprocess=spec.to_json(),
        data={
            **resume.places(files),
            "exclude": list(exclude),
            "fingerprint": images.fingerprint,
            "images": len(images.positions),
            "cached_side_px": cached.size_px,
            "notes": _by_sentence(images.notes),
            **({"copies": asdict(images.copies)} if images.copies else {}),
            "processes": processes,
        },
        versions=versions(),
    )
    # The plan first: by it the folder is known as a run, also if this is interrupted.
    run_folder.write_plan(stored, out)
    digests = _digests(files, images)
    if digests:
        image_list.write(digests, out)
    _write_samples(files, images.positions, spec, out)
    return spec


def _write_samples(files: ImageFolder, positions: tuple[int, ...], spec: PreprocessSpec, out: Path) -> None:
    """Keep some images as the encoder sees them, with which export compares its result."""
    chosen = [positions[i] for i in np.linspace(0, len(positions) - 1, min(SAMPLES, len(positions))).astype(int)]
    squares, _, _ = folders.load_squares(files.subset(chosen), spec, workers=1)
    np.save(out / run_folder.SAMPLES, squares)


def _report_skipped(skipped: tuple[Skipped, ...], files: ImageFolder, out: Path, report: Report) -> None:
    path = run_folder.write_skipped(skipped, out, files.passed_over)
    for entry in skipped[:3]:
        report(f"left out: {entry.path}: {entry.reason}")
    if len(skipped) > 3:
        report(f"left out: {len(skipped) - 3} more, listed in {path}")


def _by_sentence(notes: tuple[Noted, ...]) -> dict[str, int]:
    """Sentence → number of images that it is about, the most frequent first."""
    return dict(Counter(entry.note for entry in notes).most_common())


def _report_copies(copies: Copies, report: Report) -> None:
    for line in copies.lines():
        report(line)
    if 2 * copies.distinct < copies.images:
        report(
            f"warning: only {copies.distinct:,} different pictures among {copies.images:,} images:"
            " an encoder learns by telling pictures apart, and here most cannot be told apart"
        )


def _report_notes(notes: tuple[Noted, ...], out: Path, report: Report) -> None:
    path = run_folder.write_notes(notes, out)
    for note, count in _by_sentence(notes).items():
        report(f"in {counted(count, 'image')}: {note}; listed in {path}")


def _decoding_progress(report: Report) -> Callable[[int, int], None]:
    last = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= 5:
            last = time.monotonic()
            report(f"decoding  {done}/{total} images")

    return progress
