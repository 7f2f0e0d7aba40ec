"""The loss of Barlow Twins: the cross-correlation of two views is pulled towards the identity matrix.

Shapes: V = 2 views, B images in this process, D numbers per embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from embedserve_training.dtypes import at_least_fp32
from embedserve_training.losses.protocols import AllReduce

EPSILON = 1e-5
"""Added to the variance, as in BatchNorm1d: a constant embedding becomes 0 instead of a division by 0."""


def barlow_twins(
    z1_BD: Tensor, z2_BD: Tensor, off_diagonal: float, all_reduce: AllReduce | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of Barlow Twins (arXiv 2103.03230, equation 1): Σᵢ(1 − cᵢᵢ)² + λ Σᵢ Σ_{j≠i} cᵢⱼ².

    Both views are standardised over the global batch as BatchNorm1d without weights does in training (biased variance,
    ε = 1e-5); c is the mean over the global batch of their products. The size of the batch is counted, not assumed: the
    last batch of an epoch may be smaller.

    Every process returns the loss of the global batch. If the backward of ``all_reduce`` is a sum, a process gets the
    derivative of the *sum* of these equal losses for its own rows. The mean of the gradients over processes, which DDP
    takes, is then the gradient of one process with the global batch. A sum without gradient, as in the authors' code,
    gives 1 / processes of it.

    Args:
        z1_BD: embeddings of the first views, of any floating dtype; at least two over all processes.
        z2_BD: embeddings of the second views of the same images.
        off_diagonal: λ, the weight of the redundancy term; .0051 in the paper.
        all_reduce: the sum over all processes, with gradient; None if there is only this one.

    Returns:
        The loss, a scalar that grows with D (``barlow_twins_chance``), and detached scalars that do not: ``on``, the
        mean of |cᵢᵢ − 1|; ``off``, the root mean square of cᵢⱼ, i ≠ j; ``pos``, the mean of cᵢᵢ.
    """
    with torch.autocast(z1_BD.device.type, enabled=False):
        z_VBD = torch.stack([at_least_fp32(z1_BD), at_least_fp32(z2_BD)])
        dimension = z_VBD.shape[2]

        def total(x: Tensor) -> Tensor:
            return all_reduce(x) if all_reduce else x

        batch = total(z_VBD.new_tensor(z_VBD.shape[1]))
        # In two passes: E[z²] − E[z]² in fp32 loses the variance of embeddings far from 0.
        centred_VBD = z_VBD - (total(z_VBD.sum(1)) / batch).unsqueeze(1)
        variance_VD = total(centred_VBD.square().sum(1)) / batch
        a_BD, b_BD = centred_VBD * (variance_VD + EPSILON).rsqrt().unsqueeze(1)
        c_DD = total(a_BD.T @ b_BD) / batch
        own_D = c_DD.diagonal()
        other_DD = c_DD - torch.diag_embed(own_D)
        others_squared = other_DD.square().sum()
        loss = (own_D - 1).square().sum() + off_diagonal * others_squared
        with torch.no_grad():
            diagnostics = {
                "on": (own_D - 1).abs().mean(),
                "off": (others_squared / max(1, dimension * (dimension - 1))).sqrt(),
                "pos": own_D.mean(),
            }
    return loss, diagnostics


def barlow_twins_chance(dimension: int, batch: int, off_diagonal: float) -> float:
    """The loss of two independent views, for a large batch: D + λ D (D − 1) / B.

    Products of independent standardised columns have a mean square of 1 / (B − 1); the D / (B − 1) that this adds to
    the diagonal is left out. A constant embedding costs exactly D, as its c is 0.
    """
    return dimension + off_diagonal * dimension * (dimension - 1) / batch


def barlow_twins_rank_one(dimension: int, off_diagonal: float) -> float:
    """The loss of identical views whose D columns are all equal: λ D (D − 1), as every c is 1."""
    return off_diagonal * dimension * (dimension - 1)
