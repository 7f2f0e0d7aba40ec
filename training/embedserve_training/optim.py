"""Optimisers, their parameter groups, and the learning rate as a pure function of how much of the budget is used."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from embedserve_training.config import Settings


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices and filters with weight decay, vectors (batch-norm, biases) without it and without LARS.

    Decaying batch-norm is a frequent fault of ports (arXiv 2002.05709, appendix B.2, excludes both).
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay, "adapt": True},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0, "adapt": False},
    ]


def build(settings: Settings, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of a run, with a learning rate of zero until the schedule sets it.

    Below 1,024 images AdamW is the choice, from there on LARS, which was made for batches of thousands and is what
    SimCLR publishes. AdamW scales each weight's step by itself, so runs of some hundred steps need little tuning: kNN
    changed by 2 points over a factor of 7 in the learning rate (figures in ``config``). SGD has not been compared.
    """
    groups = parameter_groups(model, settings.weight_decay)
    if settings.optimizer == "lars":
        return LARS(groups)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=0.9)
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=settings.device == "cuda")


def lr_factor(progress: float, warmup: float) -> float:
    """Share of the highest learning rate: rises linearly from 0 over the warm-up, then falls to 0 along a cosine.

    Args:
        progress: share of the budget that is used, 0–1; values beyond count as 1.
        warmup: share of the budget over which the rate rises.
    """
    if progress < warmup:
        return progress / warmup
    falling = min((progress - warmup) / (1 - warmup), 1.0)
    return 0.5 * (1 + math.cos(math.pi * falling))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


class LARS(torch.optim.Optimizer):
    """SGD whose step for each layer is in proportion to its weights (arXiv 1708.03888), as SimCLR's code has it.

    Trust coefficient 0.001; momentum is the classic one, with the learning rate inside the buffer. A group with
    ``adapt=False`` takes plain steps.
    """

    def __init__(self, groups: list[dict[str, Any]], momentum: float = 0.9, trust: float = 0.001) -> None:
        super().__init__(groups, {"lr": 0.0, "momentum": momentum, "trust": trust, "weight_decay": 0.0, "adapt": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step along the gradients; ``closure`` is not supported."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                update = weight.grad.add(weight, alpha=group["weight_decay"])
                if group["adapt"]:
                    update = update * _trust_ratio(weight, update, group["trust"])
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight)
                buffer = cast(Tensor, state["momentum"])
                buffer.mul_(group["momentum"]).add_(update, alpha=group["lr"])
                weight.sub_(buffer)


def _trust_ratio(weight: Tensor, update: Tensor, trust: float) -> Tensor:
    """``trust · |weight| / |update|``, and 1 where either is zero."""
    weight_norm, update_norm = weight.norm(), update.norm()
    usable = (weight_norm > 0) & (update_norm > 0)
    return torch.where(usable, trust * weight_norm / update_norm.clamp(min=1e-30), torch.ones_like(weight_norm))
