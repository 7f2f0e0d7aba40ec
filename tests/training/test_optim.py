"""Parameter groups, the schedule in numbers, and LARS against a slow version."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from embedserve_training import optim
from embedserve_training.backbones import build
from embedserve_training.methods.simclr import SimCLR


def test_weight_decay_spares_batch_norm_and_biases_and_takes_all_else() -> None:
    method = SimCLR(build("small-cnn", 16), tau=0.2)
    decayed, spared = optim.parameter_groups(method, 0.1)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    kinds = {id(p): type(module) for module in method.modules() for p in module.parameters(recurse=False)}
    assert {kinds[id(p)] for p in decayed["params"]} == {nn.Conv2d, nn.Linear}
    assert {kinds[id(p)] for p in spared["params"]} <= {nn.BatchNorm2d, nn.BatchNorm1d}
    trained = [p for p in method.parameters() if p.requires_grad]
    assert len(decayed["params"]) + len(spared["params"]) == len(trained)


def test_biases_of_linear_layers_are_spared() -> None:
    _, spared = optim.parameter_groups(nn.Linear(3, 2), 0.1)
    assert [p.shape for p in spared["params"]] == [(2,)]


@pytest.mark.parametrize(
    ("progress", "warmup", "expected"),
    [
        (0.0, 0.1, 0.0),
        (0.05, 0.1, 0.5),
        (0.1, 0.1, 1.0),
        (0.325, 0.1, 0.8535534),  # a quarter of the way down: (1 + cos 45°) / 2
        (0.55, 0.1, 0.5),
        (0.775, 0.1, 0.1464466),
        (1.0, 0.1, 0.0),
        (1.2, 0.1, 0.0),
        (0.0, 0.0, 1.0),
        (0.5, 0.0, 0.5),
    ],
)
def test_the_learning_rate_rises_linearly_and_falls_along_a_cosine(
    progress: float, warmup: float, expected: float
) -> None:
    assert optim.lr_factor(progress, warmup) == pytest.approx(expected, abs=1e-6)


def slow_lars(w: np.ndarray, gradients: list[np.ndarray], lr: float, decay: float, adapt: bool) -> np.ndarray:
    """Algorithm 1 of arXiv 1708.03888 with classic momentum, for one layer."""
    velocity = np.zeros_like(w)
    for gradient in gradients:
        update = gradient + decay * w
        local = 0.001 * np.linalg.norm(w) / np.linalg.norm(update) if adapt else 1.0
        velocity = 0.9 * velocity + lr * local * update
        w = w - velocity
    return w


@pytest.mark.parametrize("adapt", [True, False])
def test_lars_is_its_algorithm(adapt: bool) -> None:
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=(4, 3)), list(rng.normal(size=(5, 4, 3)))
    weight = nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = optim.LARS([{"params": [weight], "weight_decay": 0.01, "adapt": adapt}])
    optim.set_lr(optimizer, 0.3)
    for gradient in gradients:
        weight.grad = torch.from_numpy(gradient)
        optimizer.step()
    np.testing.assert_allclose(weight.detach().numpy(), slow_lars(start, gradients, 0.3, 0.01, adapt), rtol=1e-6)


def test_lars_moves_a_layer_of_zeros() -> None:
    weight = nn.Parameter(torch.zeros(2, 2))
    optimizer = optim.LARS([{"params": [weight], "weight_decay": 0.0, "adapt": True}])
    optim.set_lr(optimizer, 0.5)
    weight.grad = torch.ones(2, 2)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((2, 2), -0.5))
