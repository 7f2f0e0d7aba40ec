"""NT-Xent against an independent slow version and against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from embedserve_training.losses import nt_xent, nt_xent_chance


def slow_nt_xent(z1: np.ndarray, z2: np.ndarray, tau: float) -> float:
    """Equation 1 of arXiv 2002.05709 as written: a loop over pairs (i, j) of the 2N samples, in float64."""
    z = np.concatenate([z1, z2]).astype(np.float64)
    n = len(z1)

    def similarity(i: int, j: int) -> float:
        return float(z[i] @ z[j] / (np.linalg.norm(z[i]) * np.linalg.norm(z[j])))

    total = 0.0
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        others = sum(math.exp(similarity(i, k) / tau) for k in range(2 * n) if k != i)
        total += -math.log(math.exp(similarity(i, j) / tau) / others)
    return total / (2 * n)


@pytest.mark.parametrize("tau", [0.07, 0.2, 0.5, 1.0])
@pytest.mark.parametrize(("batch", "dimension"), [(2, 3), (5, 8), (16, 4), (33, 64)])
def test_nt_xent_is_equation_1_averaged_over_all_anchors(batch: int, dimension: int, tau: float) -> None:
    rng = np.random.default_rng(batch * dimension)
    z1, z2 = rng.normal(size=(2, batch, dimension)) * 3
    loss, _ = nt_xent(torch.from_numpy(z1), torch.from_numpy(z2), tau)
    assert float(loss) == pytest.approx(slow_nt_xent(z1, z2, tau), rel=1e-12)


@pytest.mark.parametrize("tau", [0.07, 0.5])
def test_collapsed_embeddings_cost_the_logarithm_of_2b_minus_1_at_any_temperature(tau: float) -> None:
    same = torch.ones(256, 128)
    loss, _ = nt_xent(same, same, tau)
    assert float(loss) == pytest.approx(6.2364, abs=1e-4)
    assert nt_xent_chance(256) == pytest.approx(6.2364, abs=1e-4)


@pytest.mark.parametrize(("tau", "expected"), [(0.5, 4.2488), (0.2, 1.4898), (0.1, 0.02289), (0.07, 3.186e-4)])
def test_identical_partners_orthogonal_to_all_else_cost_the_closed_form(tau: float, expected: float) -> None:
    z = torch.eye(256)
    loss, _ = nt_xent(z, z, tau)
    assert float(loss) == pytest.approx(expected, rel=1e-3, abs=2e-6)


def test_the_loss_does_not_depend_on_the_norm_of_the_embeddings() -> None:
    z1, z2 = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(0))
    scale = torch.linspace(0.1, 50, 8).unsqueeze(1)
    assert float(nt_xent(z1 * scale, z2, 0.2)[0]) == pytest.approx(float(nt_xent(z1, z2, 0.2)[0]), rel=1e-5)


def test_exchanging_the_views_does_not_change_the_loss() -> None:
    z1, z2 = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(1))
    assert float(nt_xent(z1, z2, 0.2)[0]) == pytest.approx(float(nt_xent(z2, z1, 0.2)[0]), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_exp_of_a_logit_at_tau_07_does_not_overflow_half_precision(dtype: torch.dtype) -> None:
    # exp(1 / .07) is 1.6 million, and fp16 ends at 65 504.
    z1, z2 = torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(2)).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = nt_xent(z1, z2, 0.07)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(slow_nt_xent(z1.double().numpy(), z2.double().numpy(), 0.07), rel=1e-5)


@pytest.mark.parametrize(("tau", "expected"), [(0.5, 6.24), (0.2, 6.35), (0.1, 6.61)])
def test_random_embeddings_cost_more_than_collapsed_ones_the_lower_the_temperature(tau: float, expected: float) -> None:
    # ln(2B − 1) + 1 / (2 D τ²), as a cosine of random vectors has variance 1 / D: 6.252, 6.334 and 6.627 for 256
    # images in 128 dimensions. The positive pairs scatter by 1 / (τ √(B D)): .06 at τ = .1.
    z1, z2 = torch.randn(2, 256, 128, generator=torch.Generator().manual_seed(4))
    assert float(nt_xent(z1, z2, tau)[0]) == pytest.approx(expected, abs=0.01 / tau)


def test_pos_is_the_mean_cosine_of_partners() -> None:
    z1 = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    z2 = torch.tensor([[3.0, 0.0], [1.0, 0.0]])
    assert float(nt_xent(z1, z2, 0.2)[1]["pos"]) == pytest.approx(0.5)


def test_top1_is_the_share_of_anchors_whose_nearest_is_their_partner() -> None:
    # The third pair is crossed: both of its views lie nearer to the first pair than to each other.
    z1 = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.9, 0.1]])
    z2 = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, -1.0]])
    assert float(nt_xent(z1, z2, 0.2)[1]["top1"]) == pytest.approx(4 / 6)


def test_gradients_reach_both_views_and_diagnostics_carry_none() -> None:
    z1, z2 = (torch.randn(4, 3, requires_grad=True) for _ in range(2))
    loss, diagnostics = nt_xent(z1, z2, 0.2)
    loss.backward()
    assert z1.grad is not None
    assert z2.grad is not None
    assert float(z1.grad.abs().sum()) > 0
    assert float(z2.grad.abs().sum()) > 0
    assert not any(value.requires_grad for value in diagnostics.values())
