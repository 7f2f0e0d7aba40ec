"""Small instances of the five methods, and drawn batches for them.

Shapes: B images, V views of each, C = 3 channels, S side in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embedserve_training.distributed.collectives import SINGLE_PROCESS, Processes
from embedserve_training.methods.barlow_twins import BarlowTwins
from embedserve_training.methods.cpc import CPC
from embedserve_training.methods.instance_discrimination import InstanceDiscrimination
from embedserve_training.methods.method import Method
from embedserve_training.methods.moco import MoCo
from embedserve_training.methods.patches import Patches
from embedserve_training.methods.simclr import SimCLR
from embedserve_training.networks import backbones

SIZE_PX = 20
IMAGES = 24
PATCHES = Patches(size_px=SIZE_PX, patch_px=12, grid=3)


def small_cnn() -> backbones.Backbone:
    return backbones.build("small-cnn", SIZE_PX)


def simclr(processes: Processes = SINGLE_PROCESS, **changes: Any) -> SimCLR:
    values: dict[str, Any] = {"tau": 0.2, "projection": 16, "processes": processes}
    return SimCLR(small_cnn(), **values | changes)


def moco(processes: Processes = SINGLE_PROCESS, **changes: Any) -> MoCo:
    values: dict[str, Any] = {"tau": 0.2, "queue_size": 20, "momentum": 0.9, "bn_splits": 2, "projection": 16}
    values["processes"] = processes
    return MoCo(small_cnn(), **values | changes)


def barlow_twins(processes: Processes = SINGLE_PROCESS, **changes: Any) -> BarlowTwins:
    values: dict[str, Any] = {"hidden": 32, "projection": 16, "processes": processes}
    return BarlowTwins(small_cnn(), **values | changes)


def instance_discrimination(processes: Processes = SINGLE_PROCESS, **changes: Any) -> InstanceDiscrimination:
    values: dict[str, Any] = {"tau": 0.1, "projection": 16, "processes": processes}
    return InstanceDiscrimination(small_cnn(), IMAGES, **values | changes)


def cpc(processes: Processes = SINGLE_PROCESS, **changes: Any) -> CPC:
    values: dict[str, Any] = {"predict_steps": 2, "processes": processes}
    return CPC(small_cnn(), PATCHES, **values | changes)


BUILDERS: dict[str, Callable[..., Method]] = {
    "simclr": simclr,
    "moco": moco,
    "barlow-twins": barlow_twins,
    "instance-discrimination": instance_discrimination,
    "cpc": cpc,
}


def build(name: str, processes: Processes = SINGLE_PROCESS, *, seed: int = 0, **changes: Any) -> Method:
    """A method with the weights of a seed, in training mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BUILDERS[name](processes, **changes).train()


def in_double(method: Method) -> Method:
    """The method in fp64, with queue, bank and normaliser, so that rounding pushes no ReLU to its other side."""
    return method.double()


def drawn_views(method: Method, batch: int = 8, seed: int = 0) -> list[Tensor]:
    """V views of coloured rings on coloured ground, shifted and brightened between views: float [B, 3, S, S] each."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:SIZE_PX, 0:SIZE_PX]
    views = [np.empty((batch, 3, SIZE_PX, SIZE_PX), np.float32) for _ in range(method.views)]
    for image in range(batch):
        radius, colours = rng.integers(3, 8), rng.integers(0, 256, (2, 3)) / 255
        for view in views:
            centre_y, centre_x = rng.integers(7, 13, 2)
            ring = np.abs(np.hypot(y - centre_y, x - centre_x) - radius) < 1.5
            light = rng.integers(-20, 21) / 255
            inside, outside = colours
            view[image] = np.where(ring[..., None], inside, outside).transpose(2, 0, 1).clip(0.1, 0.9) + light
    return [torch.from_numpy(view) for view in views]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
