"""What every training method gives the trainer: its views, its loss, its state.

A method holds the backbone that is served in the end, and whatever else it needs (heads, a queue, a memory bank, a
momentum copy) as submodules and registered buffers, so that a checkpoint of its ``state_dict`` is a checkpoint of all
of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from torch import Tensor, nn

from embedserve_training.backbones import Backbone
from embedserve_training.config import Settings


@dataclass(frozen=True, kw_only=True)
class StepOutput:
    """What one step gives."""

    loss: Tensor
    """Scalar in fp32 to minimise."""
    features_ND: Tensor
    """Backbone features of the step's views, detached; the monitor takes their effective rank."""
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    """Detached scalars for the metrics, by name."""


class Method(nn.Module):
    """Base of the training methods.

    Args:
        backbone: what is trained and served.
    """

    views = 2
    """Augmented views of each image that ``forward`` takes."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    @classmethod
    def from_settings(cls, settings: Settings, backbone: Backbone) -> Self:
        """The method that a run's settings describe, with fresh weights from torch's global generator."""
        raise NotImplementedError

    def forward(self, views_VBCSS: Sequence[Tensor], indices_B: Tensor) -> StepOutput:
        """One step.

        Args:
            views_VBCSS: ``views`` tensors, float [B, 3, S, S] within [0, 1].
            indices_B: position of each image in the data, int64; for methods that remember images.
        """
        raise NotImplementedError

    def chance(self, batch_size: int) -> float:
        """The loss of embeddings that say nothing, to which the progress line compares."""
        raise NotImplementedError

    def after_step(self, progress: float) -> None:
        """Called after each step of the optimiser, with the share of the budget used (0–1), for momentum copies."""
