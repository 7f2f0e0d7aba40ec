"""Barlow Twins: each dimension of two views' embeddings agrees with itself and with no other dimension.

Zbontar, Jing, Misra, LeCun, Deny: Barlow Twins: Self-Supervised Learning via Redundancy Reduction, arXiv 2103.03230.
Views pass through the network one after the other, as in the authors' code, so batch-norm sees one view at a time.

Shapes: B images, two views each, D numbers of h, P numbers of z.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from embedserve_training.distributed.collectives import SINGLE_PROCESS, Processes
from embedserve_training.losses import barlow_twins, barlow_twins_chance
from embedserve_training.methods.method import LossReferences, Method, StepOutput
from embedserve_training.networks.backbones import Backbone
from embedserve_training.networks.heads import projector
from embedserve_training.plan.config import Settings


class BarlowTwins(Method):
    """Algorithm 1 of the paper.

    Args:
        backbone: f in the paper, without its projector.
        off_diagonal: λ, the weight of the redundancy term relative to the invariance term.
        hidden: width of the projector's hidden layers; D if zero.
        projection: P.
        layers: linear layers of the projector.
        processes: rank and number of the processes that train together.
    """

    global_batch_norm = True  # the authors' code converts every batch-norm to SyncBatchNorm

    def __init__(
        self,
        backbone: Backbone,
        *,
        off_diagonal: float = 0.0051,
        hidden: int = 8192,
        projection: int = 8192,
        layers: int = 3,
        processes: Processes = SINGLE_PROCESS,
    ) -> None:
        super().__init__(backbone, processes)
        dimension = backbone.dimension
        self.projector = projector(dimension, hidden or dimension, projection, layers, batch_norm="hidden")
        self.off_diagonal, self.projection = off_diagonal, projection

    @classmethod
    def from_settings(cls, settings: Settings, backbone: Backbone, images: int, processes: Processes) -> Self:
        """The method with the settings of a run."""
        return cls(
            backbone,
            off_diagonal=settings.off_diagonal,
            hidden=settings.projector_hidden,
            projection=settings.projector_dim,
            layers=settings.projector_layers,
            processes=processes,
        )

    def forward(self, views_VBCSS: Sequence[Tensor], indices_B: Tensor, generator: torch.Generator) -> StepOutput:
        """The loss of one batch, equation 1; every process has the loss of the global batch."""
        h1_BD, h2_BD = (self.backbone(view_BCSS) for view_BCSS in views_VBCSS)
        z1_BP, z2_BP = self.projector(h1_BD), self.projector(h2_BD)
        loss, diagnostics = barlow_twins(z1_BP, z2_BP, self.off_diagonal, self.processes.all_reduce_sum)
        return StepOutput(
            loss=loss,
            features_ND=torch.cat([h1_BD, h2_BD]).detach(),
            projections_ND=torch.cat([z1_BP, z2_BP]).detach(),
            diagnostics=diagnostics,
        )

    def loss_references(self, global_batch: int) -> LossReferences:
        """A little over P for independent views; P for constant ones, whose correlation is zero."""
        chance = barlow_twins_chance(self.projection, global_batch, self.off_diagonal)
        return LossReferences(chance=chance, collapse=float(self.projection))
