"""Measures of a batch of embeddings: values worked out by hand, and by loops over all pairs."""

from __future__ import annotations

import math
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from embedserve_training.watch.representation import MAX_ROWS, effective_rank, measure, strided

CORNERS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])


def test_the_rank_of_features_on_one_line_is_one() -> None:
    assert effective_rank(torch.linspace(1, 2, 64).unsqueeze(1) * torch.ones(1, 16)) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("shape", [(64, 16), (16, 64)])
def test_the_rank_of_orthogonal_features_is_the_smaller_side(shape: tuple[int, int]) -> None:
    assert effective_rank(torch.eye(*shape) * 3) == pytest.approx(16, abs=1e-3)


def test_the_rank_is_exp_of_the_entropy_of_the_singular_values() -> None:
    # Singular values 3 and 1: shares ¾ and ¼, entropy 0.562335, exp 1.754765.
    assert effective_rank(torch.tensor([[3.0, 0.0], [0.0, 1.0]])) == pytest.approx(1.754765, abs=1e-5)


def test_the_rank_is_of_the_backbone_and_not_of_the_projection() -> None:
    health = measure(CORNERS, torch.ones(4, 7), views=1)
    assert (health.rank, health.dimension) == (pytest.approx(2.0), 2)


def test_equal_embeddings_have_no_spread_and_the_largest_uniformity() -> None:
    health = measure(CORNERS, torch.full((4, 3), 5.0), views=2)
    assert health.std == pytest.approx(0, abs=1e-7)
    assert health.alignment == pytest.approx(0, abs=1e-12)
    assert health.uniformity == pytest.approx(0, abs=1e-12)


def test_embeddings_of_zeros_count_as_equal() -> None:
    health = measure(torch.zeros(4, 2), torch.zeros(4, 3), views=2)
    assert (health.std, health.alignment, health.uniformity) == (0.0, 0.0, 0.0)


def test_the_corners_of_a_square_are_spread_in_all_directions() -> None:
    health = measure(CORNERS, 10 * CORNERS, views=2)
    # Each coordinate is 1, 0, −1, 0: standard deviation √½, times √2.
    assert health.std == pytest.approx(1.0)
    # Partners lie opposite each other: the square of 2.
    assert health.alignment == pytest.approx(4.0)
    # Of three others, two are √2 and one is 2 away.
    assert health.uniformity == pytest.approx(math.log((2 * math.exp(-4) + math.exp(-8)) / 3))


def test_embeddings_on_one_of_two_axes_are_half_spread() -> None:
    # Standard deviations 1 and 0: mean ½, times √2.
    z_NP = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).repeat(2, 1)
    assert measure(CORNERS, z_NP, views=2).std == pytest.approx(math.sqrt(0.5))


@pytest.mark.parametrize("views", [2, 3])
def test_alignment_and_uniformity_are_those_of_loops_over_all_pairs(views: int) -> None:
    generator = torch.Generator().manual_seed(views)
    z_NP = torch.randn(views * 5, 4, generator=generator)
    unit_NP = F.normalize(z_NP.double(), dim=1)

    def squared(i: int, j: int) -> float:
        return float(sum((a - b) ** 2 for a, b in zip(unit_NP[i].tolist(), unit_NP[j].tolist(), strict=True)))

    rows = range(views * 5)
    partners = [squared(i, j) for i in rows for j in rows if i < j and i % 5 == j % 5]
    potentials = [math.exp(-2 * squared(i, j)) for i in rows for j in rows if i != j]
    health = measure(z_NP, z_NP, views)
    assert health.alignment == pytest.approx(sum(partners) / len(partners))
    assert health.uniformity == pytest.approx(math.log(sum(potentials) / len(potentials)))


def test_alignment_is_not_defined_for_one_view() -> None:
    assert math.isnan(measure(CORNERS, CORNERS, views=1).alignment)


def test_random_unit_vectors_have_the_uniformity_of_the_sphere() -> None:
    # Squared distances of random unit vectors in P dimensions: 2 − 2c with c of variance 1/P, so that
    # log E exp(−4 + 4c) ≈ −4 + 8/P.
    z_NP = torch.randn(1000, 256, generator=torch.Generator().manual_seed(0))
    health = measure(z_NP, z_NP, views=2)
    assert health.uniformity == pytest.approx(-4 + 8 / 256, abs=0.01)
    assert health.alignment == pytest.approx(2.0, abs=0.02)
    assert health.std == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(("images", "views"), [(512, 2), (600, 2), (4096, 1), (2047, 3)])
def test_a_large_batch_is_thinned_to_the_same_images_of_every_view(images: int, views: int) -> None:
    image_N1 = torch.arange(images).repeat(views).unsqueeze(1)
    rows_VM = strided(image_N1, views).reshape(views, -1)
    assert MAX_ROWS / 2 <= rows_VM.numel() <= MAX_ROWS + views
    assert all(torch.equal(row_M, rows_VM[0]) for row_M in rows_VM)


def test_thinning_does_not_change_the_measures() -> None:
    generator = torch.Generator().manual_seed(0)
    image_BP = torch.randn(3000, 8, generator=generator)
    z_NP = torch.cat([image_BP, image_BP + 0.1 * torch.randn(3000, 8, generator=generator)])
    thinned, whole = measure(z_NP, z_NP, views=2), measure(z_NP[::6], z_NP[::6], views=2)
    assert thinned.alignment == pytest.approx(whole.alignment, rel=0.1)
    assert thinned.std == pytest.approx(whole.std, abs=0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_measured_without_more_loss(dtype: torch.dtype) -> None:
    # 300 squared is beyond the range of float16.
    x_NP = (300 * CORNERS).to(dtype)
    health = measure(x_NP, x_NP, views=2)
    assert (health.rank, health.alignment) == (pytest.approx(2.0), pytest.approx(4.0))


def test_embeddings_that_are_not_finite_give_nan_and_no_error() -> None:
    broken_NP = CORNERS.clone()
    broken_NP[0, 0] = math.inf
    health = measure(broken_NP, broken_NP, views=2)
    assert all(math.isnan(value) for value in (health.rank, health.std, health.alignment, health.uniformity))


def test_tensors_with_gradient_can_be_measured() -> None:
    z_NP: Tensor = CORNERS.clone().requires_grad_()
    assert effective_rank(z_NP) == pytest.approx(2.0)
    assert measure(z_NP, z_NP, views=2).std == pytest.approx(1.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
def test_the_measures_of_a_gpu_are_those_of_the_cpu() -> None:
    z_NP = torch.randn(2000, 64, generator=torch.Generator().manual_seed(0))
    here, there = measure(z_NP, z_NP, views=2), measure(z_NP.cuda(), z_NP.cuda(), views=2)
    assert asdict(there) == pytest.approx(asdict(here), rel=1e-6)


def test_h_of_the_queries_alone_may_have_an_odd_number_of_rows() -> None:
    # Asymmetric MoCo: h of 15 queries, z of 15 queries and 15 keys.
    generator = torch.Generator().manual_seed(0)
    h_ND, z_ND = torch.randn(15, 8, generator=generator), torch.randn(30, 4, generator=generator)
    assert measure(h_ND, z_ND, 2).rank == pytest.approx(effective_rank(h_ND))
