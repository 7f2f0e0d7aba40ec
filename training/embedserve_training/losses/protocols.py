"""What a loss needs of the other processes, passed in so that no loss knows of processes.

Shapes: B rows in this process, G = B × processes, D numbers per row.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Gather(Protocol):
    """Joins the rows of all processes, with gradient."""

    def __call__(self, z_BD: Tensor) -> tuple[Tensor, int]:
        """The rows of every process, [G, D], and the position at which this process's own rows begin."""


class AllReduce(Protocol):
    """Adds up a tensor over all processes, with gradient: the backward adds up as well."""

    def __call__(self, x: Tensor) -> Tensor:
        """The sum of ``x``, of the same shape in every process, over all of them."""
