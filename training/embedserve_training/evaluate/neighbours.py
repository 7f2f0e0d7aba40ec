"""Nearest neighbours by cosine, as the server finds them, and the vote of their labels.

Queries are processed in blocks, so that at most ``BLOCK_BYTES`` of cosines are in memory.

Shapes: N vectors to search in, M query vectors, B of them in a block, D values per vector, K neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from embedserve.cores import usable_cores
from embedserve.errors import TrainingError

if TYPE_CHECKING:
    from numpy.typing import NDArray

NEIGHBOURS = 200
"""k of the vote; k and temperature are those of arXiv 1805.01978, section 3.4, and of most published figures."""
TEMPERATURE = 0.1
BLOCK_BYTES = 1 << 26
_MOST_THREADS = 8

_ResultT = TypeVar("_ResultT")


def unit(x_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vectors scaled to unit norm; a vector of zeros stays zero."""
    unit_ND: NDArray[np.float32] = x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12)
    return unit_ND


def by_block(
    train_ND: NDArray[np.float32],
    test_MD: NDArray[np.float32],
    use: Callable[[slice, NDArray[np.float32]], _ResultT],
) -> list[_ResultT]:
    """The results of ``use`` for the cosines of all pairs, block by block, on all cores.

    Args:
        train_ND: vectors to search in.
        test_MD: query vectors.
        use: called with the rows of a block of queries, and their cosines, float32 [B, N].

    Raises:
        TrainingError: a value is not finite. Comparisons with it are false, so its rank would be arbitrary.
    """
    broken = sum(int((~np.isfinite(x).all(axis=1)).sum()) for x in (train_ND, test_MD))
    if broken:
        raise TrainingError(
            f"{broken} of {len(train_ND) + len(test_MD)} vectors are not finite",
            hint="the encoder has diverged or is damaged: train again with a smaller learning rate",
        )
    train_DN, test_MD = unit(train_ND).T, unit(test_MD)
    rows = max(BLOCK_BYTES // (4 * len(train_ND)), 1)
    threads = min(usable_cores(), _MOST_THREADS)
    results: list[_ResultT] = []
    with ThreadPoolExecutor(threads, thread_name_prefix="neighbours") as pool:
        for start in range(0, len(test_MD), rows):
            # The product uses all cores by itself, so the threads start after it.
            cosine_BN = test_MD[start : start + rows] @ train_DN
            share = -(-len(cosine_BN) // threads)
            parts = [slice(first, min(first + share, len(cosine_BN))) for first in range(0, len(cosine_BN), share)]
            queries = [slice(start + part.start, start + part.stop) for part in parts]
            results += pool.map(use, queries, [cosine_BN[part] for part in parts])
    return results


def top(cosine_BN: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Positions of the k largest of each row, largest first, equal ones in the order of the data: [B, min(k, N)]."""
    count = cosine_BN.shape[1]
    if k >= count:
        return np.argsort(-cosine_BN, axis=1, kind="stable")
    chosen_BK = np.argpartition(cosine_BN, count - k, axis=1)[:, count - k :]
    chosen_BK.sort(axis=1)
    cosine_BK = np.take_along_axis(cosine_BN, chosen_BK, axis=1)
    # Among items equal to the last one chosen, the partition takes any; only a stable sort takes the first.
    last_B1 = cosine_BK.min(axis=1, keepdims=True)
    for row in np.flatnonzero((cosine_BN >= last_B1).sum(axis=1) > k):
        chosen_BK[row] = np.sort(np.argsort(-cosine_BN[row], kind="stable")[:k])
        cosine_BK[row] = cosine_BN[row, chosen_BK[row]]
    order_BK = np.argsort(-cosine_BK, axis=1, kind="stable")
    return np.take_along_axis(chosen_BK, order_BK, axis=1)


def nearest(
    train_ND: NDArray[np.float32], train_labels_N: NDArray[np.int64], test_MD: NDArray[np.float32], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Cosines and labels of the k nearest training vectors of each test vector, [M, k], nearest first."""

    def use(rows: slice, cosine_BN: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        order_BK = top(cosine_BN, k)
        return np.take_along_axis(cosine_BN, order_BK, axis=1), train_labels_N[order_BK]

    scores, labels = zip(*by_block(train_ND, test_MD, use), strict=True)
    return np.concatenate(scores), np.concatenate(labels)


def vote(scores_MK: NDArray[np.float32], labels_MK: NDArray[np.int64], labels: int) -> NDArray[np.int64]:
    """The label with the largest sum of exp(cosine / 0.1) over the neighbours (arXiv 1805.01978, section 3.4): [M].

    Args:
        scores_MK: cosines.
        labels_MK: labels of the neighbours, 0 to ``labels`` − 1.
        labels: number of labels.
    """
    weights_MK = np.exp(scores_MK.astype(np.float64) / TEMPERATURE)
    places_MK = labels_MK + np.arange(len(labels_MK))[:, None] * labels
    votes_ML = np.bincount(places_MK.ravel(), weights_MK.ravel(), minlength=len(labels_MK) * labels)
    winners_M: NDArray[np.int64] = votes_ML.reshape(len(labels_MK), labels).argmax(axis=1)
    return winners_M
