"""How well a search finds images of the same label: recall at k, and average precision.

Shapes: N images to search in, B queries, K neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def recall(same_BK: NDArray[np.bool_], k: int) -> NDArray[np.bool_]:
    """Whether at least one of the k nearest has the label of the query (Recall@K, arXiv 1511.06452): [B].

    Args:
        same_BK: whether each neighbour has that label, nearest first.
        k: number of neighbours that count.
    """
    return np.asarray(same_BK[:, :k].any(axis=1))


def average_precision(cosine_BN: NDArray[np.float32], same_BN: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Average precision over the whole ranking of each row; their mean is mAP: [B] within 0–1.

    The mean, over the items with the label of the query, of the share of that label among all items at least as near.
    Equally near items thus share the last of their ranks, so an encoder that maps all images to one vector gets only
    the share of the label in the data. A row without any item of the label has 0.

    Args:
        cosine_BN: cosine of every pair.
        same_BN: whether both of the pair have the same label.
    """
    result_B = np.zeros(len(cosine_BN))
    for row, (cosine_N, same_N) in enumerate(zip(cosine_BN, same_BN, strict=True)):
        all_N, wanted_R = np.sort(cosine_N), np.sort(cosine_N[same_N])
        if len(wanted_R):
            at_least_R = len(all_N) - np.searchsorted(all_N, wanted_R)
            wanted_at_least_R = len(wanted_R) - np.searchsorted(wanted_R, wanted_R)
            result_B[row] = (wanted_at_least_R / at_least_R).mean()
    return result_B
