"""Our losses beside those of lightly (MIT), as a second implementation by other hands: values and gradients.

Compared in one process: NT-Xent, InfoNCE against a queue, and Barlow Twins. lightly has neither Contrastive Predictive
Coding nor Instance Discrimination. Over several processes its Barlow Twins standardises each process's rows by
themselves, ours those of the global batch, so the two are meant to differ there.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from embedserve_training.losses import barlow_twins, info_nce, nt_xent

SIZES = pytest.mark.parametrize(("batch", "dimension"), [(2, 3), (16, 8), (64, 128)])
TEMPERATURES = pytest.mark.parametrize("tau", [0.07, 0.2, 0.5, 1.0])


def drawn(batch: int, dimension: int) -> tuple[Tensor, Tensor]:
    """Two views that agree in part, of norms around √D, float32."""
    random = torch.Generator().manual_seed(batch + dimension)
    z1, noise = torch.randn(2, batch, dimension, generator=random)
    return z1, z1 + noise


def value_and_gradients(loss: Callable[[Tensor, Tensor], Tensor], z1: Tensor, z2: Tensor) -> tuple[Tensor, ...]:
    """The loss and its gradients for both views."""
    z1, z2 = z1.clone().requires_grad_(), z2.clone().requires_grad_()
    value = loss(z1, z2)
    return (value.detach(), *torch.autograd.grad(value, (z1, z2)))


def assert_same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert float(mine.abs().sum()) > 0
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


@SIZES
@TEMPERATURES
def test_nt_xent_is_that_of_lightly(lightly_loss: ModuleType, batch: int, dimension: int, tau: float) -> None:
    # Both are means over the 2B anchors.
    z1, z2 = drawn(batch, dimension)
    theirs = value_and_gradients(lightly_loss.NTXentLoss(temperature=tau), z1, z2)
    assert_same(value_and_gradients(lambda a, b: nt_xent(a, b, tau)[0], z1, z2), theirs)


# A batch of 2 standardises to ±1 whatever it holds: its gradient is rounding.
@pytest.mark.parametrize(("batch", "dimension"), [(5, 3), (16, 8), (64, 128)])
@pytest.mark.parametrize("off_diagonal", [0.0051, 0.5])
def test_barlow_twins_is_that_of_lightly(
    lightly_loss: ModuleType, batch: int, dimension: int, off_diagonal: float
) -> None:
    z1, z2 = drawn(batch, dimension)
    theirs = value_and_gradients(lightly_loss.BarlowTwinsLoss(lambda_param=off_diagonal), z1, z2)
    assert_same(value_and_gradients(lambda a, b: barlow_twins(a, b, off_diagonal)[0], z1, z2), theirs)


@SIZES
@TEMPERATURES
def test_info_nce_is_nt_xent_of_lightly_with_its_memory_bank_as_the_queue(
    lightly_loss: ModuleType, batch: int, dimension: int, tau: float
) -> None:
    q, k = drawn(batch, dimension)
    criterion = lightly_loss.NTXentLoss(temperature=tau, memory_bank_size=(256, dimension))
    queue = criterion.memory_bank.bank.clone()  # as it was: the criterion puts the keys into it
    theirs_q, ours_q = q.clone().requires_grad_(), q.clone().requires_grad_()
    theirs, (ours, _) = criterion(theirs_q, k), info_nce(ours_q, k, queue, tau)
    assert_same(
        (ours.detach(), *torch.autograd.grad(ours, ours_q)), (theirs.detach(), *torch.autograd.grad(theirs, theirs_q))
    )
