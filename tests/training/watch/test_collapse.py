"""Collapse is reported early, and only collapse: methods driven into it, healthy runs, and drawn embeddings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embedserve.errors import TrainingError
from embedserve_training import augment, methods
from embedserve_training.methods.barlow_twins import BarlowTwins
from embedserve_training.methods.method import LossReferences, Method, StepOutput
from embedserve_training.networks import backbones
from embedserve_training.networks.heads import projector
from embedserve_training.plan.config import METHODS, TrainConfig
from embedserve_training.plan.plan import Facts, plan
from embedserve_training.run import optim
from embedserve_training.watch.collapse import Dispersion, measure_dispersion, sign_of_collapse
from embedserve_training.watch.monitor import CHECK_EVERY_STEPS, CHECK_FROM_STEP, Monitor
from tests.training.conftest import KINDS, draw

SIDE_PX = 16
FIRST_REPORT_STEP = CHECK_FROM_STEP + CHECK_EVERY_STEPS
"""The first check gives one sign, and two are needed."""


class NoNegatives(Method):
    """A method whose views attract each other and whose images are not pushed apart."""

    def __init__(self, batch_norm: bool) -> None:
        super().__init__(backbones.build("small-cnn", SIDE_PX))
        wide = self.backbone.dimension
        plain = nn.Sequential(nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, 64))
        self.head = projector(wide, wide, 64, 2, batch_norm="all") if batch_norm else plain

    def forward(self, views_VBCSS: Sequence[Tensor], indices_B: Tensor, generator: torch.Generator) -> StepOutput:
        h_ND = self.backbone(torch.cat(tuple(views_VBCSS)))
        z_NP = self.head(h_ND)
        loss = 1 - F.cosine_similarity(*z_NP.chunk(2)).mean()
        return StepOutput(loss=loss, features_ND=h_ND.detach(), projections_ND=z_NP.detach())


def no_decorrelation() -> Method:
    """Barlow Twins with invariance alone."""
    return BarlowTwins(backbones.build("small-cnn", SIDE_PX), off_diagonal=0.0, hidden=128, projection=128)


def small(method: str) -> tuple[Method, float]:
    """A method by its recipe for small images, and its learning rate."""
    config = TrainConfig(method=method, device="cpu", epochs=10, batch_size=16)
    settings = plan(config, Facts(images=96, median_side_px=SIDE_PX)).settings
    return methods.build(settings, 96), settings.lr


def train(method: Method, lr: float, steps: int, batch: int, check: Callable[[StepOutput, int], None]) -> None:
    """Steps of AdamW over 96 drawn pictures, each passed to ``check``."""
    pixels_NSSC = torch.stack([torch.from_numpy(draw(KINDS[i % 3], i, SIDE_PX)) for i in range(96)])
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], betas=(0.9, 0.98))
    method.train()
    generator = torch.Generator()
    for step in range(1, steps + 1):
        optim.set_lr(optimizer, lr * optim.lr_factor(step / steps, 0.1))
        generator.manual_seed(step)
        indices_B = torch.randperm(96, generator=generator)[:batch]
        recipes = augment.PRESETS["small"]
        views_VBCSS = [
            augment.augment(pixels_NSSC[indices_B], SIDE_PX, recipes[v % len(recipes)], generator)
            for v in range(method.views)
        ]
        output: StepOutput = method(views_VBCSS, indices_B, generator)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        method.after_step()
        check(output, step)


def on_a_line(count: int = 64) -> Tensor:
    """Embeddings that differ along one direction only, of which unit vectors are ±1."""
    return torch.linspace(-1, 1, count // 2).repeat(2).unsqueeze(1) * torch.ones(1, 8)


def output_of(z_NP: Tensor, h_ND: Tensor | None = None, loss: float = 4.84) -> StepOutput:
    h_ND = torch.randn(64, 16, generator=torch.Generator().manual_seed(0)) if h_ND is None else h_ND
    return StepOutput(loss=torch.tensor(loss), features_ND=h_ND, projections_ND=z_NP)


HEALTHY = output_of(torch.randn(64, 8, generator=torch.Generator().manual_seed(1)))
ALIKE = output_of(torch.ones(64, 8))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        pytest.param(lambda: NoNegatives(batch_norm=False), "all z are alike", id="no negatives"),
        pytest.param(lambda: NoNegatives(batch_norm=True), "all z lie on a line", id="no negatives but batch-norm"),
        pytest.param(no_decorrelation, "all z lie on a line", id="Barlow Twins without its second term"),
    ],
)
def test_a_run_driven_into_collapse_is_stopped_within_fifty_steps(
    build: Callable[[], Method], message: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    monitor = Monitor(tmp_path / "metrics.jsonl", lambda line: None, stop_on_collapse=True)
    seen: list[int] = []

    def check(output: StepOutput, step: int) -> None:
        z = measure_dispersion(output.projections_ND, output.views)
        if sign_of_collapse(Dispersion(std=1.0, directions=9.0), z):
            seen.append(step)
        monitor.check_collapse(output, step)

    with pytest.raises(TrainingError, match=message):
        train(build(), lr=0.005, steps=200, batch=32, check=check)
    # A collapse before the first check is found by the first two checks.
    first_sign, named = max(seen[0], CHECK_FROM_STEP), seen[-1]
    assert named - first_sign <= 2 * CHECK_EVERY_STEPS


@pytest.mark.parametrize("name", METHODS)
def test_a_healthy_run_shows_no_sign_of_collapse(name: str) -> None:
    torch.manual_seed(0)
    method, lr = small(name)
    signs: list[str] = []

    def check(output: StepOutput, step: int) -> None:
        if step % 5 == 0:
            signs.append(
                sign_of_collapse(
                    *(measure_dispersion(x, output.views) for x in (output.features_ND, output.projections_ND))
                )
            )

    train(method, lr, steps=100, batch=16, check=check)
    assert signs == [""] * 20


@pytest.mark.parametrize("name", ["small-cnn", "resnet18", "vit_b_32"])
@pytest.mark.parametrize("recipe", ["small", "photo"])
def test_an_untrained_network_shows_no_sign_of_collapse(name: str, recipe: str) -> None:
    torch.manual_seed(0)
    backbone = backbones.build(name, 32)
    pixels_NSSC = torch.stack([torch.from_numpy(draw(KINDS[i % 3], i, 32)) for i in range(32)])
    generator = torch.Generator().manual_seed(0)
    views_VBCSS = [augment.augment(pixels_NSSC, 32, augment.PRESETS[recipe][0], generator) for _ in range(2)]
    with torch.no_grad():
        h_ND = backbone(torch.cat(views_VBCSS))
        z_NP = nn.Linear(backbone.dimension, 128)(h_ND)
    assert sign_of_collapse(measure_dispersion(h_ND, 2), measure_dispersion(z_NP, 2)) == ""


def test_random_directions_have_the_participation_ratio_of_theory() -> None:
    # Of a covariance of ones in P dimensions from N rows: N·P / (N + P) up to lower orders.
    x_NP = torch.randn(1000, 64, generator=torch.Generator().manual_seed(0))
    measured = measure_dispersion(x_NP, views=1)
    assert measured.directions == pytest.approx(1000 * 64 / 1064, rel=0.03)
    assert measured.std == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("shape", [(64, 4), (16, 32)])
def test_directions_are_those_of_the_eigenvalues_of_the_covariance(shape: tuple[int, int]) -> None:
    x_NP = torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 2, shape[1])
    unit_NP = F.normalize(x_NP.double(), dim=1)
    eigenvalues_P = torch.linalg.eigvalsh(torch.cov(unit_NP.T))
    expected = float(eigenvalues_P.sum() ** 2 / eigenvalues_P.square().sum())
    assert measure_dispersion(x_NP, views=1).directions == pytest.approx(expected)


def test_embeddings_on_a_line_have_one_direction_whatever_their_std() -> None:
    measured = measure_dispersion(on_a_line(), views=1)
    assert measured.directions == pytest.approx(1.0)
    assert measured.std == pytest.approx(1.0, abs=0.01)


def test_the_offset_between_queries_and_keys_is_no_dispersion() -> None:
    z_NP = torch.cat([torch.ones(32, 8), -torch.ones(32, 8)])
    assert measure_dispersion(z_NP, views=2).std == pytest.approx(0.0, abs=1e-6)
    assert measure_dispersion(z_NP, views=1).std == pytest.approx(1.0)


def test_rounding_errors_after_batch_norm_count_as_equal_embeddings() -> None:
    noise_NP = 1e-5 * torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    assert measure_dispersion(noise_NP, views=1).std < 0.05
    assert measure_dispersion(1e4 * noise_NP, views=1).std > 0.9


def test_a_handful_of_embeddings_gives_no_sign() -> None:
    assert sign_of_collapse(measure_dispersion(torch.ones(15, 8), 1), measure_dispersion(torch.ones(15, 8), 1)) == ""
    assert sign_of_collapse(measure_dispersion(torch.ones(16, 8), 1), measure_dispersion(torch.ones(16, 8), 1)) != ""


def test_embeddings_that_are_not_finite_are_no_collapse() -> None:
    broken = measure_dispersion(torch.full((64, 8), math.nan), views=2)
    assert sign_of_collapse(broken, broken) == ""


@pytest.mark.parametrize(
    ("h", "z", "expected"),
    [
        ((0.5, 5.0), (0.09, 5.0), "all z are alike: their std is 0.090 of at most 1"),
        ((0.5, 5.0), (0.9, 1.7), "all z lie on a line: they vary along 1.7 directions"),
        ((0.09, 5.0), (0.9, 5.0), "all h are alike: their std is 0.090 of at most 1"),
        ((0.5, 1.1), (0.9, 5.0), "all h lie on a line: they vary along 1.1 directions"),
        ((0.25, 1.6), (0.28, 2.3), ""),
    ],
)
def test_either_embedding_alike_or_on_a_line_is_a_sign(
    h: tuple[float, float], z: tuple[float, float], expected: str
) -> None:
    made = [Dispersion(std=std, directions=directions) for std, directions in (h, z)]
    assert sign_of_collapse(*made) == expected


class TestCheckCollapse:
    def monitor(self, tmp_path: Path, *, stop: bool = False) -> tuple[Monitor, list[str]]:
        lines: list[str] = []
        references = LossReferences(chance=4.844, collapse=4.844)
        path = tmp_path / "metrics.jsonl"
        return Monitor(path, lines.append, loss_references=references, stop_on_collapse=stop), lines

    def test_the_second_of_two_signs_is_reported_with_the_measures(self, tmp_path: Path) -> None:
        monitor, _ = self.monitor(tmp_path, stop=True)
        for step in range(1, FIRST_REPORT_STEP):
            monitor.check_collapse(ALIKE, step)
        with pytest.raises(TrainingError) as caught:
            monitor.check_collapse(ALIKE, FIRST_REPORT_STEP)
        assert caught.value.message == (
            "the embeddings have collapsed at step 75: all z are alike: their std is 0.000 of at most 1"
            " (rank 15.4/16, std 0.000, loss 4.840, 4.844 if all are alike)"
        )
        assert "--set lr=" in caught.value.hint

    def test_without_stop_on_collapse_it_is_reported_once(self, tmp_path: Path) -> None:
        monitor, lines = self.monitor(tmp_path)
        for step in range(1, 500):
            monitor.check_collapse(ALIKE, step)
        assert [line.startswith("warning: the embeddings have collapsed at step 75") for line in lines] == [True]

    def test_embeddings_on_a_line_are_reported(self, tmp_path: Path) -> None:
        monitor, lines = self.monitor(tmp_path)
        for step in range(1, 100):
            monitor.check_collapse(output_of(on_a_line()), step)
        assert "all z lie on a line: they vary along 1.0 directions" in lines[0]

    def test_a_collapse_of_the_backbone_is_reported_even_if_the_head_hides_it(self, tmp_path: Path) -> None:
        monitor, lines = self.monitor(tmp_path)
        hidden = output_of(HEALTHY.projections_ND, h_ND=torch.ones(64, 16))
        for step in range(1, 100):
            monitor.check_collapse(hidden, step)
        assert "all h are alike" in lines[0]

    def test_a_collapse_is_reported_within_two_checks(self, tmp_path: Path) -> None:
        monitor, lines = self.monitor(tmp_path)
        for step in range(1, 1000):
            monitor.check_collapse(ALIKE if step > 301 else HEALTHY, step)
        assert "at step 350:" in lines[0]

    def test_one_sign_alone_is_not_reported(self, tmp_path: Path) -> None:
        monitor, lines = self.monitor(tmp_path, stop=True)
        for step in range(1, 1000):
            monitor.check_collapse(ALIKE if step % (2 * CHECK_EVERY_STEPS) == 0 else HEALTHY, step)
        assert lines == []

    def test_nothing_is_checked_between_two_checks_and_before_the_first(self, tmp_path: Path) -> None:
        monitor, lines = self.monitor(tmp_path, stop=True)
        for step in range(1, 1000):
            is_checked = step % CHECK_EVERY_STEPS == 0 and step >= CHECK_FROM_STEP
            monitor.check_collapse(HEALTHY if is_checked else ALIKE, step)
        assert lines == []
