"""A measure without labels: whether an augmented copy of an image finds its original among all others.

It tells encoders apart, but measures only their invariance to the augmentation; only labels tell what an image shows.

Shapes: N images, U distinct ones, Q queries, S side in pixels, C = 3 channels, D values per vector.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from embedserve.errors import DataError
from embedserve_training.evaluate.neighbours import by_block

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedserve_training.augment import Augmentation

    Embed = Callable[[NDArray[np.uint8]], NDArray[np.float32]]

QUERIES = 2000
_BATCH = 128


@dataclass(frozen=True, kw_only=True)
class SelfRetrieval:
    """How often an augmented image finds its original; each figure is a share, 0–1."""

    recall_1: float
    """Queries whose original is among the nearest 1, 5 or 10."""
    recall_5: float
    recall_10: float
    mrr: float
    """Mean reciprocal rank: the mean of 1 / rank of the original."""
    images: int
    """Originals to search in; by chance the first hit is right for one query in ``images``."""
    queries: int


def self_retrieval(
    embed: Embed,
    pixels_NSSC: NDArray[np.uint8],
    augmentation: Augmentation | str,
    *,
    queries: int = QUERIES,
    seed: int = 0,
) -> SelfRetrieval:
    """Search for the originals of augmented images.

    Args:
        embed: uint8 [·, S, S, 3] → vectors [·, D].
        pixels_NSSC: the images. Of those that are equal in every pixel one is used.
        augmentation: of the queries, or the name of a preset, of which the first view is used.
        queries: largest number of queries, evenly spaced over the images.
        seed: of the augmentation; with the same seed the queries are the same for every encoder.

    Raises:
        DataError: there are fewer than two distinct images.
        ImportError: PyTorch is not installed.
        TrainingError: a vector is not finite.
    """
    made = make_queries(pixels_NSSC, augmentation, queries=queries, seed=seed)
    return score(made, embed(pixels_NSSC), embed(made.views_QSSC))


@dataclass(frozen=True, kw_only=True)
class Queries:
    """Augmented images, the same for every encoder."""

    views_QSSC: NDArray[np.uint8]
    originals_U: NDArray[np.int64]
    """Positions of the U images to search in: all but those that repeat another."""
    chosen_Q: NDArray[np.int64]
    """Position of the original of each view among these."""


def make_queries(
    pixels_NSSC: NDArray[np.uint8], augmentation: Augmentation | str, *, queries: int = QUERIES, seed: int = 0
) -> Queries:
    """The queries of ``self_retrieval``, with its arguments and errors."""
    originals_U = distinct(pixels_NSSC)
    if len(originals_U) < 2:
        # Any encoder would find the only one.
        raise DataError(
            f"self-retrieval needs 2 different images, but there is {len(originals_U)}",
            hint="give a folder with more readable, different images",
        )
    chosen_Q = evenly_spaced(len(originals_U), queries)
    views_QSSC = augmented(pixels_NSSC[originals_U[chosen_Q]], augmentation, seed)
    return Queries(views_QSSC=views_QSSC, originals_U=originals_U, chosen_Q=chosen_Q)


def score(queries: Queries, vectors_ND: NDArray[np.float32], views_QD: NDArray[np.float32]) -> SelfRetrieval:
    """The figures from the vectors of all images and of the queries.

    Images as near as the original count as nearer, so an encoder that maps all images to one vector finds none.
    """
    originals_UD, chosen_Q = vectors_ND[queries.originals_U], queries.chosen_Q

    def rank(rows: slice, cosine_BU: NDArray[np.float32]) -> NDArray[np.int64]:
        right_B1 = np.take_along_axis(cosine_BU, chosen_Q[rows, None], axis=1)
        rank_B: NDArray[np.int64] = (cosine_BU >= right_B1).sum(axis=1)
        return rank_B

    rank_Q = np.concatenate(by_block(originals_UD, views_QD, rank))
    return SelfRetrieval(
        recall_1=float((rank_Q <= 1).mean()),
        recall_5=float((rank_Q <= 5).mean()),
        recall_10=float((rank_Q <= 10).mean()),
        mrr=float((1 / rank_Q).mean()),
        images=len(originals_UD),
        queries=len(views_QD),
    )


def distinct(pixels_NSSC: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Positions of the images that do not repeat an earlier one: no encoder could tell two equal originals apart."""
    first: dict[bytes, int] = {}
    for position, image_SSC in enumerate(pixels_NSSC):
        first.setdefault(hashlib.sha256(image_SSC.tobytes()).digest(), position)
    return np.array(list(first.values()), np.int64)


def evenly_spaced(count: int, most: int) -> NDArray[np.int64]:
    """Up to ``most`` positions, evenly spaced from 0 to ``count`` − 1."""
    return np.linspace(0, count - 1, min(count, most)).astype(np.int64)


def augmented(pixels_QSSC: NDArray[np.uint8], augmentation: Augmentation | str, seed: int) -> NDArray[np.uint8]:
    """One view of each image, rounded to the values of a file: uint8 [Q, S, S, 3]."""
    import torch

    from embedserve_training.augment import augment

    recipe = first_view(augmentation) if isinstance(augmentation, str) else augmentation
    generator = torch.Generator().manual_seed(seed)
    views_QSSC = np.empty_like(pixels_QSSC)
    for start in range(0, len(pixels_QSSC), _BATCH):
        rows = slice(start, start + _BATCH)
        pixels_BSSC = torch.from_numpy(np.ascontiguousarray(pixels_QSSC[rows]))
        view_BCSS = augment(pixels_BSSC, pixels_QSSC.shape[1], recipe, generator)
        views_QSSC[rows] = (view_BCSS.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    return views_QSSC


def first_view(name: str) -> Augmentation:
    """The first view of a preset.

    Raises:
        InvalidInput: the preset does not exist.
    """
    from embedserve.errors import InvalidInput
    from embedserve.nearest import meant
    from embedserve_training.augment import PRESETS

    if name not in PRESETS:
        hint = meant(name, PRESETS, f"one of: {', '.join(PRESETS)}")
        raise InvalidInput(f"there is no augmentation {name!r}", hint=hint)
    return PRESETS[name][0]
