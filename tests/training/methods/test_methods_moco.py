"""MoCo: the momentum copy, the authors' order of a step, and batch-norm that does not leak the key."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embedserve_training.methods.moco import MoCo
from embedserve_training.networks.batch_norm import SplitBatchNorm
from embedserve_training.run import optim
from tests.training.method_cases import build, drawn_views, moco, seeded, small_cnn

BATCH = 8
INDICES = torch.arange(BATCH)


def a_moco(**changes: Any) -> MoCo:
    method = build("moco", **changes)
    assert isinstance(method, MoCo)
    return method


def key_weights(method: MoCo) -> list[nn.Parameter]:
    return [*method.key_backbone.parameters(), *method.key_head.parameters()]


def query_weights(method: MoCo) -> list[nn.Parameter]:
    return [*method.backbone.parameters(), *method.head.parameters()]


def test_key_weights_follow_by_one_minus_momentum_of_the_distance() -> None:
    method = a_moco(momentum=0.9)
    with torch.no_grad():
        for weight in query_weights(method):
            weight.add_(1.0)  # the copies started equal, so they move by a tenth of 1
    before = [weight.clone() for weight in key_weights(method)]
    method.after_step()
    for now, was in zip(key_weights(method), before, strict=True):
        torch.testing.assert_close(now, was + 0.1, rtol=1e-6, atol=1e-6)
    method.after_step()
    for now, was in zip(key_weights(method), before, strict=True):
        torch.testing.assert_close(now, was + 0.19, rtol=1e-6, atol=1e-6)


def test_key_networks_start_as_copies_with_their_own_tensors() -> None:
    method = a_moco()
    for query, key in zip(query_weights(method), key_weights(method), strict=True):
        assert torch.equal(query, key)
        assert query.data_ptr() != key.data_ptr()


def test_key_networks_are_frozen_and_not_in_the_optimiser() -> None:
    method = a_moco()
    given = {id(weight) for group in optim.parameter_groups(method, 0.1) for weight in group["params"]}
    assert given == {id(weight) for weight in query_weights(method)}
    assert not any(weight.requires_grad for weight in key_weights(method))


def test_running_statistics_of_the_key_network_are_its_own() -> None:
    method = a_moco()
    first_BCSS, second_BCSS = drawn_views(method)
    method([first_BCSS, second_BCSS + 0.2], INDICES, seeded())
    query_norm, key_norm = (
        next(module for module in network.modules() if isinstance(module, SplitBatchNorm))
        for network in (method.backbone, method.key_backbone)
    )
    before = key_norm.running_mean.clone()  # type: ignore[union-attr]
    assert not torch.allclose(query_norm.running_mean, before)  # type: ignore[arg-type]
    method.after_step()
    assert torch.equal(key_norm.running_mean, before)  # type: ignore[arg-type]


def test_running_statistics_move_once_a_batch_towards_the_mean_of_its_parts() -> None:
    norm = SplitBatchNorm(1)
    norm.splits = 2
    norm(torch.tensor([[0.0], [2.0], [4.0], [8.0]]))
    # Means 1 and 6, unbiased variances 2 and 8; from 0 and 1 a tenth of the way.
    assert norm.running_mean.item() == pytest.approx(0.35)  # type: ignore[union-attr]
    assert norm.running_var.item() == pytest.approx(0.9 + 0.5)  # type: ignore[union-attr]
    assert norm.num_batches_tracked.item() == 1  # type: ignore[union-attr]


def test_split_batch_norm_gives_each_part_what_batch_norm_gives_it_alone() -> None:
    x_BCHW = torch.randn(6, 3, 4, 4, generator=seeded())
    norm = SplitBatchNorm(3)
    norm.splits = 3
    expected = torch.cat([nn.BatchNorm2d(3)(part) for part in x_BCHW.chunk(3)])
    torch.testing.assert_close(norm(x_BCHW), expected)


def test_the_first_version_has_a_linear_head_and_the_second_a_hidden_layer_without_batch_norm() -> None:
    v1, v2 = moco(layers=1), moco(layers=2)
    assert [type(layer) for layer in v1.head] == [nn.Linear]
    assert [type(layer) for layer in v2.head] == [nn.Linear, nn.ReLU, nn.Linear]
    assert v2.head[0].out_features == v2.backbone.dimension
    assert all(layer.bias is not None for layer in (*v1.head, v2.head[0], v2.head[2]))


# --- The order of a step -------------------------------------------------------------------------------------------


class Literal:
    """Three steps in the authors' order: query, update of the key encoder, keys, logits, enqueue, descent.

    For one process without shuffling: the network has no batch-norm, so the order of keys does not matter.
    """

    def __init__(self, method: MoCo, lr: float) -> None:
        self.query = nn.Sequential(copy.deepcopy(method.backbone), copy.deepcopy(method.head))
        self.key = nn.Sequential(copy.deepcopy(method.key_backbone), copy.deepcopy(method.key_head))
        self.queue = list(method.queue.keys_KD.clone())  # the oldest first
        self.momentum, self.tau, self.lr = method.momentum, method.tau, lr

    def step(self, query_BCSS: Tensor, key_BCSS: Tensor) -> float:
        q_BP = F.normalize(self.query(query_BCSS), dim=1)
        with torch.no_grad():
            for theirs, ours in zip(self.key.parameters(), self.query.parameters(), strict=True):
                theirs.copy_(self.momentum * theirs + (1 - self.momentum) * ours)
            k_BP = F.normalize(self.key(key_BCSS), dim=1)
        losses = []
        for q_P, k_P in zip(q_BP, k_BP, strict=True):
            candidates = torch.stack([k_P, *self.queue])
            losses.append(-torch.log_softmax(candidates @ q_P / self.tau, 0)[0])
        loss = torch.stack(losses).mean()
        self.queue = (self.queue + list(k_BP))[-len(self.queue) :]
        self.query.zero_grad()
        loss.backward()
        with torch.no_grad():
            for weight in self.query.parameters():
                if weight.grad is not None:
                    weight.sub_(self.lr * weight.grad)
        return loss.item()


def without_batch_norm() -> MoCo:
    from embedserve_training.networks import batch_norm

    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = small_cnn()
        batch_norm.to_layer_norm(backbone)
        return MoCo(backbone, tau=0.2, queue_size=20, momentum=0.7, projection=16).train()


def test_three_steps_are_those_of_the_authors_order() -> None:
    method, lr = without_batch_norm(), 0.05
    literal = Literal(method, lr)
    weights = [weight for weight in method.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=lr)
    for seed in range(3):
        first_BCSS, second_BCSS = drawn_views(method, BATCH, seed)
        output = method([first_BCSS, second_BCSS], INDICES, seeded(seed))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        method.after_step()
        assert output.loss.item() == pytest.approx(literal.step(first_BCSS, second_BCSS), rel=1e-5)
    ours = method.queue.keys_KD.roll(-int(method.queue.position), 0)  # the oldest first
    torch.testing.assert_close(ours, torch.stack(literal.queue), rtol=1e-4, atol=1e-5)
    # Our key encoder is updated after the third step, theirs before the fourth one's keys.
    with torch.no_grad():
        for theirs, query in zip(literal.key.parameters(), literal.query.parameters(), strict=True):
            theirs.copy_(0.7 * theirs + 0.3 * query)
    for mine, theirs in zip(key_weights(method), literal.key.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_keys_come_back_in_the_order_of_their_images() -> None:
    method = without_batch_norm()
    _, key_BCSS = drawn_views(method)
    with torch.no_grad():
        expected = F.normalize(method.key_head(method.key_backbone(key_BCSS)), dim=1)
    torch.testing.assert_close(method._keys(key_BCSS, seeded(3)), expected, rtol=1e-4, atol=1e-5)


def test_a_symmetric_loss_and_its_diagnostics_are_the_means_of_both_directions() -> None:
    method = without_batch_norm()
    first_BCSS, second_BCSS = drawn_views(method)
    one, other = (method(pair, INDICES, seeded()) for pair in ([first_BCSS, second_BCSS], [second_BCSS, first_BCSS]))
    method.symmetric = True
    both = method([first_BCSS, second_BCSS], INDICES, seeded())
    assert both.loss.item() == pytest.approx((one.loss.item() + other.loss.item()) / 2, rel=1e-6)
    for name, value in both.diagnostics.items():
        assert value.item() == pytest.approx((one.diagnostics[name] + other.diagnostics[name]).item() / 2, rel=1e-5)


def test_both_backbones_are_compiled() -> None:
    method = a_moco()
    assert method.networks() == [method.backbone, method.key_backbone]
