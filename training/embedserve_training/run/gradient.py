"""The gradient of one batch: its views, its parts one after another, and the mean over all processes.

The images, views and random numbers of a batch do not depend on the number of processes that share it, nor its images
and views on the number of parts in which it is computed.

Shapes: G images in the batch, B of them in this process, A parts of B / A images each, V views, C = 3 channels, T side
of the cached image, S side of a view.
"""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from embedserve_training import augment
from embedserve_training.methods.method import Method, StepOutput
from embedserve_training.plan.config import Settings
from embedserve_training.seeds import seed_of


class BatchGradient:
    """Computes the gradient of each batch of a run.

    Args:
        method: on the training device, with its batch-norm joined over the processes.
        settings: of the run; ``batch_size`` is that of all processes together.
    """

    def __init__(self, method: Method, settings: Settings) -> None:
        self._method = method
        self._settings = settings
        self._parts = max(settings.accumulate, 1)
        self._per_part = settings.batch_size // (self._parts * method.processes.count)
        self._recipes = augment.recipes_for(settings.augmentation, settings.crop_min)
        self._generator = torch.Generator()
        if settings.compile:
            for network in method.networks():
                network.compile()  # in place, so the names of the weights do not change
        self._distributed = _distributed(method) if method.processes.count > 1 else None

    @property
    def rows_B(self) -> Tensor:
        """The rows of a batch that this process takes, in this order: int64 [B].

        Each part is cut into one contiguous range per process.
        """
        first_A = [self._first(part) for part in range(self._parts)]
        return torch.cat([torch.arange(first, first + self._per_part) for first in first_A])

    def of(self, pixels_BTTC: Tensor, indices_B: Tensor, step: int) -> StepOutput:
        """Compute the gradient of a batch into the parameters, which must have none.

        Args:
            pixels_BTTC: uint8, those of ``rows_B``.
            indices_B: position of each image in the data.
            step: number of the step, from 0.

        Returns:
            The mean of losses and diagnostics over the parts, and the embeddings of the last one.
        """
        outputs = []
        for part in range(self._parts):
            own = slice(part * self._per_part, (part + 1) * self._per_part)
            views_VPCSS = self._views(pixels_BTTC[own], step, self._first(part))
            self._generator.manual_seed(seed_of(self._settings.seed, f"method {part}", step))
            last = part == self._parts - 1
            with self._distributed.no_sync() if self._distributed and not last else nullcontext():
                output = self._forward(views_VPCSS, indices_B[own])
                (output.loss / self._parts).backward()  # type: ignore[no-untyped-call]
            outputs.append(replace(output, loss=output.loss.detach()))
        return outputs[0] if self._parts == 1 else _mean(outputs)

    def _first(self, part: int) -> int:
        """First row of the batch in this process's range of a part."""
        return (part * self._method.processes.count + self._method.processes.rank) * self._per_part

    @torch.no_grad()
    def _views(self, pixels_PTTC: Tensor, step: int, first: int) -> list[Tensor]:
        # All parts have the same seed: parameters are drawn for the whole batch, and each part takes those of its rows.
        self._generator.manual_seed(seed_of(self._settings.seed, "views", step))
        return [
            augment.augment(
                pixels_PTTC,
                self._settings.size_px,
                self._recipes[view % len(self._recipes)],
                self._generator,
                first=first,
                total=self._settings.batch_size,
            )
            for view in range(self._method.views)
        ]

    def _forward(self, views_VPCSS: list[Tensor], indices_P: Tensor) -> StepOutput:
        bf16 = self._settings.precision == "bf16"
        with torch.autocast(indices_P.device.type, dtype=torch.bfloat16, enabled=bf16):
            output: StepOutput = (self._distributed or self._method)(views_VPCSS, indices_P, self._generator)
        return output


def _mean(outputs: list[StepOutput]) -> StepOutput:
    names = outputs[-1].diagnostics
    return replace(
        outputs[-1],
        loss=torch.stack([output.loss for output in outputs]).mean(),
        diagnostics={name: torch.stack([output.diagnostics[name] for output in outputs]).mean() for name in names},
    )


def _distributed(method: Method) -> DistributedDataParallel:
    """The method with gradients averaged over processes; all start with the weights and buffers of process 0.

    Buffers are not synchronised later: queue and bank are equal in all processes by construction, and batch-norm
    statistics that are not joined belong to each process; the run keeps those of process 0.
    """
    for buffer in method.buffers():
        dist.broadcast(buffer, 0)
    new = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
    no_buffer_sync: dict[str, Any] = {"forward_sync_buffers" if new else "broadcast_buffers": False}
    return DistributedDataParallel(method, **no_buffer_sync)
