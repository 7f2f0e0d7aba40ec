"""The loss of Barlow Twins: equation 1 of arXiv 2103.03230 as written, closed forms, and several processes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from embedserve_training.losses import barlow_twins, barlow_twins_chance, barlow_twins_rank_one

LAMBDA = 0.0051


def slow_barlow_twins(z1: np.ndarray, z2: np.ndarray, off_diagonal: float) -> float:
    """The equation as written, entry by entry in float64, for columns standardised with ε = 1e-5."""

    def standard(z: np.ndarray) -> np.ndarray:
        z = z.astype(np.float64)
        return (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5)

    a, b = standard(z1), standard(z2)
    batch, dimension = a.shape
    total = 0.0
    for i in range(dimension):
        for j in range(dimension):
            c = sum(float(a[n, i] * b[n, j]) for n in range(batch)) / batch
            total += (1 - c) ** 2 if i == j else off_diagonal * c**2
    return total


def drawn(batch: int, dimension: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two views that partly agree, with means and scales that differ by column, float64."""
    random = torch.Generator().manual_seed(seed)
    z1, noise = torch.randn(2, batch, dimension, generator=random, dtype=torch.float64)
    scale = torch.linspace(0.05, 20, dimension, dtype=torch.float64)
    return z1 * scale + 3, (z1 + noise) * scale.flip(0) - 1


@pytest.mark.parametrize("off_diagonal", [0.0, LAMBDA, 0.5])
@pytest.mark.parametrize(("batch", "dimension"), [(2, 1), (2, 3), (5, 8), (33, 16)])
def test_barlow_twins_is_equation_1(batch: int, dimension: int, off_diagonal: float) -> None:
    z1, z2 = drawn(batch, dimension)
    loss, _ = barlow_twins(z1, z2, off_diagonal)
    assert float(loss) == pytest.approx(slow_barlow_twins(z1.numpy(), z2.numpy(), off_diagonal), rel=1e-12)


def test_columns_are_standardised_as_batch_norm_does_in_training() -> None:
    z1, z2 = (z.float() for z in drawn(6, 5))
    norm = torch.nn.BatchNorm1d(5, affine=False)
    c = norm(z1).T @ norm(z2) / 6
    off = c - torch.diag(c.diagonal())
    expected = (c.diagonal() - 1).square().sum() + LAMBDA * off.square().sum()
    torch.testing.assert_close(barlow_twins(z1, z2, LAMBDA)[0], expected)


@pytest.mark.parametrize("dimension", [128, 2048])
def test_constant_embeddings_cost_exactly_their_dimension(dimension: int) -> None:
    same = torch.full((4, dimension), 0.7)
    assert float(barlow_twins(same, same, LAMBDA)[0]) == pytest.approx(dimension, rel=1e-6)


def test_identical_views_of_rank_one_cost_lambda_times_all_pairs() -> None:
    column = torch.randn(16, 1, generator=torch.Generator().manual_seed(0)) * 100
    z = column.expand(16, 2048)
    assert float(barlow_twins(z, z, LAMBDA)[0]) == pytest.approx(21_380, rel=1e-4)


@pytest.mark.parametrize(("dimension", "expected"), [(2048, 21_380), (8192, 342_000)])
def test_rank_one_is_known_for_the_usual_dimensions(dimension: int, expected: float) -> None:
    assert barlow_twins_rank_one(dimension, LAMBDA) == pytest.approx(expected, rel=1e-3)


def test_chance_is_the_dimension_and_a_share_for_pairs_that_shrinks_with_the_batch() -> None:
    # .0051 × 2048 × 2047 / 256 = 83.5
    assert barlow_twins_chance(2048, 256, LAMBDA) == pytest.approx(2048 + 83.5, abs=0.05)


def test_independent_views_cost_chance() -> None:
    z1, z2 = torch.randn(2, 256, 2048, generator=torch.Generator().manual_seed(0))
    loss, diagnostics = barlow_twins(z1, z2, LAMBDA)
    # Exactly, c² is 1 / (B − 1) in the mean: D × 256/255 + λ D (D − 1) / 255 = 2056.03 + 83.85. The diagonal varies
    # the most, by 2 √(D / B) = 5.7; four of those.
    assert float(loss) == pytest.approx(2139.9, abs=23)
    assert float(loss) == pytest.approx(barlow_twins_chance(2048, 256, LAMBDA), rel=0.02)
    # The mean of 2048 × 2047 squares whose mean is 1 / 255.
    assert float(diagnostics["off"]) == pytest.approx(255**-0.5, rel=0.01)


def test_uncorrelated_columns_that_agree_cost_nothing() -> None:
    # Columns of a Hadamard matrix except the constant one: mean 0, variance 1, orthogonal.
    h2 = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    z = torch.kron(torch.kron(h2, h2), h2)[:, 1:]
    loss, diagnostics = barlow_twins(z, z, 1.0)
    assert float(loss) == pytest.approx(0, abs=1e-6)
    assert float(diagnostics["on"]) == pytest.approx(0, abs=2e-5)
    assert float(diagnostics["off"]) == pytest.approx(0, abs=1e-6)
    assert float(diagnostics["pos"]) == pytest.approx(1, abs=2e-5)


def test_diagnostics_are_of_the_matrix_worked_out_by_hand() -> None:
    # z1 has the columns a and b, z2 the columns a and −a, with a ⟂ b: c = [[1, −1], [0, 0]].
    a, b = torch.tensor([1.0, 1.0, -1.0, -1.0]), torch.tensor([1.0, -1.0, 1.0, -1.0])
    loss, diagnostics = barlow_twins(100 * torch.stack([a, b], 1), 100 * torch.stack([a, -a], 1), 0.25)
    assert float(loss) == pytest.approx(1 + 0.25 * 1)
    assert float(diagnostics["on"]) == pytest.approx(0.5)
    assert float(diagnostics["off"]) == pytest.approx(0.5**0.5)
    assert float(diagnostics["pos"]) == pytest.approx(0.5)


def test_scale_and_offset_of_a_column_do_not_change_the_loss() -> None:
    z1, z2 = torch.randn(2, 16, 6, generator=torch.Generator().manual_seed(3))
    scale, offset = torch.linspace(10, 50, 6), torch.linspace(-90, 90, 6)
    moved, _ = barlow_twins(z1 * scale + offset, z2, LAMBDA)
    assert float(moved) == pytest.approx(float(barlow_twins(z1, z2, LAMBDA)[0]), rel=1e-4)


def test_the_variance_of_embeddings_far_from_zero_is_not_lost_in_fp32() -> None:
    # Means of 10 000 and deviations of 1: E[z²] − E[z]² in fp32 would be off by several units.
    z1, z2 = (torch.randint(-2, 3, (32, 4), generator=torch.Generator().manual_seed(i)).float() for i in (0, 1))
    far, _ = barlow_twins(z1 + 1e4, z2 + 1e4, LAMBDA)
    assert float(far) == pytest.approx(float(barlow_twins(z1, z2, LAMBDA)[0]), rel=1e-3)


def test_a_last_batch_that_is_smaller_is_divided_by_its_own_size() -> None:
    # The authors' code divides by the nominal batch: identical views would then cost (1 − 5/8)² per dimension.
    z = torch.randn(5, 1, generator=torch.Generator().manual_seed(4)) * 100
    assert float(barlow_twins(z, z, LAMBDA)[0]) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_correlations_of_half_precision_embeddings_are_summed_in_fp32(dtype: torch.dtype) -> None:
    # fp16 ends at 65 504; a column of 300s has squares of 90 000, and a sum over 64 images of 5.8 million.
    z1, z2 = (300 * torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(5))).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = barlow_twins(z1, z2, LAMBDA)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(slow_barlow_twins(z1.double().numpy(), z2.double().numpy(), LAMBDA), rel=1e-5)


def test_gradients_reach_both_views_and_diagnostics_carry_none() -> None:
    z1, z2 = (z.float().requires_grad_() for z in drawn(6, 4))
    loss, diagnostics = barlow_twins(z1, z2, LAMBDA)
    loss.backward()
    assert z1.grad is not None
    assert z2.grad is not None
    assert float(z1.grad.abs().sum()) > 0
    assert float(z2.grad.abs().sum()) > 0
    assert not any(value.requires_grad for value in diagnostics.values())


# --- Several processes, in threads -----------------------------------------------------------------------------------


class Meeting:
    """Sums tensors over threads that stand for processes; ``member(rank)`` is the all-reduce of that process."""

    def __init__(self, members: int, *, backward_sums: bool) -> None:
        self.barrier = threading.Barrier(members, timeout=60)
        self.brought: list[Tensor] = [torch.empty(0)] * members
        self.backward_sums = backward_sums

    def add_up(self, x: Tensor, rank: int) -> Tensor:
        self.brought[rank] = x
        self.barrier.wait()
        total = torch.stack(self.brought).sum(0)
        self.barrier.wait()
        return total

    def member(self, rank: int) -> Callable[[Tensor], Tensor]:
        meeting = self

        class Sum(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                return meeting.add_up(x, rank)

            @staticmethod
            def backward(ctx: Any, *gradients: Tensor) -> Tensor:
                return meeting.add_up(gradients[0], rank) if meeting.backward_sums else gradients[0]

        def all_reduce(x: Tensor) -> Tensor:
            total: Tensor = Sum.apply(x)
            return total

        return all_reduce


def images() -> tuple[Tensor, Tensor]:
    """Two views of eleven images as raw features, float64 [11, 6] each."""
    return drawn(11, 6, seed=7)


def weight() -> Tensor:
    """The only parameter of the model: a linear layer of 6 × 4, float64."""
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(8), dtype=torch.float64).requires_grad_()


def loss_of_one_process() -> tuple[Tensor, Tensor]:
    x1, x2 = images()
    w = weight()
    loss, _ = barlow_twins(x1 @ w, x2 @ w, LAMBDA)
    loss.backward()
    assert w.grad is not None
    return loss.detach(), w.grad


def losses_of_processes(parts: list[slice], *, backward_sums: bool) -> tuple[list[Tensor], Tensor]:
    """The loss in each process, and the mean over processes of the gradients of the weight, as DDP takes it."""
    meeting = Meeting(len(parts), backward_sums=backward_sums)
    x1, x2 = images()
    weights = [weight() for _ in parts]
    losses: list[Tensor] = [torch.empty(0)] * len(parts)

    def work(rank: int) -> None:
        w, mine = weights[rank], parts[rank]
        loss, _ = barlow_twins(x1[mine] @ w, x2[mine] @ w, LAMBDA, cast(Any, meeting.member(rank)))
        loss.backward()
        losses[rank] = loss.detach()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gradients = [w.grad for w in weights if w.grad is not None]
    assert len(gradients) == len(parts)
    return losses, torch.stack(gradients).mean(0)


@pytest.mark.parametrize(
    "parts", [[slice(0, 11)], [slice(0, 6), slice(6, 11)], [slice(0, 4), slice(4, 8), slice(8, 11)]], ids=len
)
def test_every_process_has_the_loss_and_their_mean_the_gradient_of_one_with_the_global_batch(
    parts: list[slice],
) -> None:
    expected_loss, expected_gradient = loss_of_one_process()
    losses, gradient = losses_of_processes(parts, backward_sums=True)
    for loss in losses:
        torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-11, atol=1e-13)


def test_a_sum_without_gradient_in_its_backward_gives_another_gradient() -> None:
    # The bug of many ports, and the reason why the backward of AllReduce must be a sum.
    _, expected_gradient = loss_of_one_process()
    _, gradient = losses_of_processes([slice(0, 6), slice(6, 11)], backward_sums=False)
    assert float((gradient - expected_gradient).norm()) > 0.1 * float(expected_gradient.norm())
