"""What training costs: GFLOP for an image, and passes over the images in a time. This module imports no torch.

The speed of a machine is measured once before a plan (``run/speed.py``) and is one of its facts, so a plan is a
function of what the user says and of the facts.
"""

from __future__ import annotations

from embedserve_training.plan.sizes import RESNET, SMALL_CNN, is_small

PASSES = 8
"""Passes over the images that a budget should allow: a contrastive loss has learned little after fewer."""

_TRAINING = 3
"""Work of forward and backward pass over that of the forward pass."""
# Operations of one forward pass, two for each multiplication with its addition, per pixel of a square image: 12,120
# multiplications for small-cnn, and 1.82e9 at 224 px for ResNet-18 (arXiv 1512.03385, table 1), whose stem for small
# images keeps four times as many rows and columns.
_FLOP_PER_PIXEL = {SMALL_CNN: 24_240, RESNET: 72_400}
_SMALL_STEM = 15


def gflop_per_view(backbone: str, size_px: int) -> float | None:
    """GFLOP of the forward pass of one view, within a tenth; None for a network that is not known here."""
    per_pixel = _FLOP_PER_PIXEL.get(backbone)
    if per_pixel is None:
        return None
    stem = _SMALL_STEM if backbone == RESNET and is_small(size_px) else 1
    return per_pixel * stem * size_px**2 / 1e9


def gflop_per_image(method: str, backbone: str, size_px: int) -> float | None:
    """GFLOP of a training step for each of its images; None for a network that is not known here.

    MoCo also sends each view through its key encoder, forward only. The overlapping patches of CPC have about five
    times the pixels of their image.
    """
    view = gflop_per_view(backbone, size_px)
    if view is None:
        return None
    forwards = {
        "simclr": 2 * _TRAINING,
        "barlow-twins": 2 * _TRAINING,
        "moco": 2 * _TRAINING + 2,
        "instance-discrimination": _TRAINING,
        "cpc": 5 * _TRAINING,
    }[method]
    return forwards * view


def passes_in(
    minutes: float, method: str, backbone: str, size_px: int, *, images: int, gflop_per_s: float
) -> float | None:
    """Passes over the images that fit into a time; None for a network that is not known here."""
    cost = gflop_per_image(method, backbone, size_px)
    return None if cost is None else 60 * minutes * gflop_per_s / (cost * images)
