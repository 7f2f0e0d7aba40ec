"""InfoNCE of Contrastive Predictive Coding: each prediction must find its patch among all patches of the batch.

Shapes: N predictions in this process, G = N × processes, D numbers per patch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from embedserve_training.dtypes import at_least_fp32
from embedserve_training.losses.protocols import Gather


def cpc_info_nce(
    predicted_ND: Tensor, target_ND: Tensor, gather: Gather | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """InfoNCE of CPC (arXiv 1807.03748, equation 4) with the log-bilinear score of its equation 3.

    Row i of the predictions, Wₖcₜ in the paper, must pick row i of the targets, z_{t+k}, out of the targets of all
    images and positions by dot product; nothing is normalised and there is no temperature. Gradients flow into
    predictions and targets.

    Args:
        predicted_ND: predicted patches, of any floating dtype.
        target_ND: the actual patches, row by row.
        gather: joins the rows of all processes; None if there is only this one.

    Returns:
        The loss, a mean over the N predictions, which is ln G if all patches are equal (``cpc_chance``), and a detached
        scalar: ``top1``, the share of predictions whose own patch has the highest score.
    """
    with torch.autocast(predicted_ND.device.type, enabled=False):
        predicted_ND, target_ND = at_least_fp32(predicted_ND), at_least_fp32(target_ND)
        target_GD, start = gather(target_ND) if gather else (target_ND, 0)
        scores_NG = predicted_ND @ target_GD.T
        own_N = torch.arange(start, start + len(scores_NG), device=scores_NG.device)
        loss = F.cross_entropy(scores_NG, own_N)
        with torch.no_grad():
            diagnostics = {"top1": (scores_NG.argmax(1) == own_N).float().mean()}
    return loss, diagnostics


def cpc_chance(candidates: int) -> float:
    """InfoNCE of patches that are all equal: ln of the number of candidates."""
    return math.log(candidates)
