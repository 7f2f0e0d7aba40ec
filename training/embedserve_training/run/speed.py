"""The speed of this CPU at training, measured in about half a second before a plan that depends on it."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from embedserve_training import augment
from embedserve_training.networks import backbones
from embedserve_training.plan import cost
from embedserve_training.plan.sizes import SMALL_CNN

_SIZE_PX, _CACHED_PX, _VIEWS = 32, 37, 32
_AT_MOST_S, _REPEATS = 0.5, 8


def measure(clock: Callable[[], float] = time.perf_counter) -> float:
    """GFLOP/s of small-cnn at 32 px, forward and backward, with the augmentation of its views.

    The fastest of up to eight batches counts, so that other work on the machine for a moment does not.

    Args:
        clock: seconds.
    """
    with torch.random.fork_rng(devices=[]):
        network = backbones.build(SMALL_CNN, _SIZE_PX).to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(0)
    pixels_BTTC = torch.randint(0, 256, (_VIEWS, _CACHED_PX, _CACHED_PX, 3), generator=generator).to(torch.uint8)
    [recipe] = augment.PRESETS["small"]
    fastest_s, began = float("inf"), clock()
    for repeat in range(_REPEATS):
        start = clock()
        views_BCSS = augment.augment(pixels_BTTC, _SIZE_PX, recipe, generator, first=0, total=_VIEWS)
        network(views_BCSS).square().mean().backward()
        now = clock()
        if repeat:  # the first prepares the kernels
            fastest_s = min(fastest_s, now - start)
        if repeat and now - began > _AT_MOST_S:
            break
    gflop = cost.gflop_per_image("simclr", SMALL_CNN, _SIZE_PX) or 0.0
    return gflop / 2 * _VIEWS / max(fastest_s, 1e-9)
