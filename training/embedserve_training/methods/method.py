"""The interface of a training method to the trainer: its views, its loss, its state.

A method holds the backbone that will be served, and everything else it needs (heads, a queue, a memory bank, a momentum
copy) as submodules and registered buffers, so its ``state_dict`` is a complete checkpoint. All randomness of a step
comes from the generator that is passed in, so a step can be repeated.

Shapes: B images in this process, V views of each, C = 3 channels, S side in pixels, D numbers of the backbone's
embedding h, P numbers of the projection z.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor, nn

from embedserve_training.distributed.collectives import SINGLE_PROCESS, Processes
from embedserve_training.networks.backbones import Backbone
from embedserve_training.plan.config import Settings


@dataclass(frozen=True, kw_only=True)
class StepOutput:
    """The result of one step."""

    loss: Tensor
    """Scalar to minimise; in fp32, or in fp64 if the method is."""
    features_ND: Tensor
    """Embeddings h of the views that the trained backbone saw, first views first, detached: [V·B, D], or [B, D] if the
    second views go to a momentum copy."""
    projections_ND: Tensor
    """Projections z of the step's views, which the loss compares, [V·B, P], first views first, detached."""
    views: int = 2
    """V."""
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    """Detached scalars for the metrics, by name."""


@dataclass(frozen=True, kw_only=True)
class LossReferences:
    """Values of the loss that tell a reader where a run stands."""

    chance: float
    """The loss of embeddings without information."""
    collapse: float
    """The loss of embeddings that are all equal."""


class Method(nn.Module):
    """Base of the training methods.

    Args:
        backbone: the network that is trained, and served with whole images.
        processes: rank and number of the processes that train together.
    """

    views = 2
    """Number of augmented views of each image that ``forward`` takes."""
    global_batch_norm = False
    """Whether batch-norm takes its statistics over the global batch, as published for the method."""

    def __init__(self, backbone: Backbone, processes: Processes = SINGLE_PROCESS) -> None:
        super().__init__()
        self.backbone = backbone
        self.processes = processes

    @classmethod
    def from_settings(cls, settings: Settings, backbone: Backbone, images: int, processes: Processes) -> Self:
        """The method with the settings of a run and fresh weights from torch's global generator.

        Args:
            settings: settings of the run.
            backbone: the network that is trained and served.
            images: number of images in the dataset, for methods that remember each.
            processes: rank and number of the processes that train together.
        """
        raise NotImplementedError

    def forward(self, views_VBCSS: Sequence[Tensor], indices_B: Tensor, generator: torch.Generator) -> StepOutput:
        """The loss of one batch, or of one part of it if gradients are accumulated.

        Args:
            views_VBCSS: ``views`` tensors, float [B, 3, S, S] within [0, 1].
            indices_B: position of each image in the dataset, int64; for methods that remember images.
            generator: a CPU generator, in the same state in every process.
        """
        raise NotImplementedError

    def loss_references(self, global_batch: int) -> LossReferences:
        """The loss at chance and in collapse, for this number of images per step over all processes."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Update momentum copies, queues and banks; called after each step of the optimiser."""

    def networks(self) -> list[nn.Module]:
        """The expensive parts, each with one tensor in and out; compiled if the settings say so."""
        return [self.backbone]
