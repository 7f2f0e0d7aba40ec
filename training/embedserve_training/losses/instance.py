"""The losses of Instance Discrimination: each image is a class of its own, its weights a row of the memory bank.

None of them changes the bank, and the bank gets no gradient.

Shapes: B images in this process, N images in all (rows of the bank), M noise rows per image, D numbers per embedding.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from embedserve_training.dtypes import at_least_fp32


def instance_softmax(v_BD: Tensor, bank_ND: Tensor, indices_B: Tensor, tau: float) -> tuple[Tensor, dict[str, Tensor]]:
    """The full non-parametric softmax of Instance Discrimination (arXiv 1805.01978, equation 2).

    Each embedding must pick its own image out of all N by cosine / tau with the rows of the bank. Exact, at N products
    per image: for up to a few hundred thousand images.

    Args:
        v_BD: embeddings, of any norm and floating dtype.
        bank_ND: the embedding of each image when it was last seen, rows of norm 1; constants.
        indices_B: the row of each image, int64.
        tau: temperature, positive.

    Returns:
        The loss, a mean over the B images, which is ln N if all rows are equal (``instance_softmax_chance``), and
        detached scalars: ``pos``, the mean cosine of an embedding and its own row, and ``top1``, the share of
        embeddings whose own row is the nearest.
    """
    with torch.autocast(v_BD.device.type, enabled=False):
        v_BD = F.normalize(at_least_fp32(v_BD), dim=1)
        logits_BN = v_BD @ bank_ND.detach().to(v_BD.dtype).T / tau
        loss = F.cross_entropy(logits_BN, indices_B)
        with torch.no_grad():
            diagnostics = {
                "pos": logits_BN.gather(1, indices_B.unsqueeze(1)).mean() * tau,
                "top1": (logits_BN.argmax(1) == indices_B).float().mean(),
            }
    return loss, diagnostics


def instance_softmax_chance(images: int) -> float:
    """The full softmax if all rows are equal: ln N."""
    return math.log(images)


def instance_nce(
    v_BD: Tensor, bank_ND: Tensor, indices_B: Tensor, noise_BM: Tensor, tau: float, z: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Noise-contrastive estimation of the softmax (arXiv 1805.01978, equations 5 to 7).

    With P = exp(v·f / τ) / Z and h = P / (P + M / N), an image costs −ln h(own row) − Σ over its noise of ln(1 − h). As
    ln(h / (1 − h)) = v·f / τ − ln Z − ln(M / N), these are logistic losses of that logit, without quotients of
    exponentials and without an ε inside a logarithm.

    Args:
        v_BD: embeddings, of any norm and floating dtype.
        bank_ND: the embedding of each image when it was last seen, rows of norm 1; constants.
        indices_B: the row of each image, int64.
        noise_BM: rows drawn uniformly from all N for each image, int64. The image's own row may be among them, as in
            the paper's noise distribution.
        tau: temperature, positive.
        z: the normaliser Z, a constant scalar (section 3.2), estimated once by ``instance_normaliser``.

    Returns:
        The loss, a sum over an image's rows and a mean over images, which is about 1 + ln(M + 1) if P = 1 / N for all
        rows (``instance_nce_chance``), and detached scalars: ``pos``, the mean cosine of an embedding and its own row,
        and ``top1``, the share of embeddings nearer to their own row than to any noise row of another image.
    """
    with torch.autocast(v_BD.device.type, enabled=False):
        v_BD = F.normalize(at_least_fp32(v_BD), dim=1)
        positive_B = (v_BD * bank_ND[indices_B].detach().to(v_BD.dtype)).sum(1)
        negative_BM = _cosines_to_noise(v_BD, bank_ND, noise_BM)
        shift = z.detach().to(v_BD.dtype).log() + math.log(noise_BM.shape[1] / len(bank_ND))
        # −ln h(logit) = softplus(−logit) and −ln(1 − h(logit)) = softplus(logit).
        loss_B = _softplus(shift - positive_B / tau) + _softplus(negative_BM / tau - shift).sum(1)
        with torch.no_grad():
            other_BM = negative_BM.masked_fill(noise_BM == indices_B.unsqueeze(1), -math.inf)
            diagnostics = {
                "pos": positive_B.mean(),
                "top1": (positive_B.unsqueeze(1) > other_BM).all(1).float().mean(),
            }
    return loss_B.mean(), diagnostics


def instance_nce_chance(noise: int) -> float:
    """Noise-contrastive estimation if P = 1 / N for all rows: ln(M + 1) + M ln((M + 1) / M), about 1 + ln(M + 1).

    Every h is then 1 / (M + 1).
    """
    return math.log(noise + 1) + noise * math.log1p(1 / noise)


@torch.no_grad()
def instance_normaliser(v_BD: Tensor, bank_ND: Tensor, noise_BM: Tensor, tau: float) -> Tensor:
    """The Monte-Carlo estimate of Z (arXiv 1805.01978, equation 8): N times the mean of exp(v·f / τ) over the noise.

    The paper has one Z per image and finds it about equal for all; this is the mean over the B images. Each process has
    its own estimate, and their mean is the estimate of all.

    Args:
        v_BD: embeddings, of any norm and floating dtype.
        bank_ND: the memory bank, rows of norm 1.
        noise_BM: rows drawn uniformly from all N for each image, int64.
        tau: temperature, positive. The estimate is at most N exp(1 / τ), where every cosine is 1: finite in fp32 for
            a billion images down to τ = .015.

    Returns:
        A scalar without gradient.
    """
    with torch.autocast(v_BD.device.type, enabled=False):
        logits_BM = _cosines_to_noise(F.normalize(at_least_fp32(v_BD), dim=1), bank_ND, noise_BM) / tau
        log_mean = logits_BM.flatten().logsumexp(0) - math.log(logits_BM.numel())
        return (log_mean + math.log(len(bank_ND))).exp()


def proximal(v_BD: Tensor, bank_ND: Tensor, indices_B: Tensor) -> Tensor:
    """The proximal regulariser (arXiv 1805.01978, equation 9) without its weight λ: the mean of ‖vᵢ − bankᵢ‖².

    It keeps an embedding near its value of an epoch ago, which steadies a training that visits each class once per
    epoch.

    Args:
        v_BD: embeddings, of any norm and floating dtype.
        bank_ND: the embedding of each image when it was last seen, rows of norm 1; constants.
        indices_B: the row of each image, int64.

    Returns:
        A scalar from 0 (no row has moved) to 4 (all have reversed).
    """
    with torch.autocast(v_BD.device.type, enabled=False):
        v_BD = F.normalize(at_least_fp32(v_BD), dim=1)
        return (v_BD - bank_ND[indices_B].detach().to(v_BD.dtype)).square().sum(1).mean()


def _cosines_to_noise(v_BD: Tensor, bank_ND: Tensor, noise_BM: Tensor) -> Tensor:
    """Cosine of each unit embedding and its own noise rows, [B, M]."""
    return torch.einsum("bd,bmd->bm", v_BD, bank_ND.detach()[noise_BM].to(v_BD.dtype))


def _softplus(x: Tensor) -> Tensor:
    """ln(1 + eˣ). Above 20 torch returns x by default, which is up to 2e-9 too small: too much for fp64."""
    return F.softplus(x, threshold=20 if x.dtype == torch.float32 else 40)
