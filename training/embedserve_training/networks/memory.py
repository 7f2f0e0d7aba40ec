"""State of a method beside its weights: the momentum copy of a network, a queue of keys, a memory bank.

All of it is in registered buffers or parameters, so it is part of a checkpoint and moves with its module. It is in
fp32, or in fp64 if the whole method is.

Shapes: K rows of the queue, N images in the dataset, R rows of one step, D numbers per row.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def momentum_copy(network: nn.Module) -> nn.Module:
    """A copy of a network that gets no gradient (MoCo's key encoder, arXiv 1911.05722, section 3.2)."""
    return copy.deepcopy(network).requires_grad_(False)


@torch.no_grad()
def momentum_update(copy_: nn.Module, network: nn.Module, momentum: float) -> None:
    """θ_k ← m·θ_k + (1 − m)·θ_q (arXiv 1911.05722, equation 2).

    Parameters only: each network keeps its own running statistics of batch-norm.
    """
    torch._foreach_lerp_(list(copy_.parameters()), list(network.parameters()), 1 - momentum)


class KeyQueue(nn.Module):
    """The last K keys, first in, first out (arXiv 1911.05722, section 3.2). It starts with random directions.

    Args:
        size: K; need not be a multiple of the number of keys per step.
        dimension: D.
    """

    keys_KD: Tensor
    position: Tensor

    def __init__(self, size: int, dimension: int) -> None:
        super().__init__()
        self.register_buffer("keys_KD", F.normalize(torch.randn(size, dimension), dim=1))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def put(self, keys_RD: Tensor) -> None:
        """Replace the oldest R keys by these; if R exceeds K, only the last K are kept."""
        size = len(self.keys_KD)
        offset = torch.arange(len(keys_RD), device=keys_RD.device)[-size:]
        self.keys_KD[(self.position + offset) % size] = keys_RD[-size:].to(self.keys_KD.dtype)
        self.position.copy_((self.position + len(keys_RD)) % size)


class MemoryBank(nn.Module):
    """One unit vector for each image (arXiv 1805.01978, section 3.1). It starts with random directions.

    Args:
        images: N.
        dimension: D.
        momentum: share of a row that a step leaves unchanged.
    """

    rows_ND: Tensor

    def __init__(self, images: int, dimension: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("rows_ND", F.normalize(torch.randn(images, dimension), dim=1))

    @torch.no_grad()
    def put(self, indices_R: Tensor, vectors_RD: Tensor) -> None:
        """Move the rows of these images towards these unit vectors, and rescale them to norm 1."""
        before_RD = self.rows_ND[indices_R]
        moved_RD = torch.lerp(vectors_RD.to(before_RD.dtype), before_RD, self.momentum)
        self.rows_ND[indices_R] = F.normalize(moved_RD, dim=1)
