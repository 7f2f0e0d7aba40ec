"""Eight steps of each method on drawn images, which the golden curves record.

They must be the same on other processors and with other builds of PyTorch. So weights are scaled integers drawn by
NumPy (normal numbers differ in their last digit between processors), and methods compute in fp64: with a batch of 8,
some channels of which hardly vary, a difference of 1e-6 in the weights grows to several percent of the loss within
eight steps.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embedserve_training.methods.method import Method
from embedserve_training.methods.moco import MoCo
from tests.training.method_cases import IMAGES, build, drawn_views, in_double, seeded

FILE = Path(__file__).parent / "losses.json"
STEPS, BATCH, LR = 8, 8, 0.003

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "simclr": ("simclr", {}),
    "moco": ("moco", {}),
    "moco, symmetric": ("moco", {"symmetric": True}),
    "barlow-twins": ("barlow-twins", {}),
    "instance-discrimination": ("instance-discrimination", {"proximal_weight": 1.0}),
    "instance-discrimination with noise": ("instance-discrimination", {"noise": 6}),
    "cpc": ("cpc", {}),
}


def drawn_by_numpy(method: Method) -> Method:
    """The method with all its random numbers drawn as integers: matrices, queue and bank."""
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for name, value in method.state_dict().items():
            if value.ndim > 1 and not name.startswith("key_"):
                drawn = torch.from_numpy(rng.integers(-1000, 1001, tuple(value.shape)) / 1000)
                value.copy_(drawn * (6 / value[0].numel()) ** 0.5)  # Kaiming's variance, 2 / inputs
                if name.startswith("predictors."):
                    value /= value[0].numel() ** 0.5  # near zero, as they are made
                if name in ("queue.keys_KD", "bank.rows_ND"):
                    value /= value.norm(dim=1, keepdim=True)
    if isinstance(method, MoCo):
        method.key_backbone.load_state_dict(method.backbone.state_dict())
        method.key_head.load_state_dict(method.head.state_dict())
    for name, weight in method.named_parameters():
        if weight.ndim == 1 and "bias" in name:
            torch.nn.init.zeros_(weight)
    return method


def losses(name: str, nudge: float = 0.0, **other: Any) -> list[float]:
    """The loss of each of eight steps of plain descent, from the weights of seed 0.

    Args:
        name: of the case.
        nudge: relative random change of the weights before the first step, to see how far rounding carries.
        other: changes of the method.
    """
    method_name, changes = CASES[name]
    method = drawn_by_numpy(in_double(build(method_name, **changes | other)))
    weights = [weight for weight in method.parameters() if weight.requires_grad]
    with torch.no_grad():
        for weight in weights:
            weight.mul_(1 + nudge * torch.randn(weight.shape, generator=seeded(1), dtype=weight.dtype))
    optimizer = torch.optim.SGD(weights, lr=LR)
    found = []
    for step in range(STEPS):
        indices_B = (torch.arange(BATCH) + BATCH * step) % IMAGES
        views_VBCSS = [view_BCSS.double() for view_BCSS in drawn_views(method, BATCH, seed=step % 3)]
        output = method(views_VBCSS, indices_B, seeded(step))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        method.after_step()
        found.append(output.loss.item())
    return found


def stored() -> dict[str, list[float]]:
    """The curves in the file."""
    curves: dict[str, list[float]] = json.loads(FILE.read_text(encoding="utf-8"))
    return curves
