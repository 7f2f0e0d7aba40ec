"""The health of embeddings, measured without labels: the quantities that shrink when a run collapses.

Shapes: N embeddings, view-major (N = V views of B images each), D numbers per embedding of the backbone (h), P numbers
per embedding that the loss compares (z).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_ROWS = 1024
"""Embeddings that are measured; more give the same values and cost more."""


@dataclass(frozen=True, kw_only=True)
class Health:
    """Measures of one batch of embeddings; nan where undefined."""

    rank: float
    """Effective rank of h, 1 to ``dimension``; see ``effective_rank``."""
    dimension: int
    """D."""
    std: float
    """Mean standard deviation of a number of unit z, times √P: 0 if all are equal, 1 if spread in all directions."""
    alignment: float
    """Mean squared distance of unit z of two views of an image, 0–4 (arXiv 2005.10242, equation 5, α = 2)."""
    uniformity: float
    """Log of the mean of exp(−2 · squared distance) of unit z, −8 to 0 (all equal) (equation 6, t = 2)."""


def measure(features_ND: Tensor, projections_ND: Tensor, views: int) -> Health:
    """The health of a batch, computed on its device, with one transfer of the results.

    Args:
        features_ND: h, detached, view-major.
        projections_ND: z of the same views, detached, view-major.
        views: V; alignment needs at least two.
    """
    # As one view: with MoCo there is h of the queries only, and so not always as many as z.
    h_MD = in_double(strided(features_ND, 1))
    unit_MP = F.normalize(in_double(strided(projections_ND, views)), dim=1)
    values = torch.stack([_rank(h_MD), _std(unit_MP), _alignment(unit_MP, views), _uniformity(unit_MP)])
    rank, std, alignment, uniformity = values.tolist()
    return Health(rank=rank, dimension=features_ND.shape[1], std=std, alignment=alignment, uniformity=uniformity)


def effective_rank(h_ND: Tensor) -> float:
    """RankMe (arXiv 2210.02885, equation 2): exp of the entropy of the normalised singular values of [N, D].

    From 1 (all embeddings on one line: collapse) to min(N, D) (all directions used equally).
    """
    return float(_rank(in_double(h_ND.detach())))


def strided(x_ND: Tensor, views: int) -> Tensor:
    """About MAX_ROWS rows at most, evenly spaced: the same images of each view."""
    stride = math.ceil(x_ND.shape[0] / MAX_ROWS)
    return x_ND.detach().reshape(views, -1, x_ND.shape[1])[:, ::stride].flatten(0, 1)


def in_double(x_ND: Tensor) -> Tensor:
    """In double precision, on CUDA if it is there and else on the CPU: MPS has neither float64 nor eigenvalues."""
    return (x_ND if x_ND.device.type == "cuda" else x_ND.cpu()).double()


def _rank(h_MD: Tensor) -> Tensor:
    gram = h_MD.T @ h_MD if h_MD.shape[0] > h_MD.shape[1] else h_MD @ h_MD.T
    finite = torch.isfinite(gram).all()
    singular = torch.linalg.eigvalsh(torch.where(finite, gram, 0.0)).clamp(min=0).sqrt()
    share = singular / singular.sum().clamp(min=1e-30)
    rank = torch.exp(torch.special.entr(share).sum())
    return torch.where(finite, rank, math.nan)


def _std(unit_MP: Tensor) -> Tensor:
    return unit_MP.std(dim=0, correction=0).mean() * math.sqrt(unit_MP.shape[1])


def _alignment(unit_MP: Tensor, views: int) -> Tensor:
    """Mean over all pairs of views; nan for one view."""
    unit_VBP = unit_MP.reshape(views, -1, unit_MP.shape[1])
    squares = [(unit_VBP[i] - unit_VBP[j]).square().sum(1).mean() for i in range(views) for j in range(i + 1, views)]
    return torch.stack(squares).mean() if squares else unit_MP.new_tensor(math.nan)


def _uniformity(unit_MP: Tensor) -> Tensor:
    """Over all pairs of different rows."""
    count = unit_MP.shape[0]
    cosine_MM = unit_MP @ unit_MP.T
    squared_MM = cosine_MM.diagonal().unsqueeze(1) + cosine_MM.diagonal() - 2 * cosine_MM
    potentials_MM = torch.exp(-2 * squared_MM).fill_diagonal_(0.0)
    return torch.log(potentials_MM.sum() / (count * (count - 1)))
