"""How good an encoder is, measured with labels it never saw and beside what needs no training.

The measure is what the server does: nearest neighbours by cosine. The rows beside the encoder say what raw pixels,
their principal components and the same network before training reach on the same images.

Shapes: N labelled images to search in, M images that ask, D numbers per vector.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embedserve.errors import DataError
from embedserve_training import data
from embedserve_training.config import Settings
from embedserve_training.data import ImageFolder, Skipped
from embedserve_training.evaluate.baselines import PIXEL_SIDE, flat_pixels, principal_components
from embedserve_training.evaluate.neighbours import NEIGHBOURS, nearest, vote

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedserve.preprocess import PreprocessSpec

Report = Callable[[str], None]
TOP = 10
_TEST_SHARE = 0.2


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way to turn images into vectors, and how well its neighbours agree with the labels."""

    name: str
    knn: float | None
    """Share of test images whose label the weighted vote of their neighbours names, 0–1; None if it was left out."""
    same_label_top10: float | None
    """Mean share of the ten nearest neighbours that have the label of the test image, 0–1."""
    dimension: int = 0
    note: str = ""
    """What the row is, or why it was left out."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The figures of an encoder beside its baselines."""

    subject: str
    backbone: str
    train_images: int
    test_images: int
    labels: int
    neighbours: int
    """k of the vote."""
    rows: tuple[Row, ...]
    """"trained" first, then the baselines."""
    skipped: tuple[Skipped, ...] = ()


def evaluate(subject: Path, train_folder: Path, test_folder: Path | None, *, report: Report) -> Evaluation:
    """Measure an encoder by its nearest neighbours among labelled images.

    Args:
        subject: a run folder or an encoder file.
        train_folder: images in a subfolder per label; neighbours are looked for among them.
        test_folder: likewise; their labels are guessed. None: a fifth of each label of ``train_folder`` is.
        report: takes lines for a person.

    Raises:
        DataError: a folder is missing, or has no labels.
        TrainingError: the run folder holds no run.
        EncoderFileError: the file is no encoder.
    """
    network = _open(subject)
    train = _labelled(train_folder)
    if test_folder is None:
        train, test = _split(train)
        report(f"{len(test.paths)} of the images in {train_folder} are held out to ask with")
    else:
        test = _labelled(test_folder)
    train_pixels, train_labels, skipped = _load(train, network.spec, report)
    test_pixels, test_labels, skipped_too = _load(test, network.spec, report)
    unknown = sum(label not in set(train_labels) for label in test_labels)
    if unknown:
        report(f"{unknown} test images have a label that {train_folder} lacks; no vectors can get them right")
    names = sorted({*train_labels, *test_labels})
    train_N = np.array([names.index(label) for label in train_labels])
    test_M = np.array([names.index(label) for label in test_labels])
    k = min(NEIGHBOURS, len(train_N))

    def row(name: str, vectors: tuple[NDArray[np.float32], NDArray[np.float32]], note: str = "") -> Row:
        scores, labels = nearest(vectors[0], train_N, vectors[1], k)
        result = Row(
            name=name,
            knn=float((vote(scores, labels, len(names)) == test_M).mean()),
            same_label_top10=float((labels[:, :TOP] == test_M[:, None]).mean()),
            dimension=vectors[0].shape[1],
            note=note,
        )
        report(f"{name:<16} kNN {100 * (result.knn or 0):.1f} %   {note}".rstrip())
        return result

    rows = [row("trained", (network.embed(train_pixels), network.embed(test_pixels)))]
    rows.append(_untrained_row(network, train_pixels, test_pixels, row, report))
    raw = flat_pixels(train_pixels), flat_pixels(test_pixels)
    side = min(PIXEL_SIDE, network.spec.size_px)
    rows.append(row("raw pixels", raw, f"{side} × {side} × 3 pixels"))
    # N images span N − 1 directions around their mean.
    dimensions = min(network.dimension, len(raw[0]) - 1, raw[0].shape[1])
    rows.append(row("PCA", principal_components(*raw, dimensions), f"{dimensions} components of the raw pixels"))
    return Evaluation(
        subject=str(subject),
        backbone=network.backbone,
        train_images=len(train_N),
        test_images=len(test_M),
        labels=len(names),
        neighbours=k,
        rows=tuple(rows),
        skipped=skipped + skipped_too,
    )


# --- The encoder ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Network:
    embed: Callable[[NDArray[np.uint8]], NDArray[np.float32]]
    spec: PreprocessSpec
    dimension: int
    backbone: str
    settings: Settings | None
    """None if the encoder file does not say how it was trained."""


def _open(subject: Path) -> _Network:
    return _open_run(subject) if subject.is_dir() else _open_file(subject)


def _open_run(run: Path) -> _Network:
    from embedserve.preprocess import PreprocessSpec
    from embedserve_training import checkpoint, embed

    plan = checkpoint.read_plan(run)
    encoder = embed.trained(run)
    return _Network(
        embed=lambda pixels: embed.embed(encoder, pixels),
        spec=PreprocessSpec.from_json(dict(plan.preprocess)),
        dimension=encoder.backbone.dimension,
        backbone=plan.settings.backbone,
        settings=plan.settings,
    )


def _open_file(path: Path) -> _Network:
    from embedserve.encoder import Encoder

    encoder = Encoder.open(path)
    try:
        settings = Settings.from_json(encoder.metadata.training)
    except TypeError:
        settings = None

    def embed(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.concatenate([encoder.encode(pixels[start : start + 64]) for start in range(0, len(pixels), 64)])

    return _Network(
        embed=embed,
        spec=encoder.metadata.preprocess,
        dimension=encoder.metadata.dimension,
        backbone=encoder.metadata.backbone,
        settings=settings,
    )


def _untrained_row(
    network: _Network,
    train_pixels: NDArray[np.uint8],
    test_pixels: NDArray[np.uint8],
    row: Callable[..., Row],
    report: Report,
) -> Row:
    """The row of the same network before training, or why it cannot be had."""
    from embedserve.errors import InvalidInput

    why = ""
    if network.settings is None:
        why = "the encoder file does not say how its network is made"
    else:
        try:
            from embedserve_training import embed

            encoder = embed.untrained(network.settings)
            vectors = embed.embed(encoder, train_pixels), embed.embed(encoder, test_pixels)
            return row("untrained", vectors, "the same network and seed before training")
        except ImportError:
            why = "PyTorch is not installed"
        except InvalidInput as error:
            why = error.message
    report(f"untrained        left out: {why}")
    return Row(name="untrained", knn=None, same_label_top10=None, note=f"left out: {why}")


# --- The images ----------------------------------------------------------------------------------------------------


def _labelled(folder: Path) -> ImageFolder:
    files = data.scan(folder)
    if files.labels is None:
        raise DataError(
            f"{folder} has no labels to measure with",
            hint="put the images of each label into a subfolder of that name, at least two of them",
        )
    return files


def _split(files: ImageFolder) -> tuple[ImageFolder, ImageFolder]:
    """Hold out a fifth of each label, at least one image, the same ones every time."""
    labels = files.labels or ()
    generator = np.random.default_rng(0)
    held_out: set[int] = set()
    for label in sorted(set(labels)):
        positions = [i for i, other in enumerate(labels) if other == label]
        count = max(round(len(positions) * _TEST_SHARE), 1)
        held_out.update(generator.permutation(positions)[:count].tolist())
    kept = [i for i in range(len(labels)) if i not in held_out]
    if not kept:
        raise DataError(f"{files.root} has one image per label", hint="give a second folder to ask with")
    return files.subset(kept), files.subset(sorted(held_out))


def _load(
    files: ImageFolder, spec: PreprocessSpec, report: Report
) -> tuple[NDArray[np.uint8], list[str], tuple[Skipped, ...]]:
    labels = [path.split("/")[0] for path in files.paths]
    pixels, positions, skipped = data.load_squares(files, spec, workers=2)
    for entry in skipped:
        report(f"left out: {entry.path}: {entry.reason}")
    return pixels, [labels[position] for position in positions], skipped
