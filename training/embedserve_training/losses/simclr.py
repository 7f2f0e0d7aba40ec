"""NT-Xent, the loss of SimCLR: each view must find its partner among all views of the batch.

Shapes: B images in this process, G = B × processes, D numbers per embedding.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from embedserve_training.dtypes import at_least_fp32
from embedserve_training.losses.protocols import Gather


def nt_xent(z1_BD: Tensor, z2_BD: Tensor, tau: float, gather: Gather | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """NT-Xent, the contrastive loss of SimCLR (arXiv 2002.05709, equation 1).

    Each of the 2B embeddings must pick its partner out of the 2G − 1 others by cosine / tau. The loss is the mean over
    the 2B anchors, as in equation 1 and most ports; the authors' code adds the means of the two views, which is twice
    this value, so one of their learning rates for SGD corresponds to twice that rate here.

    Args:
        z1_BD: embeddings of the first views, of any norm and floating dtype.
        z2_BD: embeddings of the second views of the same images.
        tau: temperature, positive.
        gather: joins the rows of all processes; None if there is only this one.

    Returns:
        The loss, which is ln(2G − 1) for embeddings that are all equal (``nt_xent_chance``), and detached scalars:
        ``pos``, the mean cosine of partners, and ``top1``, the share of anchors whose nearest other embedding is their
        partner.
    """
    with torch.autocast(z1_BD.device.type, enabled=False):
        a_BD, b_BD = F.normalize(at_least_fp32(z1_BD), dim=1), F.normalize(at_least_fp32(z2_BD), dim=1)
        a_GD, start = gather(a_BD) if gather else (a_BD, 0)
        b_GD, _ = gather(b_BD) if gather else (b_BD, 0)
        partner_B = torch.arange(start, start + a_BD.shape[0], device=a_BD.device)
        own_BG = F.one_hot(partner_B, a_GD.shape[0]).bool()

        def logits(x_BD: Tensor, other_GD: Tensor, same_GD: Tensor) -> Tensor:
            # Partners come first: column ``partner_B`` of the result is the positive, as in the authors' code.
            itself_out_BG = (x_BD @ same_GD.T).masked_fill(own_BG, -math.inf)
            return torch.cat([x_BD @ other_GD.T, itself_out_BG], dim=1) / tau

        logits_a_B2G, logits_b_B2G = logits(a_BD, b_GD, a_GD), logits(b_BD, a_GD, b_GD)
        loss = (F.cross_entropy(logits_a_B2G, partner_B) + F.cross_entropy(logits_b_B2G, partner_B)) / 2
        with torch.no_grad():
            hits_a_B, hits_b_B = logits_a_B2G.argmax(1) == partner_B, logits_b_B2G.argmax(1) == partner_B
            diagnostics = {
                "pos": (a_BD * b_BD).sum(1).mean(),
                "top1": torch.cat([hits_a_B, hits_b_B]).float().mean(),
            }
    return loss, diagnostics


def nt_xent_chance(global_batch: int) -> float:
    """NT-Xent of embeddings that are all equal, at any temperature: ln(2G − 1).

    A run whose loss stays here has collapsed or learns nothing.
    """
    return math.log(2 * global_batch - 1)
