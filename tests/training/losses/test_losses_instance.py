"""Instance Discrimination: equations 2 and 5 to 9 of arXiv 1805.01978 as written, and closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from embedserve_training.losses import (
    instance_nce,
    instance_nce_chance,
    instance_normaliser,
    instance_softmax,
    instance_softmax_chance,
    proximal,
)


def unit(v: np.ndarray) -> np.ndarray:
    return v.astype(np.float64) / np.linalg.norm(v)


def slow_softmax(v: np.ndarray, bank: np.ndarray, indices: np.ndarray, tau: float) -> float:
    """Equation 2 for each image: its row over the sum of all rows, in float64."""
    total = 0.0
    for row, index in zip(v, indices, strict=True):
        scores = [math.exp(float(unit(row) @ other) / tau) for other in bank]
        total += -math.log(scores[index] / sum(scores))
    return total / len(v)


def slow_nce(v: np.ndarray, bank: np.ndarray, indices: np.ndarray, noise: np.ndarray, tau: float, z: float) -> float:
    """Equations 5, 6 and 7 as written, with their quotients, in float64."""
    images, per_image = len(bank), noise.shape[1]

    def h(row: np.ndarray, other: np.ndarray) -> float:
        p = math.exp(float(unit(row) @ other) / tau) / z
        return p / (p + per_image / images)

    total = 0.0
    for row, index, others in zip(v, indices, noise, strict=True):
        total += -math.log(h(row, bank[index]))
        for other in others:
            total += -math.log(1 - h(row, bank[other]))
    return total / len(v)


def slow_normaliser(v: np.ndarray, bank: np.ndarray, noise: np.ndarray, tau: float) -> float:
    """Equation 8 for each image, and the mean over images, in float64."""
    estimates = [
        len(bank) / len(others) * sum(math.exp(float(unit(row) @ bank[other]) / tau) for other in others)
        for row, others in zip(v, noise, strict=True)
    ]
    return sum(estimates) / len(estimates)


def drawn(batch: int, images: int, noise: int, dimension: int = 8) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Embeddings of any norm, a bank of unit rows, the rows of the images and noise, float64 and int64."""
    random = torch.Generator().manual_seed(batch * images)
    v = 3 * torch.randn(batch, dimension, generator=random, dtype=torch.float64)
    bank = F.normalize(torch.randn(images, dimension, generator=random, dtype=torch.float64), dim=1)
    return (
        v,
        bank,
        torch.randint(images, (batch,), generator=random),
        torch.randint(images, (batch, noise), generator=random),
    )


SIZES = pytest.mark.parametrize(("batch", "images", "noise"), [(1, 2, 1), (3, 5, 4), (8, 20, 50), (16, 300, 32)])
TEMPERATURES = pytest.mark.parametrize("tau", [0.07, 0.1, 1.0])


@SIZES
@TEMPERATURES
def test_instance_softmax_is_equation_2(batch: int, images: int, noise: int, tau: float) -> None:
    v, bank, indices, _ = drawn(batch, images, noise)
    loss, _ = instance_softmax(v, bank, indices, tau)
    assert float(loss) == pytest.approx(slow_softmax(v.numpy(), bank.numpy(), indices.numpy(), tau), rel=1e-12)


@SIZES
@TEMPERATURES
@pytest.mark.parametrize("z", [3.0, 4e5])
def test_instance_nce_is_equations_5_to_7(batch: int, images: int, noise: int, tau: float, z: float) -> None:
    v, bank, indices, noise_BM = drawn(batch, images, noise)
    loss, _ = instance_nce(v, bank, indices, noise_BM, tau, torch.tensor(z))
    expected = slow_nce(v.numpy(), bank.numpy(), indices.numpy(), noise_BM.numpy(), tau, z)
    assert float(loss) == pytest.approx(expected, rel=1e-12)


@SIZES
@TEMPERATURES
def test_the_normaliser_is_equation_8(batch: int, images: int, noise: int, tau: float) -> None:
    v, bank, _, noise_BM = drawn(batch, images, noise)
    expected = slow_normaliser(v.numpy(), bank.numpy(), noise_BM.numpy(), tau)
    assert float(instance_normaliser(v, bank, noise_BM, tau)) == pytest.approx(expected, rel=1e-12)


def test_the_normaliser_over_all_rows_is_the_sum_that_the_softmax_divides_by() -> None:
    v, bank, indices, _ = drawn(1, 40, 1)
    z = instance_normaliser(v, bank, torch.arange(40).unsqueeze(0), 0.1)
    positive = float(F.normalize(v, dim=1) @ bank[indices[0]]) / 0.1
    assert float(z.log()) - positive == pytest.approx(float(instance_softmax(v, bank, indices, 0.1)[0]), rel=1e-12)


@pytest.mark.parametrize("tau", [0.07, 1.0])
def test_a_bank_of_equal_rows_costs_the_logarithm_of_their_number(tau: float) -> None:
    same = torch.tensor([[0.6, 0.8]])
    loss, _ = instance_softmax(same.expand(4, 2), same.expand(1000, 2), torch.arange(4), tau)
    assert float(loss) == pytest.approx(6.9078, abs=1e-4)
    assert instance_softmax_chance(1000) == pytest.approx(6.9078, abs=1e-4)


@pytest.mark.parametrize(("noise", "expected"), [(1, 2 * math.log(2)), (4096, 9.318)])
def test_noise_contrast_where_every_p_is_1_over_n_costs_chance(noise: int, expected: float) -> None:
    # Equal rows and Z as estimated from them: P = exp(1/τ) / (N exp(1/τ)). With one noise row each h is 1/2.
    same = torch.tensor([[0.6, 0.8]])
    v, bank, noise_BM = same.expand(4, 2), same.expand(50, 2), torch.arange(noise).remainder(50).expand(4, noise)
    z = instance_normaliser(v, bank, noise_BM, 0.07)
    loss, _ = instance_nce(v, bank, torch.arange(4), noise_BM, 0.07, z)
    assert float(loss) == pytest.approx(expected, abs=2e-3)
    assert float(loss) == pytest.approx(instance_nce_chance(noise), rel=1e-4)


def test_chance_of_4096_noise_rows_is_9_318() -> None:
    assert instance_nce_chance(4096) == pytest.approx(9.318, abs=5e-4)
    assert instance_nce_chance(4096) == pytest.approx(1 + math.log(4097), abs=2e-4)


def test_the_proximal_term_is_the_mean_squared_distance_to_the_row_in_the_bank() -> None:
    # The first has not moved (0), the second by a right angle (2), the third to the opposite (4).
    v = torch.tensor([[5.0, 0.0], [0.0, 0.1], [-1.0, 0.0]])
    bank = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert float(proximal(v, bank, torch.tensor([1, 1, 1]))) == pytest.approx((0 + 2 + 4) / 3)


def test_the_proximal_term_is_the_slow_sum_over_images() -> None:
    v, bank, indices, _ = drawn(16, 300, 1)
    slow = [float(((unit(a) - b) ** 2).sum()) for a, b in zip(v.numpy(), bank[indices].numpy(), strict=True)]
    assert float(proximal(v, bank, indices)) == pytest.approx(sum(slow) / 16, rel=1e-12)


def test_pos_is_the_mean_cosine_with_the_own_row() -> None:
    v, bank = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.eye(2)
    indices, noise = torch.tensor([0, 0]), torch.tensor([[1], [1]])
    assert float(instance_softmax(v, bank, indices, 0.1)[1]["pos"]) == pytest.approx(0.5)
    assert float(instance_nce(v, bank, indices, noise, 0.1, torch.tensor(2.0))[1]["pos"]) == pytest.approx(0.5)


def test_top1_is_the_share_of_embeddings_nearest_to_their_own_row() -> None:
    v, bank = torch.tensor([[1.0, 0.1], [1.0, 0.1], [0.2, 1.0], [1.0, 0.2]]), torch.eye(2)
    indices = torch.tensor([0, 1, 1, 0])
    assert float(instance_softmax(v, bank, indices, 0.1)[1]["top1"]) == pytest.approx(3 / 4)


def test_an_image_drawn_as_its_own_noise_still_counts_as_found() -> None:
    v, bank, indices = torch.tensor([[1.0, 0.1], [0.2, 1.0]]), torch.eye(2), torch.tensor([0, 0])
    noise = torch.tensor([[0, 1], [0, 1]])
    assert float(instance_nce(v, bank, indices, noise, 0.1, torch.tensor(9.0))[1]["top1"]) == pytest.approx(1 / 2)


def slope(function: Callable[[np.ndarray], float], x: Tensor) -> Tensor:
    """The gradient of ``function`` at ``x`` by central differences, in float64."""
    result = np.zeros(x.shape)
    for at in np.ndindex(*x.shape):
        step = np.zeros(x.shape)
        step[at] = 1e-5
        result[at] = (function(x.numpy() + step) - function(x.numpy() - step)) / 2e-5
    return torch.from_numpy(result)


def test_gradients_of_embeddings_are_the_slopes_of_the_equations() -> None:
    v, bank, indices, noise = drawn(3, 5, 4)
    b, i, n = bank.numpy(), indices.numpy(), noise.numpy()
    x = v.clone().requires_grad_()

    def gradient(loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, x)[0]

    softmax = slope(lambda v: slow_softmax(v, b, i, 0.2), v)
    nce = slope(lambda v: slow_nce(v, b, i, n, 0.2, 30.0), v)
    moved = slope(lambda v: sum(float(((unit(row) - b[j]) ** 2).sum()) for row, j in zip(v, i, strict=True)) / 3, v)
    torch.testing.assert_close(gradient(instance_softmax(x, bank, indices, 0.2)[0]), softmax, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(
        gradient(instance_nce(x, bank, indices, noise, 0.2, torch.tensor(30.0))[0]), nce, rtol=1e-7, atol=1e-9
    )
    torch.testing.assert_close(gradient(proximal(x, bank, indices)), moved, rtol=1e-7, atol=1e-9)


def test_only_embeddings_get_a_gradient() -> None:
    v, bank, indices, noise = drawn(4, 9, 5)
    v.requires_grad_()
    bank.requires_grad_()
    z = torch.tensor(50.0, requires_grad=True)
    for loss in (
        instance_softmax(v, bank, indices, 0.1)[0],
        instance_nce(v, bank, indices, noise, 0.1, z)[0],
        proximal(v, bank, indices),
    ):
        v.grad = None
        loss.backward()
        assert v.grad is not None
        assert float(v.grad.abs().sum()) > 0
        assert bank.grad is None
        assert z.grad is None


def test_diagnostics_and_the_normaliser_carry_no_gradient() -> None:
    v, bank, indices, noise = drawn(4, 9, 5)
    v.requires_grad_()
    z = instance_normaliser(v, bank, noise, 0.1)
    softmax, nce = instance_softmax(v, bank, indices, 0.1)[1], instance_nce(v, bank, indices, noise, 0.1, z)[1]
    assert not any(value.requires_grad for value in (z, *softmax.values(), *nce.values()))


def test_none_of_the_losses_changes_the_bank() -> None:
    v, bank, indices, noise = drawn(4, 9, 5)
    before = bank.clone()
    instance_softmax(v, bank, indices, 0.1)
    instance_nce(v, bank, indices, noise, 0.1, instance_normaliser(v, bank, noise, 0.1))
    proximal(v, bank, indices)
    assert torch.equal(bank, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_exp_of_a_cosine_at_tau_07_does_not_overflow_half_precision(dtype: torch.dtype) -> None:
    # exp(1 / .07) is 1.6 million, and fp16 ends at 65 504.
    v = bank = torch.eye(8, dtype=dtype)
    indices, noise = torch.arange(8), torch.arange(8).expand(8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        softmax, _ = instance_softmax(v, bank, indices, 0.07)
        z = instance_normaliser(v, bank, noise, 0.07)
        nce, _ = instance_nce(v, bank, indices, noise, 0.07, z)
        moved = proximal(v, bank, indices)
    assert {x.dtype for x in (softmax, z, nce, moved)} == {torch.float32}
    # One cosine of 1 and seven of 0, and as many noise rows as images: Z = e^{1/τ} + 7.
    e = math.exp(1 / 0.07)
    assert float(softmax) == pytest.approx(math.log1p(7 / e), abs=1e-6)
    assert float(z) == pytest.approx(e + 7, rel=1e-5)
    p, q = e / (e + 7), 1 / (e + 7)
    expected = -math.log(p / (p + 1)) - math.log(1 / (p + 1)) - 7 * math.log(1 / (q + 1))
    assert float(nce) == pytest.approx(expected, rel=1e-5)
    assert float(moved) == 0


def test_a_p_too_small_for_fp32_costs_a_finite_loss() -> None:
    # P = exp(−1 / .01) / Z is 10⁻⁴⁴ / Z; −ln h is 100 + ln Z + ln(M / N), and an ε inside the logarithm would cap it.
    v, bank = torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0], [0.0, 1.0]])
    loss, _ = instance_nce(v, bank, torch.tensor([0]), torch.tensor([[0]]), 0.01, torch.tensor(1e6))
    assert float(loss) == pytest.approx(100 + math.log(1e6) + math.log(1 / 2), rel=1e-6)
