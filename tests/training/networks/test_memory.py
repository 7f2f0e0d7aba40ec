"""The queue compared with a deque, the bank row by row, and the momentum copy."""

from __future__ import annotations

from collections import deque

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from embedserve_training.networks.memory import KeyQueue, MemoryBank, momentum_copy, momentum_update
from tests.training.method_cases import seeded


@pytest.mark.parametrize("size", [1, 3, 8, 12])
@pytest.mark.parametrize("batches", [[4, 4, 4, 4], [5, 1, 7, 3], [8, 13, 2], [1] * 30, [12, 12], [25, 25]])
def test_the_queue_holds_the_last_keys_whatever_its_size_and_that_of_batches(size: int, batches: list[int]) -> None:
    queue, expected, count = KeyQueue(size, 1), deque[float](maxlen=size), 0
    expected.extend(queue.keys_KD.flatten().tolist())
    for batch in batches:
        keys_RD = torch.arange(count, count + batch, dtype=torch.float32).unsqueeze(1)
        queue.put(keys_RD)
        expected.extend(keys_RD.flatten().tolist())
        count += batch
        oldest_first = queue.keys_KD.flatten().roll(-int(queue.position))
        assert oldest_first.tolist() == list(expected)


def test_the_queue_starts_with_random_directions() -> None:
    keys_KD = KeyQueue(100, 16).keys_KD
    torch.testing.assert_close(keys_KD.norm(dim=1), torch.ones(100))
    assert (keys_KD @ keys_KD.T).fill_diagonal_(0).abs().max() < 0.99


def test_a_loaded_queue_continues_at_its_position() -> None:
    queue, other = KeyQueue(5, 2), KeyQueue(5, 2)
    queue.put(torch.ones(3, 2))
    other.load_state_dict(queue.state_dict())
    for each in (queue, other):
        each.put(torch.zeros(4, 2))
    assert torch.equal(queue.keys_KD, other.keys_KD)
    assert int(other.position) == 2


@pytest.mark.parametrize("momentum", [0.0, 0.5, 1.0])
def test_a_row_of_the_bank_moves_by_momentum_and_back_to_norm_one(momentum: float) -> None:
    bank = MemoryBank(6, 4, momentum)
    before, new_RD = bank.rows_ND.clone(), F.normalize(torch.randn(2, 4, generator=seeded()), dim=1)
    bank.put(torch.tensor([4, 1]), new_RD)
    for row in range(6):
        mixed_D = before[row]
        if row in (4, 1):
            mixed_D = momentum * before[row] + (1 - momentum) * new_RD[(4, 1).index(row)]
        torch.testing.assert_close(bank.rows_ND[row], mixed_D / mixed_D.norm())


@pytest.mark.parametrize(("own", "given"), [(torch.float32, torch.float64), (torch.float64, torch.float32)])
def test_queue_and_bank_keep_their_dtype_whatever_they_are_given(own: torch.dtype, given: torch.dtype) -> None:
    queue, bank = KeyQueue(5, 2).to(own), MemoryBank(5, 2, 0.5).to(own)
    rows_RD = F.normalize(torch.randn(2, 2, generator=seeded()), dim=1).to(given)
    queue.put(rows_RD)
    bank.put(torch.tensor([3, 0]), rows_RD)
    assert queue.keys_KD.dtype == bank.rows_ND.dtype == own
    assert torch.equal(queue.keys_KD[:2], rows_RD.to(own))


def test_a_momentum_update_moves_parameters_by_one_minus_momentum_and_leaves_buffers() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    follower = momentum_copy(network)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(weight + 4.0)
        network[1].running_mean.fill_(7.0)  # type: ignore[operator]
    before = [weight.clone() for weight in follower.parameters()]
    momentum_update(follower, network, 0.75)
    for now, was in zip(follower.parameters(), before, strict=True):
        torch.testing.assert_close(now, was + 1.0)
    assert torch.equal(follower[1].running_mean, torch.zeros(2))  # type: ignore[index]


def test_many_momentum_updates_are_the_sum_of_the_series() -> None:
    network = nn.Linear(1, 1, bias=False)
    follower = momentum_copy(network)
    with torch.no_grad():
        network.weight.fill_(1.0)
        follower.weight.fill_(0.0)  # type: ignore[operator]
    for _ in range(1000):
        momentum_update(follower, network, 0.999)
    assert follower.weight.item() == pytest.approx(1 - 0.999**1000, rel=1e-4)  # type: ignore[operator]


def test_a_momentum_copy_takes_no_gradient_and_shares_nothing() -> None:
    network = nn.Linear(3, 3)
    follower = momentum_copy(network)
    assert not any(weight.requires_grad for weight in follower.parameters())
    assert {w.data_ptr() for w in network.parameters()}.isdisjoint(w.data_ptr() for w in follower.parameters())
    assert all(weight.requires_grad for weight in network.parameters())
