"""The number format that losses, normalised embeddings and batch statistics are computed in."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_fp32(x: Tensor) -> Tensor:
    """The tensor in fp32 if its format is shorter, and unchanged otherwise: bf16 and fp16 → fp32; fp32 and fp64 stay.

    A ``.float()`` would round fp64 as well. One unit of fp32 (2⁻²⁴) in the gradient of a loss moves the weights of a
    small MoCo run by 1e-4 to 3e-3 of what three steps change, because a ReLU ends on its other side; one of fp64
    (2⁻⁵²) by at most 2e-10 (15 draws each).
    """
    return x if x.dtype == torch.float64 else x.float()
