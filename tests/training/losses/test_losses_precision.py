"""Every loss is in fp32 at least, and in fp64 for fp64 inputs, where parts of a batch give the result of the whole.

Shapes: B rows, D numbers per row.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from embedserve_training import losses
from embedserve_training.dtypes import at_least_fp32
from embedserve_training.losses import (
    barlow_twins,
    cpc_info_nce,
    info_nce,
    instance_nce,
    instance_normaliser,
    instance_softmax,
    nt_xent,
    proximal,
)

BATCH, DIMENSION, IMAGES = 8, 6, 30
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Takes two views [B, D] and the position of each image [B]."""


def unit_rows(count: int) -> Tensor:
    """Rows of norm 1, float64: a queue or a bank."""
    drawn = torch.randn(count, DIMENSION, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    return F.normalize(drawn, dim=1)


def noise_of(indices_B: Tensor) -> Tensor:
    """Five rows of the bank for each image."""
    return (indices_B.unsqueeze(1) * 7 + torch.arange(5)) % IMAGES


LOSSES: dict[str, Loss] = {
    "nt_xent": lambda a, b, i: nt_xent(a, b, 0.2)[0],
    "barlow_twins": lambda a, b, i: barlow_twins(a, b, 0.0051)[0],
    "cpc_info_nce": lambda a, b, i: cpc_info_nce(a, b)[0],
    "info_nce": lambda a, b, i: info_nce(a, b, unit_rows(IMAGES), 0.2)[0],
    "instance_softmax": lambda a, b, i: instance_softmax(a, unit_rows(IMAGES), i, 0.1)[0],
    "instance_nce": lambda a, b, i: instance_nce(a, unit_rows(IMAGES), i, noise_of(i), 0.1, torch.tensor(40.0))[0],
    "proximal": lambda a, b, i: proximal(a, unit_rows(IMAGES), i),
    "instance_normaliser": lambda a, b, i: instance_normaliser(a, unit_rows(IMAGES), noise_of(i), 0.1),
}
WITHOUT_GRADIENT = ("instance_normaliser",)
PER_IMAGE = ("info_nce", "instance_softmax", "instance_nce", "proximal")
"""Means over images whose losses do not depend on the other images of the batch."""


def views(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    drawn = torch.randn(2, BATCH, DIMENSION, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return drawn[0].to(dtype), (drawn[0] + drawn[1]).to(dtype)


def indices() -> Tensor:
    return torch.arange(BATCH) * 3


def test_every_loss_has_a_case_here() -> None:
    functions = {name for name in losses.__all__ if name.islower() and not name.endswith(("_chance", "_rank_one"))}
    assert set(LOSSES) == functions


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_loss_is_in_fp32_or_in_fp64_if_its_inputs_are(name: str, dtype: torch.dtype) -> None:
    a, b = views(dtype)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert LOSSES[name](a, b, indices()).dtype == expected
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert LOSSES[name](a, b, indices()).dtype == expected


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_in_fp64_is_not_that_of_inputs_rounded_to_fp32(name: str) -> None:
    a, b = views(torch.float64)
    exact, rounded = (LOSSES[name](x, y, indices()).double() for x, y in ((a, b), (a.float(), b.float())))
    assert exact != rounded
    torch.testing.assert_close(rounded, exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - WITHOUT_GRADIENT))
def test_a_gradient_in_fp64_has_the_slope_of_the_loss(name: str) -> None:
    # gradcheck's own bounds are 1e-6 and 1e-5; single precision anywhere would miss these by orders of magnitude.
    a, b = views(torch.float64)
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, b, indices()), a.requires_grad_(), atol=1e-8, rtol=1e-7)


@pytest.mark.parametrize("parts", [2, 4, 8])
@pytest.mark.parametrize("name", PER_IMAGE)
def test_parts_of_a_batch_have_the_loss_and_the_gradient_of_the_whole(name: str, parts: int) -> None:
    a, b = views(torch.float64)
    whole_a, cut_a = a.clone().requires_grad_(), a.clone().requires_grad_()
    whole = LOSSES[name](whole_a, b, indices())
    whole.backward()
    of_parts = [
        LOSSES[name](x, y, i)
        for x, y, i in zip(cut_a.chunk(parts), b.chunk(parts), indices().chunk(parts), strict=True)
    ]
    mean = torch.stack(of_parts).mean()
    mean.backward()
    torch.testing.assert_close(mean, whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(cut_a.grad, whole_a.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_at_least_fp32_lengthens_short_formats_only(dtype: torch.dtype, expected: torch.dtype) -> None:
    x = torch.tensor([1 / 3, -2.0], dtype=dtype)
    assert at_least_fp32(x).dtype == expected
    assert torch.equal(at_least_fp32(x).double(), x.double())
