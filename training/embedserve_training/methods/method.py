"""What every training method gives the trainer: its views, its loss, its state.

A method holds the backbone that is served in the end, and whatever else it needs (heads, a queue, a memory bank, a
momentum copy) as submodules and registered buffers, so that a checkpoint of its ``state_dict`` is a checkpoint of all
of it. Whatever is random in a step comes from the generator that is passed in, so that a step can be taken again.

Shapes: B images in this process, V views of each, C = 3 channels, S side in pixels, D numbers of the backbone's
embedding h, P numbers of the projection z.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor, nn

from embedserve_training.distributed.collectives import ALONE, Processes
from embedserve_training.networks.backbones import Backbone
from embedserve_training.plan.config import Settings


@dataclass(frozen=True, kw_only=True)
class StepOutput:
    """What one step gives."""

    loss: Tensor
    """Scalar in fp32 to minimise."""
    features_ND: Tensor
    """Embeddings h of the views that the trained backbone saw, first views first, detached: [V·B, D], or [B, D] where
    the second views go to a momentum copy."""
    projections_ND: Tensor
    """What the loss compares: z of the step's views, [V·B, P], first views first, detached."""
    views: int = 2
    """V."""
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    """Detached scalars for the metrics, by name."""


@dataclass(frozen=True, kw_only=True)
class LossReferences:
    """Values of the loss by which a person can tell where a run is."""

    chance: float
    """The loss of embeddings that say nothing."""
    collapse: float
    """The loss of embeddings that are all alike."""


class Method(nn.Module):
    """Base of the training methods.

    Args:
        backbone: what is trained; given whole images it is what is served.
        processes: those that train together.
    """

    views = 2
    """Augmented views of each image that ``forward`` takes."""
    global_batch_norm = False
    """Whether batch-norm takes its statistics over the batch of all processes, as published for the method."""

    def __init__(self, backbone: Backbone, processes: Processes = ALONE) -> None:
        super().__init__()
        self.backbone = backbone
        self.processes = processes

    @classmethod
    def from_settings(cls, settings: Settings, backbone: Backbone, images: int, processes: Processes) -> Self:
        """The method that a run's settings describe, with fresh weights from torch's global generator.

        Args:
            settings: of the run.
            backbone: what is trained and served.
            images: number of images in the data, for methods that remember each.
            processes: those that train together.
        """
        raise NotImplementedError

    def forward(self, views_VBCSS: Sequence[Tensor], indices_B: Tensor, generator: torch.Generator) -> StepOutput:
        """The loss of one batch, or of one part of it where gradients are accumulated.

        Args:
            views_VBCSS: ``views`` tensors, float [B, 3, S, S] within [0, 1].
            indices_B: position of each image in the data, int64; for methods that remember images.
            generator: on the CPU; in the same state in every process.
        """
        raise NotImplementedError

    def loss_references(self, global_batch: int) -> LossReferences:
        """The loss at chance and in collapse, for this many images per step in all processes together."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Called after each step of the optimiser: momentum copies, queues and banks move on."""

    def networks(self) -> list[nn.Module]:
        """The parts that compute most, each with a plain tensor in and out; these are compiled if asked for."""
        return [self.backbone]
