"""What several processes that train together have to exchange, each with the gradient that one process would have.

Every process holds equally many images, B of the G of a step. Losses are means over a process's own rows (or, for
Barlow Twins, the loss of the joined batch), and gradients of parameters are averaged over processes afterwards, as
DistributedDataParallel does. With the functions here the result is the gradient of one process on the joined batch.
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
    """The processes of a run, and what is exchanged between them."""

    rank: int = 0
    count: int = 1

    @classmethod
    def current(cls) -> Processes:
        """Those of torch's default process group; this one alone if there is none."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return ALONE

    def gather(self, z_BD: Tensor) -> tuple[Tensor, int]:
        """The rows of every process with gradient, [G, D], and where this process's own begin."""
        return (z_BD, 0) if self.count == 1 else gather_rows(z_BD)

    def total(self, x: Tensor) -> Tensor:
        """The sum of a tensor over all processes, with gradient."""
        return x if self.count == 1 else sum_over_processes(x)

    def join(self, x_BD: Tensor) -> Tensor:
        """The rows of every process, [G, …], without gradient."""
        if self.count == 1:
            return x_BD.detach()
        parts = [torch.empty_like(x_BD, memory_format=torch.contiguous_format) for _ in range(self.count)]
        dist.all_gather(parts, x_BD.detach().contiguous())
        return torch.cat(parts)

    def own(self, x_GD: Tensor) -> Tensor:
        """This process's rows of a joined tensor."""
        return x_GD.chunk(self.count)[self.rank]


ALONE = Processes()


class _GatherRows(torch.autograd.Function):
    """All-gather whose backward adds up what every process says about a row.

    ``dist.all_gather`` alone would drop the gradients of the other processes, a known fault of many ports: the
    gradient is then not that of one process on the joined batch.
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
    """All-reduce whose backward sums as well: every process's loss depends on every process's part.

    A raw ``dist.all_reduce`` is not seen by autograd; the gradient is then 1 / processes of what it should be.
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
    """The rows of every process, [G, D], and where this process's own begin; all processes bring equally many."""
    joined_GD: Tensor = _GatherRows.apply(x_BD)
    return joined_GD, dist.get_rank() * x_BD.shape[0]


def sum_over_processes(x: Tensor) -> Tensor:
    """The sum of a tensor over all processes, with gradient."""
    total: Tensor = _SumOverProcesses.apply(x)
    return total


def launched() -> bool:
    """Whether ``torchrun`` (or something that speaks its environment variables) started several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1
