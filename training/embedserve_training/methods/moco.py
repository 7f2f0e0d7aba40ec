"""MoCo: a query must find the key of the same image among the keys of earlier batches.

He, Fan, Wu, Xie, Girshick: Momentum Contrast for Unsupervised Visual Representation Learning, arXiv 1911.05722 (v1);
Chen, Fan, Girshick, He: Improved Baselines with Momentum Contrastive Learning, arXiv 2003.04297 (v2: a hidden layer in
the head, tau = .2, blur). v1 is ``layers = 1``. Batch-norm normalises a process's batch in parts, and the keys in
shuffled order (section 3.3), so that the statistics of a part do not tell a query which key is its own.

Shapes: B images in this process, G in all processes, D numbers of h, P numbers of z, K keys in the queue.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embedserve_training.distributed.collectives import SINGLE_PROCESS, Processes
from embedserve_training.dtypes import at_least_fp32
from embedserve_training.losses import info_nce, info_nce_chance
from embedserve_training.methods.method import LossReferences, Method, StepOutput
from embedserve_training.networks import batch_norm
from embedserve_training.networks.backbones import Backbone
from embedserve_training.networks.heads import projector
from embedserve_training.networks.memory import KeyQueue, momentum_copy, momentum_update
from embedserve_training.plan.config import Settings


class MoCo(Method):
    """Algorithm 1 of arXiv 1911.05722.

    Args:
        backbone: f_q without its head.
        tau: temperature of the loss.
        queue_size: K.
        momentum: m, the share of the key encoder that a step leaves unchanged.
        symmetric: whether each view is both query and key.
        bn_splits: number of parts in which batch-norm normalises a process's batch.
        hidden: width of the head's hidden layer; D if zero.
        projection: P.
        layers: linear layers of the head (1 in v1, 2 in v2).
        processes: rank and number of the processes that train together.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        tau: float,
        queue_size: int,
        momentum: float = 0.999,
        symmetric: bool = False,
        bn_splits: int = 1,
        hidden: int = 0,
        projection: int = 128,
        layers: int = 2,
        processes: Processes = SINGLE_PROCESS,
    ) -> None:
        super().__init__(backbone, processes)
        self.tau, self.momentum, self.symmetric = tau, momentum, symmetric
        batch_norm.split(backbone, bn_splits)
        dimension = backbone.dimension
        self.head = projector(dimension, hidden or dimension, projection, layers, batch_norm="none")
        self.key_backbone, self.key_head = momentum_copy(backbone), momentum_copy(self.head)
        self.queue = KeyQueue(queue_size, projection)
        self.new_keys: list[Tensor] = []

    @classmethod
    def from_settings(cls, settings: Settings, backbone: Backbone, images: int, processes: Processes) -> Self:
        """The method with the settings of a run."""
        return cls(
            backbone,
            tau=settings.tau,
            queue_size=settings.queue_size,
            momentum=settings.key_momentum,
            symmetric=settings.symmetric,
            bn_splits=settings.bn_splits,
            hidden=settings.projector_hidden,
            projection=settings.projector_dim,
            layers=settings.projector_layers,
            processes=processes,
        )

    def forward(self, views_VBCSS: Sequence[Tensor], indices_B: Tensor, generator: torch.Generator) -> StepOutput:
        """The loss of one batch. Its keys enter the queue after the step, so no query meets its own key there."""
        first_BCSS, second_BCSS = views_VBCSS
        pairs = [(first_BCSS, second_BCSS)] + ([(second_BCSS, first_BCSS)] if self.symmetric else [])
        losses, features, projections, hits = [], [], [], []
        for query_BCSS, key_BCSS in pairs:
            h_BD = self.backbone(query_BCSS)
            q_BP = self.head(h_BD)
            k_BP = self._keys(key_BCSS, generator)
            loss, diagnostics = info_nce(q_BP, k_BP, self.queue.keys_KD, self.tau)
            losses.append(loss)
            hits.append(diagnostics)
            features.append(h_BD.detach())
            projections += [q_BP.detach()] if self.symmetric else [q_BP.detach(), k_BP]
            self.new_keys.append(k_BP)
        return StepOutput(
            loss=torch.stack(losses).mean(),
            features_ND=torch.cat(features),
            projections_ND=torch.cat(projections),
            diagnostics={name: torch.stack([each[name] for each in hits]).mean() for name in hits[0]},
        )

    @torch.no_grad()
    def _keys(self, images_BCSS: Tensor, generator: torch.Generator) -> Tensor:
        """Keys of this process's images, computed in batches of other images than their queries (section 3.3)."""
        joined_GCSS = self.processes.gather_detached(images_BCSS)
        order_G = torch.randperm(len(joined_GCSS), generator=generator).to(joined_GCSS.device)
        mine_B = self.processes.own_rows(order_G)
        shuffled_BCSS = joined_GCSS[mine_B].contiguous(memory_format=torch.channels_last)
        k_BP = F.normalize(at_least_fp32(self.key_head(self.key_backbone(shuffled_BCSS))), dim=1)
        k_GP = self.processes.gather_detached(k_BP)
        return self.processes.own_rows(k_GP[order_G.argsort()])

    def after_step(self) -> None:
        """Update the key encoder, and put the keys of the step, from all processes, into the queue."""
        for network, key_network in ((self.backbone, self.key_backbone), (self.head, self.key_head)):
            momentum_update(key_network, network, self.momentum)
        for k_BP in self.new_keys:
            self.queue.put(self.processes.gather_detached(k_BP))
        self.new_keys.clear()

    def loss_references(self, global_batch: int) -> LossReferences:
        """ln(K + 1), exactly for embeddings that are all equal, and about that for random ones."""
        chance = info_nce_chance(len(self.queue.keys_KD))
        return LossReferences(chance=chance, collapse=chance)

    def networks(self) -> list[nn.Module]:
        """The query and the key backbone."""
        return [self.backbone, self.key_backbone]
