"""Joining the rows of several processes so that gradients flow back to each of them."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _GatherRows(torch.autograd.Function):
    """All-gather whose backward adds up what every process says about a row.

    ``dist.all_gather`` alone would drop the gradients of the other processes, a known fault of many ports: the
    gradient is then not that of one process on the joined batch.
    """

    @staticmethod
    def forward(ctx: Any, x_BD: Tensor) -> Tensor:
        parts = [torch.empty_like(x_BD) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x_BD.contiguous())
        ctx.rows = x_BD.shape[0]
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient_GD = gradients[0].contiguous()
        dist.all_reduce(gradient_GD)
        start = dist.get_rank() * ctx.rows
        return gradient_GD[start : start + ctx.rows]


def gather_rows(x_BD: Tensor) -> tuple[Tensor, int]:
    """The rows of every process, [G, D], and where this process's own begin; all processes bring equally many.

    With the losses here, each the mean over a process's own rows, and gradients of parameters averaged over processes,
    the result is the gradient of one process on the joined batch.
    """
    joined_GD: Tensor = _GatherRows.apply(x_BD)
    return joined_GD, dist.get_rank() * x_BD.shape[0]
