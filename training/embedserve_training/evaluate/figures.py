"""All figures that need labels, from two sets of vectors.

Shapes: N labelled images to search in, M queries, B of them in a block, D values per vector, L labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from embedserve_training.evaluate import linear as probe
from embedserve_training.evaluate.neighbours import NEIGHBOURS, by_block, top, vote
from embedserve_training.evaluate.retrieval import average_precision, recall

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOP = 10


@dataclass(frozen=True, kw_only=True)
class Figures:
    """How well vectors agree with labels; each figure is a share, 0–1."""

    knn: float
    """Test images that the weighted vote of their 200 nearest neighbours gives the right label."""
    linear: float | None
    """Test images that a linear classifier on the frozen vectors gives the right label; None if not measured."""
    recall_1: float
    """Test images with at least one image of their label among the nearest 1, 5 or 10."""
    recall_5: float
    recall_10: float
    map: float
    """Mean over the test images of the average precision of the whole ranking."""
    same_label_top10: float
    """Mean share of the ten nearest that have the label of the test image (precision at 10)."""


def figures(
    train_ND: NDArray[np.float32],
    train_labels_N: NDArray[np.int64],
    test_MD: NDArray[np.float32],
    test_labels_M: NDArray[np.int64],
    *,
    linear: bool = True,
) -> Figures:
    """Every figure of two sets of labelled vectors.

    Args:
        train_ND: vectors to search in, to which the linear classifier is fitted.
        train_labels_N: their labels, integers from 0.
        test_MD: query vectors.
        test_labels_M: their labels. One that the first set lacks counts as wrong in every figure.
        linear: whether to fit the linear probe, which takes most of the time.

    Raises:
        TrainingError: a vector is not finite.
    """
    labels = int(max(train_labels_N.max(), test_labels_M.max())) + 1
    k = min(NEIGHBOURS, len(train_ND))
    right_M, precision_M = np.zeros(len(test_MD), bool), np.zeros(len(test_MD))
    same_MT = np.zeros((len(test_MD), min(TOP, k)), bool)

    def measure(rows: slice, cosine_BN: NDArray[np.float32]) -> None:
        asked_B1 = test_labels_M[rows, None]
        order_BK = top(cosine_BN, k)
        labels_BK = train_labels_N[order_BK]
        winners_B = vote(np.take_along_axis(cosine_BN, order_BK, axis=1), labels_BK, labels)
        right_M[rows] = winners_B == asked_B1[:, 0]
        same_MT[rows] = labels_BK[:, :TOP] == asked_B1
        precision_M[rows] = average_precision(cosine_BN, train_labels_N == asked_B1)

    by_block(train_ND, test_MD, measure)
    named_M = probe.fit(train_ND, train_labels_N, labels).predict(test_MD) if linear else None
    return Figures(
        knn=float(right_M.mean()),
        linear=None if named_M is None else float((named_M == test_labels_M).mean()),
        recall_1=float(recall(same_MT, 1).mean()),
        recall_5=float(recall(same_MT, 5).mean()),
        recall_10=float(recall(same_MT, 10).mean()),
        map=float(precision_M.mean()),
        same_label_top10=float(same_MT.mean()),
    )
