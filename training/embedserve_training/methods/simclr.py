"""SimCLR: two views of an image attract each other and repel those of all other images in the batch.

Chen, Kornblith, Norouzi, Hinton: A Simple Framework for Contrastive Learning of Visual Representations,
arXiv 2002.05709. The served embedding is h, the output of the backbone, not z (section 4.2: h is better by over 10
points).

Shapes: B images, two views each, D numbers of h, P numbers of z.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from embedserve_training.distributed.collectives import SINGLE_PROCESS, Processes
from embedserve_training.losses import nt_xent, nt_xent_chance
from embedserve_training.methods.method import LossReferences, Method, StepOutput
from embedserve_training.networks.backbones import Backbone
from embedserve_training.networks.heads import projector
from embedserve_training.plan.config import Settings


class SimCLR(Method):
    """Algorithm 1 of the paper.

    Args:
        backbone: f in the paper.
        tau: temperature of the loss.
        hidden: width of the projection head g; D if zero.
        projection: P.
        layers: linear layers of the projection head (2; 3 in SimCLRv2).
        processes: rank and number of the processes that train together.
    """

    global_batch_norm = True  # section 2.2: local statistics would leak which views are positives

    def __init__(
        self,
        backbone: Backbone,
        *,
        tau: float,
        hidden: int = 0,
        projection: int = 128,
        layers: int = 2,
        processes: Processes = SINGLE_PROCESS,
    ) -> None:
        super().__init__(backbone, processes)
        dimension = backbone.dimension
        self.projector = projector(dimension, hidden or dimension, projection, layers, batch_norm="all")
        self.tau = tau

    @classmethod
    def from_settings(cls, settings: Settings, backbone: Backbone, images: int, processes: Processes) -> Self:
        """The method with the settings of a run."""
        return cls(
            backbone,
            tau=settings.tau,
            hidden=settings.projector_hidden,
            projection=settings.projector_dim,
            layers=settings.projector_layers,
            processes=processes,
        )

    def forward(self, views_VBCSS: Sequence[Tensor], indices_B: Tensor, generator: torch.Generator) -> StepOutput:
        """The loss of one batch. Both views pass through the network as one batch, so batch-norm sees both."""
        h_2BD = self.backbone(torch.cat(tuple(views_VBCSS)))
        z_2BP = self.projector(h_2BD)
        z1_BP, z2_BP = z_2BP.chunk(2)
        loss, diagnostics = nt_xent(z1_BP, z2_BP, self.tau, self.processes.gather)
        return StepOutput(loss=loss, features_ND=h_2BD.detach(), projections_ND=z_2BP.detach(), diagnostics=diagnostics)

    def loss_references(self, global_batch: int) -> LossReferences:
        """ln(2B − 1) for embeddings that are all equal, at any temperature."""
        return LossReferences(chance=nt_xent_chance(global_batch), collapse=nt_xent_chance(global_batch))
