"""How well a search brings up images of the same label: recall at 1, 5 and 10, precision at 10, and mAP.

Shapes: N images to search in, B that ask, K neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def recall(same_BK: NDArray[np.bool_], k: int) -> NDArray[np.bool_]:
    """Whether at least one of the k nearest has the label of the image that asks (Recall@K, arXiv 1511.06452): [B].

    Args:
        same_BK: whether each neighbour has that label, nearest first.
        k: how many of them count.
    """
    return np.asarray(same_BK[:, :k].any(axis=1))


def average_precision(cosine_BN: NDArray[np.float32], same_BN: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Average precision over the whole ranking of each row; their mean is mAP: [B] within 0–1.

    For each item of the label that is asked for: the share of that label among all items that are at least as near.
    Equal items thus share the last of their ranks, so that an encoder to which all images are alike gets the share of
    the label in the data and no more. A row without any such item has 0: no ranking could have brought one up.

    Args:
        cosine_BN: cosine of every pair.
        same_BN: whether the pair has one label.
    """
    result_B = np.zeros(len(cosine_BN))
    for row, (cosine_N, same_N) in enumerate(zip(cosine_BN, same_BN, strict=True)):
        all_N, wanted_R = np.sort(cosine_N), np.sort(cosine_N[same_N])
        if len(wanted_R):
            at_least_R = len(all_N) - np.searchsorted(all_N, wanted_R)
            wanted_at_least_R = len(wanted_R) - np.searchsorted(wanted_R, wanted_R)
            result_B[row] = (wanted_at_least_R / at_least_R).mean()
    return result_B
