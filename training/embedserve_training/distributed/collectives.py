"""Tensors that the processes of a run exchange, with the gradient that one process would have.

Every process holds the same number of images, B of the G of a step. Losses are means over a process's own rows (or, for
Barlow Twins, the loss of the global batch), and gradients of parameters are averaged over processes afterwards, as
DistributedDataParallel does. With the functions here the result is the gradient of one process on the global batch.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """Rank and number of the processes that train together, and the exchange of tensors between them.

    With one process nothing is exchanged. ``launch.ProcessGroup`` is for what processes agree on beside tensors.
    """

    rank: int = 0
    """Of this process, from 0."""
    count: int = 1
    """Of all processes."""

    @classmethod
    def current(cls) -> Processes:
        """Those of torch's default process group; a single one if there is none."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return SINGLE_PROCESS

    def gather(self, z_BD: Tensor) -> tuple[Tensor, int]:
        """The rows of all processes, [G, D], with gradient, and the position of this process's first row."""
        return (z_BD, 0) if self.count == 1 else gather_rows(z_BD)

    def all_reduce_sum(self, x: Tensor) -> Tensor:
        """The sum of a tensor over all processes, with gradient."""
        return x if self.count == 1 else all_reduce_sum(x)

    def gather_detached(self, x_BD: Tensor) -> Tensor:
        """The rows of all processes, [G, …], without gradient."""
        if self.count == 1:
            return x_BD.detach()
        parts = [torch.empty_like(x_BD, memory_format=torch.contiguous_format) for _ in range(self.count)]
        dist.all_gather(parts, x_BD.detach().contiguous())
        return torch.cat(parts)

    def own_rows(self, x_GD: Tensor) -> Tensor:
        """This process's rows of a tensor with the rows of all processes."""
        return x_GD.chunk(self.count)[self.rank]


SINGLE_PROCESS = Processes()
"""A run of one process."""


class _GatherRows(torch.autograd.Function):
    """All-gather whose backward sums the gradients that all processes have for a row.

    ``dist.all_gather`` alone drops the gradients of the other processes, a known bug of many ports: the result is then
    not the gradient of one process on the global batch.
    """

    @staticmethod
    def forward(ctx: Any, x_BD: Tensor) -> Tensor:
        parts = [torch.empty_like(x_BD, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x_BD.contiguous())
        ctx.rows = x_BD.shape[0]
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient_GD = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient_GD)
        start = dist.get_rank() * ctx.rows
        return gradient_GD[start : start + ctx.rows]


class _SumOverProcesses(torch.autograd.Function):
    """All-reduce whose backward is a sum as well: the loss of each process depends on the rows of all.

    Autograd does not see a plain ``dist.all_reduce``; the gradient is then 1 / processes of the correct one.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient


def gather_rows(x_BD: Tensor) -> tuple[Tensor, int]:
    """The rows of all processes, [G, D], and the position of this process's first row; all have the same number."""
    joined_GD: Tensor = _GatherRows.apply(x_BD)
    return joined_GD, dist.get_rank() * x_BD.shape[0]


def all_reduce_sum(x: Tensor) -> Tensor:
    """The sum of a tensor over all processes, with gradient."""
    total: Tensor = _SumOverProcesses.apply(x)
    return total


def is_launched() -> bool:
    """Whether ``torchrun``, or a launcher with the same environment variables, started several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1
