"""An evaluation: encoders beside baselines, all measured on the same images in the same way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedserve_training.data.folders import Skipped
from embedserve_training.evaluate import images, layout, subjects
from embedserve_training.evaluate.baselines import PIXEL_SIDE, fit_components, flat_pixels, is_grey
from embedserve_training.evaluate.bench import NAME_WIDTH, Bench
from embedserve_training.evaluate.images import ImageSplit, LoadedSplit
from embedserve_training.evaluate.neighbours import NEIGHBOURS, TEMPERATURE
from embedserve_training.evaluate.networks import found_networks, supervised_row, untrained_rows
from embedserve_training.evaluate.self_retrieval import first_view
from embedserve_training.evaluate.split_copies import SplitCopies
from embedserve_training.evaluate.subjects import Subject
from embedserve_training.evaluate.table import Row
from embedserve_training.plan.sizes import is_small

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedserve.images.preprocess import PreprocessSpec
    from embedserve.types import Limits
    from embedserve_training.augment import Augmentation

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The figures of encoders and of their baselines."""

    subjects: tuple[str, ...]
    """Run folders and encoder files."""
    train_images: int
    """Images to search in."""
    test_images: int
    """Labelled query images; 0 if there are no labels."""
    labels: int
    neighbours: int
    """k of the vote."""
    temperature: float
    """Of the vote."""
    augmentation: str
    """Augmentation of the self-retrieval queries; empty if self-retrieval was left out."""
    self_left_out: str
    """Why self-retrieval was left out; empty if it was not."""
    self_images: int
    """Originals that self-retrieval searches."""
    self_queries: int
    """Augmented images that search for their original."""
    rows: tuple[Row, ...]
    """The encoders first, then the baselines."""
    skipped: tuple[Skipped, ...] = ()
    passed_over: Mapping[str, int] = field(default_factory=dict)
    """Kind → files or folders that are no images, on both sides."""
    folder: str = ""
    """With the images to search in."""
    test_folder: str = ""
    """With the queries; empty if they are held out, or if there are no labels."""
    copies: SplitCopies | None = None
    """Pictures that are there more than once."""

    def to_json(self) -> dict[str, Any]:
        """The document of ``embedserve evaluate --json``."""
        return {
            **asdict(self),
            "rows": [row.to_json() for row in self.rows],
            "copies": self.copies.to_json() if self.copies else None,
        }


def evaluate(
    what: Path | Sequence[Path],
    folder: Path | Sequence[Path],
    test_folder: Path | Sequence[Path] | None = None,
    *,
    report: Report,
    exclude: Sequence[str] = (),
    augmentation: str | None = None,
    supervised_epochs: int = 0,
    baselines: bool = True,
    limits: Limits | None = None,
) -> Evaluation:
    """Measure encoders by their nearest neighbours, without labels and, where there are labels, with them.

    Runs that differ only in their seed become one row, with the standard deviation over the seeds. The last checkpoint
    of a run is measured, never an earlier and better one.

    Args:
        what: run folders and encoder files.
        folder: images to search in, in a subfolder per label; one folder or several, or lists as ``@NAME``. Without
            labels the figures that need them are left out.
        test_folder: query images, likewise. None: hold out a fifth of each label of ``folder``.
        report: called with each line of text.
        exclude: patterns of files and folders to leave out.
        augmentation: preset for self-retrieval; None: the one that the first encoder was trained with.
        supervised_epochs: passes over the labelled images in which the same network is trained on the labels; 0: leave
            that row out.
        baselines: whether to measure the baselines that need no training.
        limits: on an image; larger ones are left out.

    Raises:
        DataError: a folder is missing, lacks labels that are needed, or has too few images.
        InvalidInput: the preset does not exist.
        TrainingError: a run folder holds no run, or vectors are not finite.
        EncoderFileError: a file is not an encoder.
        SetupError: nothing can be measured without PyTorch.
    """
    opened = [subjects.open_subject(path) for path in ([what] if isinstance(what, Path) else what)]
    chosen = images.choose(
        folder, test_folder, labels_needed=supervised_epochs > 0, exclude=exclude, limits=limits, report=report
    )
    recipe, described = _recipe(opened[0], augmentation)
    bench = Bench(chosen, recipe, report)
    loaded, chosen = bench.loaded(opened[0].spec), bench.chosen
    _report_split(chosen.train.name, chosen, loaded, report)
    groups = subjects.groups(opened)
    rows = [
        bench.row(_name(group, groups), [(one.embed, one.spec) for one in group], _seeds(group)) for group in groups
    ]
    rows += _not_whitened_rows(bench, groups)
    networks, left_out = found_networks(groups)
    if baselines:
        for network in networks:
            rows += untrained_rows(bench, network)
        for row in left_out:
            report(f"{row.name:<{NAME_WIDTH}} {row.note}")
        rows += left_out
        rows += _pixel_rows(bench, opened[0].spec, rows[0].dimension)
    if supervised_epochs:
        rows += [supervised_row(bench, network, supervised_epochs) for network in networks]
        rows += [replace(row, name="supervised") for row in left_out]
    queries = bench.queries(opened[0].spec)
    return Evaluation(
        subjects=tuple(str(subject.path) for subject in opened),
        train_images=len(loaded.train_NSSC),
        test_images=len(loaded.test_MSSC),
        labels=len(loaded.names),
        neighbours=min(NEIGHBOURS, len(loaded.train_NSSC)),
        temperature=TEMPERATURE,
        augmentation=described if queries else "",
        self_left_out="" if queries else bench.left_out,
        self_images=len(queries.originals_U) if queries else 0,
        self_queries=len(queries.chosen_Q) if queries else 0,
        rows=tuple(rows),
        skipped=loaded.skipped,
        passed_over=chosen.passed_over,
        folder=chosen.train.name,
        test_folder="" if chosen.test is None or chosen.held_out else chosen.test.name,
        copies=bench.copies,
    )


def _recipe(subject: Subject, name: str | None) -> tuple[Augmentation | None, str]:
    """The augmentation of the self-retrieval queries, and its name; None without PyTorch."""
    try:
        settings = subject.settings
        if name is None and settings is not None:
            recipe = first_view(settings.augmentation)
            most = max(recipe.crop_scale[1], settings.crop_min)
            recipe = replace(recipe, crop_scale=(settings.crop_min, most))
            return recipe, f"{settings.augmentation}, crops from {100 * settings.crop_min:.0f} %"
        name = name or ("small" if is_small(subject.spec.size_px) else "photo")
        return first_view(name), name
    except ImportError:
        return None, ""


def _report_split(folder: str, chosen: ImageSplit, loaded: LoadedSplit, report: Report) -> None:
    if chosen.test is None:
        report(f"{folder} has no labels: only self-retrieval is measured")
        return
    if chosen.held_out:
        report(f"{len(chosen.test.paths)} of the images in {folder} are held out as queries")
        if chosen.labels_without_query:
            few = chosen.labels_without_query
            report(f"labels with one image, which is searched but is no query: {len(few)} ({layout.named(few)})")
    unknown = int((~np.isin(loaded.test_labels_M, loaded.train_labels_N)).sum())
    if unknown:
        lacking = "that no readable image of the rest has" if chosen.held_out else f"that {folder} lacks"
        report(f"{unknown} test images have a label {lacking}; no encoder can get them right")


def _name(group: Sequence[Subject], groups: Sequence[Sequence[Subject]]) -> str:
    return "trained" if len(groups) == 1 else ", ".join(dict.fromkeys(subject.name for subject in group))


def _not_whitened_rows(bench: Bench, groups: Sequence[Sequence[Subject]]) -> list[Row]:
    """Rows of the encoders without their whitening layer, for those that have one."""
    rows = []
    for group in groups:
        embeds = [(one.not_whitened, one.spec) for one in group if one.not_whitened]
        if embeds:
            note = "the same without the whitening layer"
            rows.append(bench.row(f"{_name(group, groups)}, not whitened", embeds, note))
    return rows


def _seeds(group: Sequence[Subject]) -> str:
    seeds = [str(subject.settings.seed) for subject in group if subject.settings]
    return f"seeds {', '.join(seeds)}" if len(seeds) > 1 else ""


def _pixel_rows(bench: Bench, spec: PreprocessSpec, dimension: int) -> list[Row]:
    loaded, queries = bench.loaded(spec), bench.queries(spec)
    pixels = [loaded.train_NSSC, loaded.test_MSSC, *([queries.views_QSSC] if queries else [])]
    grey = all(is_grey(pixels_NSSC) for pixels_NSSC in pixels)
    components = fit_components(flat_pixels(loaded.train_NSSC, grey=grey), dimension)
    white = components.whitened()

    def raw(pixels_NSSC: NDArray[np.uint8]) -> NDArray[np.float32]:
        return flat_pixels(pixels_NSSC, grey=grey)

    def projected(pixels_NSSC: NDArray[np.uint8]) -> NDArray[np.float32]:
        return components.project(raw(pixels_NSSC))

    def whitened(pixels_NSSC: NDArray[np.uint8]) -> NDArray[np.float32]:
        return white.project(raw(pixels_NSSC))

    side = min(PIXEL_SIDE, spec.size_px)
    shape = f"{side} × {side} grey pixels" if grey else f"{side} × {side} × 3 pixels"
    return [
        bench.row("raw pixels", [(raw, spec)], shape),
        bench.row("PCA", [(projected, spec)], "principal components of the raw pixels"),
        bench.row("PCA, whitened", [(whitened, spec)], "the same, each with variance one"),
    ]
