"""Instance Discrimination: every image is a class of its own, recognised by its embedding of an epoch ago.

Wu, Xiong, Yu, Lin: Unsupervised Feature Learning via Non-parametric Instance Discrimination, arXiv 1805.01978. One view
per image, so half the work of SimCLR, and no dependence on the batch size.

Shapes: B images in this process, G in all, N in the dataset, M noise rows per image, D numbers of h, P numbers of v.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from embedserve_training.distributed.collectives import SINGLE_PROCESS, Processes
from embedserve_training.dtypes import at_least_fp32
from embedserve_training.losses import (
    instance_nce,
    instance_nce_chance,
    instance_normaliser,
    instance_softmax,
    instance_softmax_chance,
    proximal,
)
from embedserve_training.methods.method import LossReferences, Method, StepOutput
from embedserve_training.networks.backbones import Backbone
from embedserve_training.networks.heads import projector
from embedserve_training.networks.memory import MemoryBank
from embedserve_training.plan.config import Settings


class InstanceDiscrimination(Method):
    """The method of section 3 of the paper.

    Args:
        backbone: f_θ without its last, linear layer.
        images: N.
        tau: temperature.
        noise: M of noise-contrastive estimation (section 3.2); 0 for the full softmax over all N (equation 2). Z is
            estimated on the first batch, or its first part, and constant from then on.
        momentum: share of a remembered row that a step leaves unchanged.
        proximal_weight: λ of equation 10, the pull towards the remembered row.
        hidden: width of the head's hidden layers; D if zero.
        projection: P.
        layers: linear layers of the head (1 in the paper).
        processes: rank and number of the processes that train together.
    """

    views = 1
    normaliser: Tensor

    def __init__(
        self,
        backbone: Backbone,
        images: int,
        *,
        tau: float,
        noise: int = 0,
        momentum: float = 0.5,
        proximal_weight: float = 0.0,
        hidden: int = 0,
        projection: int = 128,
        layers: int = 1,
        processes: Processes = SINGLE_PROCESS,
    ) -> None:
        super().__init__(backbone, processes)
        dimension = backbone.dimension
        self.head = projector(dimension, hidden or dimension, projection, layers, batch_norm="none")
        self.bank = MemoryBank(images, projection, momentum)
        self.register_buffer("normaliser", torch.zeros(()))  # Z; estimated on the first batch, then constant
        self.estimated = False
        self.tau, self.noise, self.proximal_weight = tau, noise, proximal_weight
        self.seen: list[tuple[Tensor, Tensor]] = []

    @classmethod
    def from_settings(cls, settings: Settings, backbone: Backbone, images: int, processes: Processes) -> Self:
        """The method with the settings of a run."""
        return cls(
            backbone,
            images,
            tau=settings.tau,
            noise=settings.noise_samples,
            momentum=settings.bank_momentum,
            proximal_weight=settings.proximal,
            hidden=settings.projector_hidden,
            projection=settings.projector_dim,
            layers=settings.projector_layers,
            processes=processes,
        )

    def forward(self, views_VBCSS: Sequence[Tensor], indices_B: Tensor, generator: torch.Generator) -> StepOutput:
        """The loss of one batch; the bank changes after the step."""
        h_BD = self.backbone(views_VBCSS[0])
        v_BP = self.head(h_BD)
        bank_NP = self.bank.rows_ND
        if self.noise:
            noise_BM = self._draw(len(indices_B), generator).to(v_BP.device)
            if not (self.estimated or self.normaliser):
                z = instance_normaliser(v_BP, bank_NP, noise_BM, self.tau)
                self.normaliser.copy_(self.processes.all_reduce_sum(z) / self.processes.count)
            self.estimated = True  # so that no later step waits for the GPU to read the normaliser
            loss, diagnostics = instance_nce(v_BP, bank_NP, indices_B, noise_BM, self.tau, self.normaliser)
        else:
            loss, diagnostics = instance_softmax(v_BP, bank_NP, indices_B, self.tau)
        if self.proximal_weight:
            pull = proximal(v_BP, bank_NP, indices_B)
            loss, diagnostics = loss + self.proximal_weight * pull, {**diagnostics, "proximal": pull.detach()}
        self.seen.append((indices_B, F.normalize(at_least_fp32(v_BP.detach()), dim=1)))
        return StepOutput(
            loss=loss, features_ND=h_BD.detach(), projections_ND=v_BP.detach(), views=1, diagnostics=diagnostics
        )

    def _draw(self, batch: int, generator: torch.Generator) -> Tensor:
        """Noise rows, uniform over all (P_n, section 3.2): drawn for all processes, returned for this one."""
        shape = (batch * self.processes.count, self.noise)
        return self.processes.own_rows(torch.randint(len(self.bank.rows_ND), shape, generator=generator))

    def after_step(self) -> None:
        """Put the embeddings of the step, from all processes, into the bank."""
        for indices_B, v_BP in self.seen:
            self.bank.put(self.processes.gather_detached(indices_B), self.processes.gather_detached(v_BP))
        self.seen.clear()

    def loss_references(self, global_batch: int) -> LossReferences:
        """ln N if all embeddings are equal. With noise about 1 + ln(M + 1) at chance, and much more in collapse.

        Random directions are at a squared distance of 2, so the proximal term adds 2 λ at chance, and 0 in collapse.
        """
        pull = 2 * self.proximal_weight
        if not self.noise:
            chance = instance_softmax_chance(len(self.bank.rows_ND))
            return LossReferences(chance=chance + pull, collapse=chance)
        # Z stays that of random rows, so equal embeddings have a far higher P than a model at chance.
        logit = 1 / self.tau - math.log(_mean_exponential(1 / self.tau, self.bank.rows_ND.shape[1]) * self.noise)
        collapse = _softplus(-logit) + self.noise * _softplus(logit)
        return LossReferences(chance=instance_nce_chance(self.noise) + pull, collapse=collapse)


def _mean_exponential(scale: float, dimension: int) -> float:
    """E[exp(scale · cosine)] for random directions: ₀F₁(; P / 2; scale² / 4), a series of positive terms."""
    total = term = 1.0
    for k in range(1, 10_000):
        term *= scale**2 / 4 / ((dimension / 2 + k - 1) * k)
        total += term
        if term < 1e-12 * total:
            break
    return total


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
