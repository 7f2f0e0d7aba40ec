"""Projection heads: what stands between the embedding that is served and the loss during training."""

from __future__ import annotations

from torch import nn


def projector(in_features: int, hidden: int, out_features: int, layers: int) -> nn.Sequential:
    """The non-linear projection head g(h) of SimCLR (arXiv 2002.05709, section 4.2; three layers as in SimCLRv2).

    Batch-norm follows every linear layer, which therefore has no bias; after the last one there is no ReLU and its
    batch-norm has a scale but no learnable centre, as in the authors' code.

    Args:
        in_features: numbers of the embedding h.
        hidden: width of the layers before the last.
        out_features: numbers of z, which the loss compares.
        layers: linear layers, at least one.
    """
    modules: list[nn.Module] = []
    width = in_features
    for _ in range(layers - 1):
        modules += [nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)]
        width = hidden
    last = nn.BatchNorm1d(out_features)
    last.bias.requires_grad_(False)
    return nn.Sequential(*modules, nn.Linear(width, out_features, bias=False), last)
