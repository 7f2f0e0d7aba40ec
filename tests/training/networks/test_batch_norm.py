"""Batch-norm over the batches of all processes, in parts, or not at all; two real processes are in other tests.

Shapes: B images, C channels, H sides.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from embedserve_training.distributed.collectives import SINGLE_PROCESS, Processes
from embedserve_training.networks import batch_norm
from embedserve_training.networks.backbones import build
from embedserve_training.networks.batch_norm import GlobalBatchNorm, SplitBatchNorm


@dataclass(frozen=True)
class Mirrored(Processes):
    """Two processes, the other of which has the same batch."""

    count: int = 2

    def all_reduce_sum(self, x: Tensor) -> Tensor:
        return 2 * x


def norms() -> tuple[nn.BatchNorm2d, nn.BatchNorm2d]:
    """The same batch-norm of three channels twice, with weights other than one and zero."""
    made = []
    for _ in range(2):
        norm = nn.BatchNorm2d(3)
        with torch.no_grad():
            norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
            norm.bias.copy_(torch.tensor([0.1, 0.0, -1.0]))
        made.append(norm)
    return made[0], made[1]


def batch(seed: int = 0) -> Tensor:
    """Float [6, 3, 4, 4] whose channels are far from zero mean and unit variance."""
    x_BCHH = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return x_BCHH * torch.tensor([0.1, 1.0, 10.0]).view(3, 1, 1) + torch.tensor([3.0, 0.0, -5.0]).view(3, 1, 1)


def test_synchronised_it_normalises_and_tracks_statistics_as_torch_does_for_the_global_batch() -> None:
    plain, norm = norms()
    joined = batch_norm.synchronise(norm, Mirrored())
    x_BCHH = batch()
    for _ in range(3):
        expected = plain(torch.cat([x_BCHH, x_BCHH]))[:6]
        torch.testing.assert_close(joined(x_BCHH), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(joined.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-6)


def test_synchronised_it_equals_torchs_in_evaluation() -> None:
    plain, norm = norms()
    joined = batch_norm.synchronise(norm, Mirrored())
    for module in (plain, joined):
        module.load_state_dict({**module.state_dict(), "running_mean": torch.tensor([1.0, 2.0, 3.0])})
    assert torch.equal(joined.eval()(batch()), plain.eval()(batch()))


@pytest.mark.parametrize(
    "change", [lambda net: batch_norm.synchronise(net, Mirrored()), lambda net: batch_norm.split(net, 2)]
)
def test_the_tensors_of_a_network_and_their_names_are_kept(change: object) -> None:
    network = build("small-cnn", 16)
    before = dict(network.state_dict(keep_vars=True))
    frozen = next(value for name, value in before.items() if name.endswith("norm1.bias"))
    frozen.requires_grad_(False)
    assert callable(change)
    change(network)
    after = network.state_dict(keep_vars=True)
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    assert not frozen.requires_grad
    kinds = {type(module) for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)}
    assert kinds in ({GlobalBatchNorm}, {SplitBatchNorm})


def test_a_single_process_keeps_torchs_modules() -> None:
    network = build("small-cnn", 16)
    for changed in (batch_norm.synchronise(network, SINGLE_PROCESS), batch_norm.split(network, 1)):
        assert changed is network
        assert not any(isinstance(module, GlobalBatchNorm | SplitBatchNorm) for module in changed.modules())


def test_with_layer_norm_no_image_depends_on_another() -> None:
    network = batch_norm.to_layer_norm(build("small-cnn", 16))
    x_BCHH = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(x_BCHH)[:2], network(x_BCHH[:2]), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


def test_a_batch_that_cannot_be_cut_evenly_is_normalised_as_a_whole() -> None:
    plain, norm = norms()
    split = batch_norm.split(norm, 4)
    torch.testing.assert_close(split(batch()), plain(batch()))
