"""The fidelity of a less precise encoder, its vectors and neighbours beside the exact ones, and its speed.

Shapes: N images, S side in pixels, D values per vector, B rows of a block, K neighbours.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from embedserve_training.evaluate import neighbours

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedserve.encoder.session import Encoder

K = 10
TIE = 0.001
"""Cosines that differ by no more are equal for an encoder whose vectors have a cosine of 0.999 to the exact ones."""
_SPEED_IMAGES = 4
_SPEED_ROUNDS = 7
_ROUND_S = 0.05


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """How close vectors are to the exact ones."""

    images: int
    mean_cosine: float
    """Of each image's vector with its exact one."""
    lowest_cosine: float
    recall_at_10: float
    """Share of the ten exact nearest neighbours, among the other images, that are still among the ten nearest."""
    as_near_at_10: float
    """The same share, where an image that is hardly further (by 0.001 in exact cosine) may replace one of them."""
    same_label: float | None
    """Share of images for which the labels of the ten nearest still vote for the same label; None without labels."""

    def __str__(self) -> str:
        labels = "" if self.same_label is None else f", same kNN label for {100 * self.same_label:.1f} %"
        return (
            f"cosine {self.mean_cosine:.5f} in the mean and {self.lowest_cosine:.5f} at the lowest,"
            f" recall@10 {100 * self.recall_at_10:.1f} %"
            f" ({100 * self.as_near_at_10:.1f} % but for differences of {TIE}){labels}"
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON values, rounded to six decimals, without those that are None."""
        return {
            name: round(value, 6) if isinstance(value, float) else value
            for name, value in asdict(self).items()
            if value is not None
        }


def compare(exact_ND: NDArray[np.float32], converted_ND: NDArray[np.float32], labels: Sequence[str] | None) -> Fidelity:
    """How close vectors of unit norm are to the exact ones of the same images, and how similar their neighbours.

    Args:
        exact_ND: the exact vectors.
        converted_ND: the vectors of the less precise encoder.
        labels: of each image, if there are any.
    """
    cosines = (exact_ND.astype(np.float64) * converted_ND).sum(axis=1)
    exact_NK, converted_NK = _nearest(exact_ND), _nearest(converted_ND)
    found = (exact_NK[:, :, None] == converted_NK[:, None, :]).any(axis=2)
    tenth_N = np.einsum("nd,nd->n", exact_ND, exact_ND[exact_NK[:, -1]])
    as_near_NK = np.einsum("nd,nkd->nk", exact_ND, exact_ND[converted_NK]) >= tenth_N[:, None] - TIE
    return Fidelity(
        images=len(exact_ND),
        mean_cosine=float(cosines.mean()),
        lowest_cosine=float(cosines.min()),
        recall_at_10=float(found.mean()),
        as_near_at_10=float(as_near_NK.mean()),
        same_label=None if labels is None else _same_label(exact_ND, converted_ND, exact_NK, converted_NK, labels),
    )


def _nearest(x_ND: NDArray[np.float32]) -> NDArray[np.int64]:
    def use(rows: slice, cosine_BN: NDArray[np.float32]) -> NDArray[np.int64]:
        cosine_BN = cosine_BN.copy()
        cosine_BN[np.arange(len(cosine_BN)), np.arange(rows.start, rows.stop)] = -np.inf  # not the image itself
        return neighbours.top(cosine_BN, min(K, len(x_ND) - 1))

    return np.concatenate(neighbours.by_block(x_ND, x_ND, use))


def _same_label(
    exact_ND: NDArray[np.float32],
    converted_ND: NDArray[np.float32],
    exact_NK: NDArray[np.int64],
    converted_NK: NDArray[np.int64],
    labels: Sequence[str],
) -> float:
    names, numbers_N = np.unique(np.asarray(labels), return_inverse=True)

    def voted(x_ND: NDArray[np.float32], nearest_NK: NDArray[np.int64]) -> NDArray[np.int64]:
        scores_NK = np.einsum("nd,nkd->nk", x_ND, x_ND[nearest_NK])
        return neighbours.vote(scores_NK, numbers_N[nearest_NK], len(names))

    return float((voted(exact_ND, exact_NK) == voted(converted_ND, converted_NK)).mean())


def speed(encoder: Encoder, other: Encoder, images_NSSC: NDArray[np.uint8]) -> float:
    """Images per second of an encoder over those of another, one thread each: the median ratio of alternate runs."""
    batch = images_NSSC[:_SPEED_IMAGES]
    ratios = [_seconds(other, batch) / _seconds(encoder, batch) for _ in range(_SPEED_ROUNDS)]
    return statistics.median(ratios)


def _seconds(encoder: Encoder, batch: NDArray[np.uint8]) -> float:
    """CPU time for one batch; the time of other programs does not count."""
    encoder.encode(batch)
    start, runs = time.thread_time(), 0
    while time.thread_time() - start < _ROUND_S:
        encoder.encode(batch)
        runs += 1
    return (time.thread_time() - start) / runs
