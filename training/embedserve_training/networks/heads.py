"""Projection heads: the layers between the served embedding and the loss during training."""

from __future__ import annotations

from typing import Literal

from torch import nn


def projector(
    in_features: int, hidden: int, out_features: int, layers: int, *, batch_norm: Literal["all", "hidden", "none"]
) -> nn.Sequential:
    """A multi-layer perceptron with ReLU between its layers; a single layer is a linear map.

    A linear layer that is followed by batch-norm has no bias.

    Args:
        in_features: dimension of the embedding h.
        hidden: width of the layers before the last.
        out_features: dimension of z, which the loss compares.
        layers: number of linear layers, at least one.
        batch_norm: after which layers. "all": SimCLR (arXiv 2002.05709, section 4.2, and the authors' code: the last
            one has a scale but no learned centre). "hidden": all but the last, which has no bias either (Barlow Twins,
            arXiv 2103.03230, section 2.2). "none": MoCo v2 (arXiv 2003.04297) and Instance Discrimination.
    """
    modules: list[nn.Module] = []
    width = in_features
    for _ in range(layers - 1):
        modules += [nn.Linear(width, hidden, bias=batch_norm == "none")]
        modules += [nn.BatchNorm1d(hidden)] if batch_norm != "none" else []
        modules += [nn.ReLU(inplace=True)]
        width = hidden
    modules.append(nn.Linear(width, out_features, bias=batch_norm == "none"))
    if batch_norm == "all":
        last = nn.BatchNorm1d(out_features)
        last.bias.requires_grad_(False)
        modules.append(last)
    return nn.Sequential(*modules)
