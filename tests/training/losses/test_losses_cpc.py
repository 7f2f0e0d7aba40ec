"""InfoNCE of CPC: equation 4 of arXiv 1807.03748 as written, closed forms, and rows of several processes."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from embedserve_training.losses import cpc_chance, cpc_info_nce


def slow_cpc(predicted: np.ndarray, target: np.ndarray) -> float:
    """The equation as written: f of the true patch over the sum of f of all, f = exp(dot product), in float64."""
    total = 0.0
    for i, row in enumerate(predicted.astype(np.float64)):
        f = [math.exp(float(row @ other)) for other in target.astype(np.float64)]
        total += -math.log(f[i] / sum(f))
    return total / len(predicted)


def drawn(rows: int, dimension: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(rows * dimension)
    return tuple(torch.randn(2, rows, dimension, generator=random, dtype=torch.float64))


@pytest.mark.parametrize(("rows", "dimension"), [(1, 3), (2, 1), (5, 8), (40, 16)])
@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_cpc_info_nce_is_equation_4(rows: int, dimension: int, scale: float) -> None:
    predicted, target = drawn(rows, dimension)
    loss, _ = cpc_info_nce(predicted * scale, target)
    assert float(loss) == pytest.approx(slow_cpc(predicted.numpy() * scale, target.numpy()), rel=1e-12, abs=1e-14)


@pytest.mark.parametrize(("rows", "expected"), [(2, 0.6931), (256, 5.5452), (1568, 7.3576)])
def test_equal_patches_cost_the_logarithm_of_their_number(rows: int, expected: float) -> None:
    same = torch.ones(rows, 3)
    assert float(cpc_info_nce(same, same)[0]) == pytest.approx(expected, abs=1e-4)
    assert cpc_chance(rows) == pytest.approx(expected, abs=1e-4)


def test_scores_are_dot_products_and_not_cosines() -> None:
    # Scores 6 and 0: ln(1 + e⁻⁶). A cosine would give ln(1 + e⁻¹).
    predicted, target = torch.eye(2) * 2, torch.eye(2) * 3
    assert float(cpc_info_nce(predicted, target)[0]) == pytest.approx(math.log1p(math.exp(-6)), rel=1e-4)


def test_top1_is_the_share_of_predictions_that_score_their_own_patch_highest() -> None:
    predicted, target = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), torch.tensor([[2.0, 0.0], [1, 1], [0, 5.0]])
    assert float(cpc_info_nce(predicted, target)[1]["top1"]) == pytest.approx(2 / 3)


def test_gradients_of_predictions_and_targets_are_those_of_the_softmax() -> None:
    # Of a mean of −ln softmax: (p − 1 on the diagonal) / N, times the other factor of each dot product.
    predicted, target = (x.requires_grad_() for x in drawn(5, 4))
    gradients = torch.autograd.grad(cpc_info_nce(predicted, target)[0], (predicted, target))
    scores = np.exp(predicted.detach().numpy() @ target.detach().numpy().T)
    residual = torch.from_numpy((scores / scores.sum(1, keepdims=True) - np.eye(5)) / 5)
    torch.testing.assert_close(gradients[0], residual @ target.detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradients[1], residual.T @ predicted.detach(), rtol=1e-12, atol=1e-14)


def test_gradients_reach_predictions_and_targets_and_diagnostics_carry_none() -> None:
    predicted, target = (x.requires_grad_() for x in drawn(5, 4))
    loss, diagnostics = cpc_info_nce(predicted, target)
    loss.backward()
    assert predicted.grad is not None
    assert target.grad is not None
    assert float(predicted.grad.abs().sum()) > 0
    assert float(target.grad.abs().sum()) > 0
    assert not any(value.requires_grad for value in diagnostics.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dot_products_beyond_the_range_of_fp16_cost_a_finite_loss_in_fp32(dtype: torch.dtype) -> None:
    # 4 × 200² = 160 000, and fp16 ends at 65 504.
    patches = torch.tensor([[200.0, 200, 200, 200], [200, 200, 200, 199]], dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = cpc_info_nce(patches, patches)
    assert loss.dtype == torch.float32
    # The first prediction is right by 200 × (200 − 199), which costs e⁻²⁰⁰; the second prefers the first patch by
    # 199 × (200 − 199), which costs 199. Both dtypes represent 199 and 200 exactly.
    assert float(loss) == pytest.approx(199 / 2)


def test_candidates_are_the_targets_of_all_processes_and_the_label_is_the_own_row() -> None:
    predicted, target = drawn(9, 4)
    whole, _ = cpc_info_nce(predicted, target)
    parts = []
    for start in (0, 3, 6):
        mine = slice(start, start + 3)

        def gather(z: Tensor, start: int = start) -> tuple[Tensor, int]:
            return torch.cat([target[:start], z, target[start + 3 :]]), start

        parts.append(cpc_info_nce(predicted[mine], target[mine], cast(Any, gather))[0])
    torch.testing.assert_close(torch.stack(parts).mean(), whole, rtol=1e-12, atol=0)


def test_the_gradients_of_processes_add_up_to_those_of_one_with_all_rows() -> None:
    predicted, target = (x.requires_grad_() for x in drawn(6, 4))
    cpc_info_nce(predicted, target)[0].backward()
    expected = target.grad
    target.grad = None
    # A gather with gradient: every process's loss reaches every row.
    losses = [
        cpc_info_nce(predicted[start : start + 3], target[start : start + 3], lambda z, start=start: (target, start))[0]
        for start in (0, 3)
    ]
    torch.stack(losses).mean().backward()
    torch.testing.assert_close(target.grad, expected, rtol=1e-12, atol=1e-14)
