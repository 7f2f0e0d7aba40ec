"""Batch-norm over parts of a process's batch, or over the batches of all processes.

Both replace torch's modules and keep their weights and statistics under the same names, so checkpoints are
interchangeable. In evaluation they behave like torch's.

Shapes: B images in this process, C channels, S parts of the batch, and any further dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from embedserve_training.dtypes import at_least_fp32

if TYPE_CHECKING:
    from embedserve_training.distributed.collectives import Processes

_NormT = TypeVar("_NormT", bound=_BatchNorm)


class SplitBatchNorm(_BatchNorm):
    """Normalises equal parts of the batch separately, as if each were on its own GPU.

    MoCo's authors use it on one GPU instead of shuffling over eight (facebookresearch/moco, colab-notebook). As there,
    the running statistics move once per batch, towards the mean over its parts: moving once per part would leave little
    in them but the last few parts. A batch that cannot be cut evenly is normalised as a whole.
    """

    splits: int = 1

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions: the module replaces one that was made for them."""

    def forward(self, input: Tensor) -> Tensor:
        """Float [B, C, …] → the same shape."""
        if not self.training or input.shape[0] % self.splits:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        mean_SC, var_SC = self.running_mean.repeat(self.splits, 1), self.running_var.repeat(self.splits, 1)
        parts = [
            F.batch_norm(part, mean_C, var_C, self.weight, self.bias, True, self.momentum, self.eps)
            for part, mean_C, var_C in zip(input.chunk(self.splits), mean_SC, var_SC, strict=True)
        ]
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.copy_(mean_SC.mean(0))
            self.running_var.copy_(var_SC.mean(0))
        return torch.cat(parts)


class GlobalBatchNorm(_BatchNorm):
    """Normalises over the batches of all processes, with the gradient of one process on the global batch.

    nn.SyncBatchNorm does the same, faster, but on GPUs only.
    """

    processes: Processes

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions: the module replaces one that was made for them."""

    def forward(self, input: Tensor) -> Tensor:
        """Float [B, C, …] → the same shape."""
        if not self.training:
            return super().forward(input)
        x = at_least_fp32(input)
        over = [dim for dim in range(x.ndim) if dim != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        count = x.numel() // x.shape[1] * self.processes.count
        mean_C = self.processes.all_reduce_sum(x.sum(over)) / count
        centred = x - mean_C.view(shape)
        variance_C = self.processes.all_reduce_sum(centred.square().sum(over)) / count
        self._remember(mean_C, variance_C, count)
        result = centred * (variance_C + self.eps).rsqrt().view(shape)
        if self.affine:
            result = result * self.weight.view(shape) + self.bias.view(shape)
        return result.to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean_C: Tensor, variance_C: Tensor, count: int) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        assert self.momentum is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean_C, self.momentum)
        self.running_var.lerp_(variance_C * count / (count - 1), self.momentum)


def split(network: nn.Module, splits: int) -> nn.Module:
    """The network with each batch-norm normalising this number of parts separately; changed in place."""

    def change(norm: _BatchNorm) -> nn.Module:
        changed = _take_over(SplitBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine), norm)
        changed.splits = splits
        return changed

    return _replace(network, change) if splits > 1 else network


def synchronise(network: nn.Module, processes: Processes) -> nn.Module:
    """The network with each batch-norm over the batches of all processes, as SyncBatchNorm; changed in place."""

    def change(norm: _BatchNorm) -> nn.Module:
        if next(iter(network.parameters())).device.type == "cuda":
            synced: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(norm)  # type: ignore[no-untyped-call]
            return synced
        changed = _take_over(GlobalBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine), norm)
        changed.processes = processes
        return changed

    return _replace(network, change) if processes.count > 1 else network


def to_layer_norm(network: nn.Module) -> nn.Module:
    """The network with layer norm over channels and places instead of each batch-norm; changed in place.

    CPC's encoder must not see other patches through batch statistics, which would leak the patches to be predicted
    (arXiv 1905.09272, section 3.1). GroupNorm with one group is layer norm for any image size.
    """

    def change(norm: _BatchNorm) -> nn.Module:
        return nn.GroupNorm(1, norm.num_features, eps=norm.eps, affine=norm.affine)

    return _replace(network, change)


def _take_over(changed: _NormT, norm: _BatchNorm) -> _NormT:
    """Give a module the same tensor objects as another, so that frozen weights stay frozen."""
    changed._parameters.update(norm._parameters)
    changed._buffers.update(norm._buffers)
    return changed


def _replace(module: nn.Module, change: Callable[[_BatchNorm], nn.Module]) -> nn.Module:
    if isinstance(module, _BatchNorm):
        return change(module)
    for name, child in module.named_children():
        setattr(module, name, _replace(child, change))
    return module
