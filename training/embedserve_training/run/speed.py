"""The speed of this CPU at training, measured in about half a second before a plan that depends on it."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from embedserve.cores import usable_cores
from embedserve_training import augment
from embedserve_training.networks import backbones
from embedserve_training.plan import cost
from embedserve_training.plan.sizes import SMALL_CNN

_SIZE_PX, _CACHED_PX, _VIEWS = 32, 37, 32
_SIZE_PX, _CACHED_PX, _VIEWS = 32, 37, 32
_AT_MOST_S, _REPEATS = 0.5, 6
_SHARED = 0.85
"""Speed of each of several threads over that of a single one."""


def measure(clock: Callable[[], float] = time.thread_time) -> float:
    """GFLOP/s of small-cnn at 32 px, forward and backward, with the augmentation of its views, on all cores.

    One thread is timed, by the time that it has on its core: whatever else runs at the same moment, a machine has one
    speed and a command one plan. The fastest of a few batches counts.

    Args:
        clock: seconds.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        fastest_s = _fastest_batch_s(clock)
    finally:
        torch.set_num_threads(threads)
    at_once = min(threads, usable_cores())
    gflop = (cost.gflop_per_image("simclr", SMALL_CNN, _SIZE_PX) or 0.0) / 2 * _VIEWS
    return gflop / max(fastest_s, 1e-9) * (at_once * _SHARED if at_once > 1 else 1)


def _fastest_batch_s(clock: Callable[[], float]) -> float:
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
    return fastest_s
