"""Instance Discrimination: rows of the bank, the normaliser, noise, and the head of the paper."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embedserve_training.methods.instance_discrimination import InstanceDiscrimination
from tests.training.method_cases import IMAGES, build, drawn_views, seeded

BATCH = 8
INDICES = torch.tensor([3, 20, 7, 1, 15, 9, 22, 0])


def a_method(**changes: Any) -> InstanceDiscrimination:
    method = build("instance-discrimination", **changes)
    assert isinstance(method, InstanceDiscrimination)
    return method


def embedded(method: InstanceDiscrimination, views_VBCSS: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return F.normalize(method.head(method.backbone(views_VBCSS[0])), dim=1)


def test_the_bank_changes_after_the_step_only() -> None:
    method = a_method()
    before = method.bank.rows_ND.clone()
    method(drawn_views(method), INDICES, seeded()).loss.backward()
    assert torch.equal(method.bank.rows_ND, before)
    method.after_step()
    assert not torch.equal(method.bank.rows_ND, before)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_rows_of_the_step_become_the_mean_of_old_and_new_and_all_others_stay(momentum: float) -> None:
    method = a_method(momentum=momentum)
    views_VBCSS, before = drawn_views(method), method.bank.rows_ND.clone()
    v_BP = embedded(method, views_VBCSS)
    method(views_VBCSS, INDICES, seeded())
    method.after_step()
    for image in range(IMAGES):
        expected_P = before[image]
        if image in INDICES:
            mixed_P = momentum * before[image] + (1 - momentum) * v_BP[INDICES.tolist().index(image)]
            expected_P = mixed_P / mixed_P.norm()
        torch.testing.assert_close(method.bank.rows_ND[image], expected_P, rtol=1e-5, atol=1e-6)


def test_the_loss_is_the_softmax_over_the_bank_as_it_was() -> None:
    method = a_method()
    views_VBCSS = drawn_views(method)
    scores_BN = embedded(method, views_VBCSS) @ method.bank.rows_ND.T / method.tau
    expected = -scores_BN.log_softmax(1)[torch.arange(BATCH), INDICES].mean()
    assert method(views_VBCSS, INDICES, seeded()).loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_proximal_pull_adds_its_weight_times_the_squared_distance_to_the_bank() -> None:
    plain, pulled = a_method(), a_method(proximal_weight=3.0)
    views_VBCSS = drawn_views(plain)
    squared_B = (embedded(plain, views_VBCSS) - plain.bank.rows_ND[INDICES]).square().sum(1)
    without, with_ = (method(views_VBCSS, INDICES, seeded()).loss.item() for method in (plain, pulled))
    assert with_ - without == pytest.approx(3 * squared_B.mean().item(), rel=1e-4)


def test_the_normaliser_is_estimated_on_the_first_batch_and_then_constant() -> None:
    method = a_method(noise=6)
    assert method.normaliser == 0
    views_VBCSS, v_BP = drawn_views(method), embedded(method, drawn_views(method))
    method(views_VBCSS, INDICES, seeded(4))
    noise_BM = torch.randint(IMAGES, (BATCH, 6), generator=seeded(4))
    exponentials = [
        math.exp(float(v_BP[image] @ method.bank.rows_ND[row]) / method.tau)
        for image in range(BATCH)
        for row in noise_BM[image]
    ]
    first = method.normaliser.clone()
    assert first.item() == pytest.approx(IMAGES * sum(exponentials) / len(exponentials), rel=1e-4)
    for seed in range(3):
        method.after_step()
        method(drawn_views(method, seed=seed), INDICES, seeded(seed))
    assert torch.equal(method.normaliser, first)


def test_a_resumed_run_keeps_the_normaliser_it_had() -> None:
    method, resumed = a_method(noise=6), a_method(noise=6)
    method(drawn_views(method), INDICES, seeded())
    resumed.load_state_dict(method.state_dict())
    resumed(drawn_views(method, seed=5), INDICES, seeded(5))
    assert torch.equal(resumed.normaliser, method.normaliser)
    assert method.normaliser > 0


def test_noise_comes_from_all_images_and_another_for_each_image_and_step() -> None:
    method = a_method(noise=200)
    noise_BM = method._draw(BATCH, seeded())
    assert noise_BM.shape == (BATCH, 200)
    assert set(noise_BM.flatten().tolist()) == set(range(IMAGES))
    assert not torch.equal(noise_BM[0], noise_BM[1])
    assert not torch.equal(noise_BM, method._draw(BATCH, seeded(1)))


def test_the_bank_gets_no_gradient() -> None:
    method = a_method()
    method(drawn_views(method), INDICES, seeded()).loss.backward()
    assert not method.bank.rows_ND.requires_grad
    assert dict(method.bank.named_parameters()) == {}


def test_the_head_of_the_paper_is_one_linear_layer() -> None:
    assert [type(layer) for layer in a_method().head] == [nn.Linear]
