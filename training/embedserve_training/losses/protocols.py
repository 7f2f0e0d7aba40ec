"""What a loss needs from the other processes; passed in, so that no loss knows about processes.

Shapes: B rows in this process, G = B × processes, D numbers per row.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Gather(Protocol):
    """Joins the rows of all processes, with gradient."""

    def __call__(self, z_BD: Tensor) -> tuple[Tensor, int]:
        """The rows of all processes, [G, D], and the position of this process's first row."""


class AllReduce(Protocol):
    """Sums a tensor over all processes, with gradient: the backward is a sum as well."""

    def __call__(self, x: Tensor) -> Tensor:
        """The sum over all processes of ``x``, which has the same shape in each."""
