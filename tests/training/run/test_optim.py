"""Parameter groups, values of the schedule, and LARS against a slow version."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from embedserve_training.methods.simclr import SimCLR
from embedserve_training.networks.backbones import build
from embedserve_training.plan.config import Settings, TrainConfig, drops
from embedserve_training.plan.plan import Facts, plan
from embedserve_training.run import optim

FACTS = Facts(images=1_281_167, median_side_px=375, cuda=True)


def settings_of(method: str, recipe: str, **values: Any) -> Settings:
    return replace(plan(TrainConfig(method=method, recipe=recipe, **values), FACTS).settings, device="cpu")


def groups_of(settings: Settings) -> tuple[dict[str, Any], dict[str, Any]]:
    matrices, vectors = optim.build(settings, nn.Linear(3, 2)).param_groups
    assert [p.shape for p in matrices["params"]] == [(2, 3)]
    assert [p.shape for p in vectors["params"]] == [(2,)]
    return matrices, vectors


# --- Parameter groups ----------------------------------------------------------------------------------------------


def test_weight_decay_applies_to_all_but_batch_norm_and_biases() -> None:
    method = SimCLR(build("small-cnn", 16), tau=0.2)
    decayed, spared = optim.parameter_groups(method, 0.1)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    kinds = {id(p): type(module) for module in method.modules() for p in module.parameters(recurse=False)}
    assert {kinds[id(p)] for p in decayed["params"]} == {nn.Conv2d, nn.Linear}
    assert {kinds[id(p)] for p in spared["params"]} <= {nn.BatchNorm2d, nn.BatchNorm1d}
    trained = [p for p in method.parameters() if p.requires_grad]
    assert len(decayed["params"]) + len(spared["params"]) == len(trained)


def test_weight_decay_on_batch_norm_and_biases_with_lars_as_in_many_ports_does_not_happen() -> None:
    # Without gradients only weight decay changes weights.
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=True), nn.BatchNorm2d(4))
    optimizer = optim.build(settings_of("simclr", "simclr-imagenet"), model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optim.set_lr(optimizer, 4.8)
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"0.weight"}


def test_lars_takes_plain_steps_for_batch_norm_and_biases() -> None:
    model = nn.BatchNorm1d(2)
    optimizer = optim.build(settings_of("simclr", "simclr-imagenet"), model)
    model.weight.grad, model.bias.grad = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.0])
    optim.set_lr(optimizer, 0.1)
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), torch.tensor([0.9, 0.8]))
    torch.testing.assert_close(model.bias.detach(), torch.tensor([-0.05, 0.0]))


@pytest.mark.parametrize(
    ("method", "recipe"), [("moco", "moco-v1-imagenet"), ("instance-discrimination", "instance-discrimination-cifar")]
)
def test_methods_whose_authors_decay_every_parameter_decay_biases_too(method: str, recipe: str) -> None:
    settings = settings_of(method, recipe)
    matrices, vectors = groups_of(settings)
    assert matrices["weight_decay"] == vectors["weight_decay"] == settings.weight_decay > 0
    assert matrices["momentum"] == vectors["momentum"] == 0.9


def test_lars_adapts_what_it_decays() -> None:
    assert [group["adapt"] for group in optim.parameter_groups(nn.Linear(3, 2), 0.1)] == [True, False]
    assert [group["adapt"] for group in optim.parameter_groups(nn.Linear(3, 2), 0.1, decayed="all")] == [True, True]


def test_biases_have_the_rate_that_barlow_twins_publishes_for_them() -> None:
    settings = settings_of("barlow-twins", "barlow-twins-imagenet")
    optimizer = optim.build(settings, nn.Linear(3, 2))
    optim.set_lr(optimizer, settings.lr)
    # 0.2 and 0.0048 for 256 images, times 2,048 / 256.
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1.6, 0.0384])


def test_the_share_of_biases_in_the_rate_survives_a_checkpoint() -> None:
    settings = settings_of("barlow-twins", "barlow-twins-imagenet")
    saved = optim.build(settings, nn.Linear(3, 2)).state_dict()
    resumed = optim.build(settings, nn.Linear(3, 2))
    resumed.load_state_dict(saved)
    optim.set_lr(resumed, 1.0)
    assert [group["lr"] for group in resumed.param_groups] == pytest.approx([1.0, 0.024])


def test_frozen_weights_are_in_no_group() -> None:
    model = nn.Linear(3, 2)
    model.weight.requires_grad_(False)
    assert [len(group["params"]) for group in optim.parameter_groups(model, 0.1)] == [0, 1]


@pytest.mark.parametrize(
    ("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD), ("lars", optim.LARS)]
)
def test_an_optimiser_by_name_has_no_rate_before_the_schedule_sets_one(name: str, kind: type) -> None:
    optimizer = optim.build(settings_of("simclr", "simclr-gpu", optimizer=name), nn.Linear(3, 2))
    assert type(optimizer) is kind
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.0]


def test_adamw_without_weight_decay_is_adam() -> None:
    torch.manual_seed(0)
    ours, other = nn.Linear(3, 2), nn.Linear(3, 2)
    other.load_state_dict(ours.state_dict())
    optimizer = optim.build(settings_of("cpc", "cpc-imagenet"), ours)
    optim.set_lr(optimizer, 2e-4)
    adam = torch.optim.Adam(other.parameters(), lr=2e-4, betas=(0.9, 0.98))
    for _ in range(3):
        for model, stepped in ((ours, optimizer), (other, adam)):
            stepped.zero_grad()
            model(torch.ones(1, 3)).square().sum().backward()
            stepped.step()
    torch.testing.assert_close(ours.weight, other.weight)


# --- Schedule ------------------------------------------------------------------------------------------------------


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


def test_a_cosine_set_up_in_steps_but_stepped_in_epochs_without_warm_up_does_not_happen() -> None:
    # The bug of sthalles/SimCLR. 20 epochs of 50 steps, the first tenth is warm-up; by hand:
    # step 50: half way up; 100: at the top; 550: half way down, cos 90°; 700: (1 + cos 120°) / 2; 1000: at the end.
    table = {0: 0.0, 50: 0.5, 99: 0.99, 100: 1.0, 400: 0.75, 550: 0.5, 700: 0.25, 1000: 0.0}
    for step in (*table, *reversed(table)):  # in any order: the rate depends on no earlier call
        assert optim.lr_factor(step / 1000, 0.1) == pytest.approx(table[step], abs=1e-12)


def slow_barlow_factor(step: int, steps_per_epoch: int, epochs: int) -> float:
    """The schedule of arXiv 2103.03230, section 2.2: 10 epochs up, then down to a thousandth."""
    up, total = 10 * steps_per_epoch, epochs * steps_per_epoch
    if step < up:
        return step / up
    q = (1 + math.cos(math.pi * (step - up) / (total - up))) / 2
    return q + 0.001 * (1 - q)


@pytest.mark.parametrize("step", [0, 1, 3129, 3130, 3131, 100_000, 200_000, 312_999, 313_000])
def test_the_schedule_of_barlow_twins_is_that_of_its_authors(step: int) -> None:
    settings = settings_of("barlow-twins", "barlow-twins-imagenet")
    ours = optim.lr_factor(step / 313_000, settings.warmup, drops(settings.lr_drops), settings.lr_end)
    assert ours == pytest.approx(slow_barlow_factor(step, 313, 1000), abs=1e-9)


@pytest.mark.parametrize(
    ("epoch", "factor"), [(0, 1.0), (119.99, 1.0), (120, 0.1), (159.99, 0.1), (160, 0.01), (200, 0.01)]
)
@pytest.mark.parametrize(
    ("method", "recipe"),
    [("moco", "moco-v1-imagenet"), ("instance-discrimination", "instance-discrimination-imagenet")],
)
def test_the_rate_drops_to_a_tenth_at_120_and_160_of_200_epochs(
    method: str, recipe: str, epoch: float, factor: float
) -> None:
    settings = settings_of(method, recipe)
    ours = optim.lr_factor(epoch / 200, settings.warmup, drops(settings.lr_drops), settings.lr_end)
    assert ours == pytest.approx(factor)


def test_moco_v2_starts_at_the_full_rate_and_ends_at_zero() -> None:
    settings = settings_of("moco", "moco-v2-imagenet")
    assert [optim.lr_factor(at, settings.warmup, drops(settings.lr_drops), settings.lr_end) for at in (0, 1)] == [1, 0]


def test_a_cosine_that_ends_where_it_starts_is_a_constant_rate() -> None:
    assert {optim.lr_factor(at / 7, 0.0, end=1.0) for at in range(8)} == {1.0}


def test_drops_start_after_the_warm_up() -> None:
    assert [optim.lr_factor(at, 0.2, (0.5,)) for at in (0.1, 0.2, 0.4, 0.5)] == pytest.approx([0.5, 1.0, 1.0, 0.1])


# --- LARS ----------------------------------------------------------------------------------------------------------


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
def test_lars_agrees_with_its_algorithm(adapt: bool) -> None:
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
