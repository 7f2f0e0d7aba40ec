"""The rules that depend on the side of the images, in one place. This module imports no torch.

Images of up to SMALL_SIDE_PX are small: they have augmentations, patches and batches of their own, a ResNet gets a stem
that keeps their pixels, and the encoder sees them whole. Which network they get depends on the device as well.
"""

from __future__ import annotations

SMALL_SIDE_PX = 64
"""The largest side of a small image."""
SMALL_CNN = "small-cnn"
RESNET = "resnet18"
STRIDE_PX = 32
"""Of the usual networks: other sides are cut off within them."""

_SMALL_CNN_BELOW_PX = 128
"""On a CPU. ResNet-18 with the stem for small images takes 4.44 GFLOP for one view of 64 px, small-cnn 0.10: on two
cores that was 7 images/s, 21 steps in seven minutes, and a recall@1 of .13 on 7,400 drawings of 64 to 95 px, where raw
pixels had .35 and small-cnn at 32 px .42."""
_LARGEST_ON_CPU_PX, _LARGEST_ON_GPU_PX = 96, 224
_LEAST_PX = 16
_LEAST_CHOSEN_PX = 32
"""Images are not made smaller than this to get more passes."""
_LADDER_PX = 8
"""Between the sides that are tried, so that a speed measured twice rarely gives two plans."""


def is_small(size_px: int) -> bool:
    """Whether images of this side are small."""
    return size_px <= SMALL_SIDE_PX


def network_for(size_px: int, *, on_cpu: bool) -> str:
    """The network for images of this side: small-cnn on a CPU below 128 px, on a GPU below 64 px; else ResNet-18."""
    return SMALL_CNN if size_px < (_SMALL_CNN_BELOW_PX if on_cpu else SMALL_SIDE_PX) else RESNET


def usual_side_px(side_px: int, backbone: str, *, on_cpu: bool) -> int:
    """The side at which a network is trained on images of this shorter side, if time does not matter.

    At most that of the images but for very small ones, and a multiple of the stride of the usual networks unless the
    images are small. On a CPU small-cnn gets up to 64 px.
    """
    if on_cpu and backbone == SMALL_CNN:
        return max(min(side_px, SMALL_SIDE_PX), _LEAST_PX)
    if side_px < SMALL_SIDE_PX:
        return max(side_px, _LEAST_PX)
    return min(side_px // STRIDE_PX * STRIDE_PX, _LARGEST_ON_CPU_PX if on_cpu else _LARGEST_ON_GPU_PX)


def smaller_sides_px(size_px: int) -> list[int]:
    """The sides below this one that small-cnn may be trained at to get more passes, falling; none below 32 px."""
    first = min((size_px - 1) // _LADDER_PX * _LADDER_PX, SMALL_SIDE_PX)
    return list(range(first, _LEAST_CHOSEN_PX - 1, -_LADDER_PX))
