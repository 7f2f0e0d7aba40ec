"""InfoNCE against a queue: equation 1 of arXiv 1911.05722 as written, its closed forms and what gets gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from embedserve_training.losses import info_nce, info_nce_chance


def slow_info_nce(q: np.ndarray, k: np.ndarray, queue: np.ndarray, tau: float) -> float:
    """The equation as written: for each query one sum over one positive and K negatives, in float64."""
    total = 0.0
    for query, key in zip(q.astype(np.float64), k.astype(np.float64), strict=True):
        query, key = query / np.linalg.norm(query), key / np.linalg.norm(key)
        positive = math.exp(float(query @ key) / tau)
        negatives = sum(math.exp(float(query @ row) / tau) for row in queue.astype(np.float64))
        total += -math.log(positive / (positive + negatives))
    return total / len(q)


def drawn(
    batch: int, queue_size: int, dimension: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries and keys of norms around 3√D, and a queue of unit rows, float64."""
    random = torch.Generator().manual_seed(seed)
    q, k = 3 * torch.randn(2, batch, dimension, generator=random, dtype=torch.float64)
    return q, k, F.normalize(torch.randn(queue_size, dimension, generator=random, dtype=torch.float64), dim=1)


@pytest.mark.parametrize("tau", [0.07, 0.2, 1.0])
@pytest.mark.parametrize(("batch", "queue_size", "dimension"), [(1, 1, 2), (3, 5, 4), (16, 7, 8), (8, 300, 64)])
def test_info_nce_is_equation_1_averaged_over_queries(batch: int, queue_size: int, dimension: int, tau: float) -> None:
    q, k, queue = drawn(batch, queue_size, dimension)
    loss, _ = info_nce(q, k, queue, tau)
    assert float(loss) == pytest.approx(slow_info_nce(q.numpy(), k.numpy(), queue.numpy(), tau), rel=1e-12)


@pytest.mark.parametrize(("queue_size", "expected"), [(65_536, 11.090), (4096, 8.318)])
@pytest.mark.parametrize("tau", [0.07, 0.2])
def test_equal_embeddings_cost_the_logarithm_of_k_plus_1_at_any_temperature(
    queue_size: int, expected: float, tau: float
) -> None:
    same = torch.tensor([[1.0, 0.0]])
    loss, _ = info_nce(same.expand(4, 2), same.expand(4, 2), same.expand(queue_size, 2), tau)
    assert float(loss) == pytest.approx(expected, abs=1e-3)
    assert info_nce_chance(queue_size) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("tau", [0.07, 0.2, 1.0])
def test_a_key_like_its_query_and_a_queue_at_right_angles_cost_the_closed_form(tau: float) -> None:
    q = torch.tensor([[2.0, 0.0]])
    loss, _ = info_nce(q, q, torch.tensor([[0.0, 1.0]]).expand(100, 2), tau)
    assert float(loss) == pytest.approx(math.log1p(100 * math.exp(-1 / tau)), abs=2e-6)


def test_the_order_of_the_queue_does_not_change_the_loss() -> None:
    q, k, queue = drawn(4, 9, 5)
    assert float(info_nce(q, k, queue.flip(0), 0.2)[0]) == pytest.approx(float(info_nce(q, k, queue, 0.2)[0]), rel=1e-6)


def test_the_gradient_of_queries_is_the_slope_of_the_equation() -> None:
    q, k, queue = drawn(3, 5, 4)
    x = q.clone().requires_grad_()
    slope = np.zeros((3, 4))
    for at in np.ndindex(3, 4):
        step = np.zeros((3, 4))
        step[at] = 1e-5
        up, down = (slow_info_nce(q.numpy() + s, k.numpy(), queue.numpy(), 0.2) for s in (step, -step))
        slope[at] = (up - down) / 2e-5
    gradient = torch.autograd.grad(info_nce(x, k, queue, 0.2)[0], x)[0]
    torch.testing.assert_close(gradient, torch.from_numpy(slope), rtol=1e-7, atol=1e-9)


def test_only_queries_get_a_gradient() -> None:
    q, k, queue = (x.requires_grad_() for x in drawn(4, 9, 5))
    loss, diagnostics = info_nce(q, k, queue, 0.2)
    loss.backward()
    assert q.grad is not None
    assert float(q.grad.abs().sum()) > 0
    assert k.grad is None
    assert queue.grad is None
    assert not any(value.requires_grad for value in diagnostics.values())


def test_the_queue_is_left_as_it_was() -> None:
    q, k, queue = drawn(4, 9, 5)
    before = queue.clone()
    info_nce(q, k, queue, 0.2)
    assert torch.equal(queue, before)


def test_pos_is_the_mean_cosine_of_query_and_key() -> None:
    q = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    k = torch.tensor([[3.0, 0.0], [1.0, 0.0]])
    assert float(info_nce(q, k, torch.eye(2), 0.2)[1]["pos"]) == pytest.approx(0.5)


def test_top1_is_the_share_of_queries_nearer_to_their_key_than_to_the_whole_queue() -> None:
    q = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    k = torch.tensor([[1.0, 0.1], [1.0, 0.6], [-1.0, 0.0]])
    queue = F.normalize(torch.tensor([[1.0, 0.3], [0.0, 1.0]]), dim=1)
    assert float(info_nce(q, k, queue, 0.2)[1]["top1"]) == pytest.approx(1 / 3)


def test_a_collapsed_encoder_finds_no_key() -> None:
    # The label is column 0, which argmax picks among equals: a collapse would look perfect.
    same = torch.tensor([[1.0, 0.0]]).expand(4, 2)
    assert float(info_nce(same, same, same, 0.2)[1]["top1"]) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_exp_of_a_logit_at_tau_07_does_not_overflow_half_precision(dtype: torch.dtype) -> None:
    # exp(1 / .07) is 1.6 million, and fp16 ends at 65 504.
    q = torch.eye(8, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = info_nce(q, q, q, 0.07)
    assert loss.dtype == torch.float32
    # Each query meets itself in the queue too: ln(2 + 7 exp(−1 / .07)).
    assert float(loss) == pytest.approx(math.log(2 + 7 * math.exp(-1 / 0.07)), rel=1e-5)
