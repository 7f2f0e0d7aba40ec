"""Optimisers, their parameter groups, and the learning rate as a pure function of the share of the budget used."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from embedserve_training.plan.config import Settings


def parameter_groups(
    model: nn.Module, weight_decay: float, *, decayed: str = "matrices", bias_lr: float = 1.0
) -> list[dict[str, Any]]:
    """Two groups: matrices and filters, and vectors, which are the biases and the parameters of batch-norm.

    Args:
        model: its frozen parameters are left out.
        weight_decay: of matrices and filters.
        decayed: "matrices": vectors have neither weight decay nor LARS (arXiv 2002.05709, section 2.2, "we do not
            adapt/decay batch-norm and bias", as its code has it; arXiv 2103.03230, section 2.2). "all": they have both,
            as in the code of MoCo v1 and v2 and of Instance Discrimination, which decays every parameter.
        bias_lr: learning rate of vectors as a share of that of the others; ``set_lr`` applies it.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    vectors_too = decayed == "all"
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay, "adapt": True, "lr_scale": 1.0},
        {
            "params": [p for p in trained if p.ndim <= 1],
            "weight_decay": weight_decay if vectors_too else 0.0,
            "adapt": vectors_too,
            "lr_scale": bias_lr,
        },
    ]


def build(settings: Settings, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of a run, with a learning rate of zero until the schedule sets it.

    SimCLR and Barlow Twins are published with LARS, made for batches of thousands, MoCo and Instance Discrimination
    with SGD and momentum 0.9, and CPC with Adam, which AdamW equals without decay. AdamW scales the step of each
    weight separately, so runs of a few thousand steps on a CPU need little tuning.
    """
    groups = parameter_groups(model, settings.weight_decay, decayed=settings.decayed, bias_lr=settings.bias_lr)
    if settings.optimizer == "lars":
        return LARS(groups)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=0.9)
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=settings.device == "cuda")


def lr_factor(progress: float, warmup: float, drops: Sequence[float] = (), end: float = 0.0) -> float:
    """Share of the highest learning rate: it rises linearly from 0, then falls along a cosine or in steps.

    Args:
        progress: share of the budget that is used, 0–1; values beyond count as 1.
        warmup: share of the budget over which the rate rises.
        drops: shares of the budget at which the rate is divided by ten; empty: a cosine.
        end: final value of the cosine.
    """
    if progress < warmup:
        return progress / warmup
    if drops:
        return 0.1 ** sum(progress >= drop for drop in drops)
    falling = min((progress - warmup) / (1 - warmup), 1.0)
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * falling))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group: ``lr`` times the group's ``lr_scale``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


class LARS(torch.optim.Optimizer):
    """SGD whose step for each layer is proportional to the norm of its weights (arXiv 1708.03888), as in SimCLR's code.

    Trust coefficient 0.001; classic momentum, with the learning rate inside the buffer. A group with
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
