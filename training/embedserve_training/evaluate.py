"""How good an encoder is, measured with labels it never saw and beside what needs no training.

The measure is what the server does: nearest neighbours by cosine. The rows beside the encoder say what raw pixels,
their principal components and the same network before training reach on the same images.

Shapes: N labelled images to search in, M images that ask, D numbers per vector.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedserve.errors import DataError
from embedserve_training import data
from embedserve_training.config import Settings
from embedserve_training.data import ImageFolder, Skipped

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedserve.preprocess import PreprocessSpec

Report = Callable[[str], None]
NEIGHBOURS = 200
TEMPERATURE = 0.1
TOP = 10
_TEST_SHARE = 0.2
_PIXEL_SIDE = 32
"""Raw pixels are compared at this side at most: more of them only follow the noise."""


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
    raw = _flat_pixels(train_pixels), _flat_pixels(test_pixels)
    side = min(_PIXEL_SIDE, network.spec.size_px)
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


# --- Neighbours ----------------------------------------------------------------------------------------------------


def nearest(
    train_ND: NDArray[np.float32], train_labels_N: NDArray[np.int64], test_MD: NDArray[np.float32], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Cosines and labels of the k nearest training vectors of each test vector, [M, k], nearest first."""
    train_ND, test_MD = _unit(train_ND), _unit(test_MD)
    scores, labels = [], []
    for start in range(0, len(test_MD), 256):
        cosine_BN = test_MD[start : start + 256] @ train_ND.T
        order_BK = np.argsort(-cosine_BN, axis=1, kind="stable")[:, :k]
        scores.append(np.take_along_axis(cosine_BN, order_BK, axis=1))
        labels.append(train_labels_N[order_BK])
    return np.concatenate(scores), np.concatenate(labels)


def vote(scores_MK: NDArray[np.float32], labels_MK: NDArray[np.int64], labels: int) -> NDArray[np.int64]:
    """The label with the greatest sum of exp(cosine / 0.1) over the neighbours (arXiv 1805.01978, section 3.4): [M]."""
    weights_MK = np.exp(scores_MK.astype(np.float64) / TEMPERATURE)
    votes_ML = np.stack([np.where(labels_MK == label, weights_MK, 0.0).sum(axis=1) for label in range(labels)], axis=1)
    winners_M: NDArray[np.int64] = votes_ML.argmax(axis=1)
    return winners_M


def _unit(x_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    unit_ND: NDArray[np.float32] = x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12)
    return unit_ND


def raw_pixels(pixels_NSSC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The simplest embedding there is: uint8 [N, S, S, 3] → the pixels at 32 × 32 at most, with unit norm: [N, P]."""
    return _unit(_flat_pixels(pixels_NSSC))


def _flat_pixels(pixels_NSSC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The images as vectors within 0–1, scaled down to _PIXEL_SIDE where they are larger."""
    from PIL import Image

    if pixels_NSSC.shape[1] > _PIXEL_SIDE:
        small = (_PIXEL_SIDE, _PIXEL_SIDE)
        pixels_NSSC = np.stack(
            [np.asarray(Image.fromarray(p).resize(small, Image.Resampling.BILINEAR)) for p in pixels_NSSC]
        )
    return pixels_NSSC.reshape(len(pixels_NSSC), -1).astype(np.float32) / np.float32(255)


def principal_components(
    train_ND: NDArray[np.float32], test_MD: NDArray[np.float32], dimensions: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Both sets projected on the principal components of the first, centred on its mean."""
    mean_D: Any = train_ND.mean(axis=0)
    centred_ND = train_ND - mean_D
    # The eigenvectors of the smaller of the two products of the data with itself give the components.
    vectors: Any
    if centred_ND.shape[0] >= centred_ND.shape[1]:
        _, vectors = np.linalg.eigh(centred_ND.T @ centred_ND)
        components_DK = vectors[:, ::-1][:, :dimensions]
    else:
        _, vectors = np.linalg.eigh(centred_ND @ centred_ND.T)
        components_DK = centred_ND.T @ vectors[:, ::-1][:, :dimensions]
        components_DK /= np.maximum(np.linalg.norm(components_DK, axis=0), 1e-12)
    return centred_ND @ components_DK, (test_MD - mean_D) @ components_DK
