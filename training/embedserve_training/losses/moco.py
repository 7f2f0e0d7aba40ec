"""InfoNCE against a queue, the loss of MoCo: each query must find its key among the keys of earlier batches.

Shapes: B images in this process, K rows of the queue, D numbers per embedding.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from embedserve_training.dtypes import at_least_fp32


def info_nce(q_BD: Tensor, k_BD: Tensor, queue_KD: Tensor, tau: float) -> tuple[Tensor, dict[str, Tensor]]:
    """InfoNCE of MoCo (arXiv 1911.05722, equation 1).

    Each query must pick its own key out of that key and the K keys of the queue by cosine / tau. Only queries get a
    gradient: keys come from the momentum encoder, which is not trained by descent (section 3.2).

    Args:
        q_BD: queries, of any norm and floating dtype.
        k_BD: keys of the same images, of any norm and floating dtype; constants.
        queue_KD: keys of earlier batches, rows of norm 1, without ``k_BD``; constants.
        tau: temperature, positive.

    Returns:
        The loss, a mean over the B queries, which is ln(K + 1) if all embeddings are equal (``info_nce_chance``), and
        detached scalars: ``pos``, the mean cosine of query and key, and ``top1``, the share of queries nearer to their
        key than to any row of the queue.
    """
    with torch.autocast(q_BD.device.type, enabled=False):
        q_BD, k_BD = F.normalize(at_least_fp32(q_BD), dim=1), F.normalize(at_least_fp32(k_BD.detach()), dim=1)
        positive_B1 = (q_BD * k_BD).sum(1, keepdim=True)
        negative_BK = q_BD @ queue_KD.detach().to(q_BD.dtype).T
        logits_B1K = torch.cat([positive_B1, negative_BK], dim=1) / tau
        label_B = torch.zeros(len(q_BD), dtype=torch.long, device=q_BD.device)
        loss = F.cross_entropy(logits_B1K, label_B)
        with torch.no_grad():
            # The label is always 0, so argmax would count every tie, and hence a collapse, as a hit.
            diagnostics = {
                "pos": positive_B1.mean(),
                "top1": (positive_B1 > negative_BK).all(1).float().mean(),
            }
    return loss, diagnostics


def info_nce_chance(queue_size: int) -> float:
    """InfoNCE of embeddings that are all equal, at any temperature: ln(K + 1)."""
    return math.log(queue_size + 1)
