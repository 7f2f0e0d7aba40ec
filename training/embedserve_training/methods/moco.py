"""MoCo: a query has to find the key of the same image among the keys of earlier batches.

He, Fan, Wu, Xie, Girshick: Momentum Contrast for Unsupervised Visual Representation Learning, arXiv 1911.05722 (v1);
Chen, Fan, Girshick, He: Improved Baselines with Momentum Contrastive Learning, arXiv 2003.04297 (v2: a hidden layer in
the head, tau = .2, blur). v1 is ``layers = 1``. Batch-norm sees a process's batch in parts, and the keys in a shuffled
order (section 3.3), or the statistics of its part would tell a query which key is its own.

Shapes: B images in this process, G in all processes, D numbers of h, P numbers of z, K keys in the queue.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embedserve_training.distributed.collectives import ALONE, Processes
from embedserve_training.dtypes import at_least_fp32
from embedserve_training.losses import info_nce, info_nce_chance
from embedserve_training.methods.method import LossReferences, Method, StepOutput
from embedserve_training.networks import batch_norm
from embedserve_training.networks.backbones import Backbone
from embedserve_training.networks.heads import projector
from embedserve_training.networks.memory import KeyQueue, follow, momentum_copy
from embedserve_training.plan.config import Settings


class MoCo(Method):
    """Algorithm 1 of arXiv 1911.05722.

    Args:
        backbone: f_q without its head.
        tau: temperature of the loss.
        queue_size: K.
        momentum: m, the share of the key encoder that stays as it was in a step.
        symmetric: whether each view is query and key in turn.
        bn_splits: parts in which batch-norm takes a process's batch.
        hidden: width of the head's hidden layer; D if zero.
        projection: P.
        layers: linear layers of the head (1 in v1, 2 in v2).
        processes: those that train together.
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
        processes: Processes = ALONE,
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
        """The method that a run's settings describe."""
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
        """The loss of one batch; its keys join the queue after the step, when no query can meet its own key there."""
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
        """Keys of this process's images, computed beside other images than their queries were (section 3.3)."""
        joined_GCSS = self.processes.join(images_BCSS)
        order_G = torch.randperm(len(joined_GCSS), generator=generator).to(joined_GCSS.device)
        mine_B = self.processes.own(order_G)
        shuffled_BCSS = joined_GCSS[mine_B].contiguous(memory_format=torch.channels_last)
        k_BP = F.normalize(at_least_fp32(self.key_head(self.key_backbone(shuffled_BCSS))), dim=1)
        k_GP = self.processes.join(k_BP)
        return self.processes.own(k_GP[order_G.argsort()])

    def after_step(self) -> None:
        """The key encoder follows, and the keys of the step join the queue, those of all processes."""
        for network, key_network in ((self.backbone, self.key_backbone), (self.head, self.key_head)):
            follow(key_network, network, self.momentum)
        for k_BP in self.new_keys:
            self.queue.put(self.processes.join(k_BP))
        self.new_keys.clear()

    def loss_references(self, global_batch: int) -> LossReferences:
        """ln(K + 1), for embeddings that are all alike and about so for random ones."""
        chance = info_nce_chance(len(self.queue.keys_KD))
        return LossReferences(chance=chance, collapse=chance)

    def networks(self) -> list[nn.Module]:
        """Query and key backbone."""
        return [self.backbone, self.key_backbone]
