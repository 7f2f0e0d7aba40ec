"""SimCLR: two views of an image attract each other and repel those of all other images in the batch.

Chen, Kornblith, Norouzi, Hinton: A Simple Framework for Contrastive Learning of Visual Representations,
arXiv 2002.05709. What is served is h, the output of the backbone, not z (section 4.2: h is better by over 10 points).

Shapes: B images, two views each, D numbers of h, P numbers of z.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from embedserve_training.backbones import Backbone
from embedserve_training.config import Settings
from embedserve_training.heads import projector
from embedserve_training.losses import Gather, nt_xent, nt_xent_chance
from embedserve_training.method import Method, StepOutput


class SimCLR(Method):
    """The method as in algorithm 1 of the paper.

    Args:
        backbone: f in the paper.
        tau: temperature of the loss.
        hidden: width of the projection head; D if zero.
        projection: P.
        layers: linear layers of the projection head.
        gather: joins the embeddings of all processes; None for one process.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        tau: float,
        hidden: int = 0,
        projection: int = 128,
        layers: int = 2,
        gather: Gather | None = None,
    ) -> None:
        super().__init__(backbone)
        self.projector = projector(backbone.dimension, hidden or backbone.dimension, projection, layers)
        self.tau = tau
        self.gather = gather

    @classmethod
    def from_settings(cls, settings: Settings, backbone: Backbone) -> Self:
        """The method that a run's settings describe."""
        return cls(
            backbone,
            tau=settings.tau,
            hidden=settings.projector_hidden,
            projection=settings.projector_dim,
            layers=settings.projector_layers,
        )

    def forward(self, views_VBCSS: Sequence[Tensor], indices_B: Tensor) -> StepOutput:
        """The loss of one batch. Both views go through the network as one batch, so batch-norm sees all of it."""
        h_2BD = self.backbone(torch.cat(tuple(views_VBCSS)))
        z1_BP, z2_BP = self.projector(h_2BD).chunk(2)
        loss, diagnostics = nt_xent(z1_BP, z2_BP, self.tau, self.gather)
        return StepOutput(loss=loss, features_ND=h_2BD.detach(), diagnostics=diagnostics)

    def chance(self, batch_size: int) -> float:
        """ln(2B − 1), the loss of a collapsed encoder."""
        return nt_xent_chance(batch_size)
