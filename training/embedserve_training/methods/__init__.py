"""The training methods by name. A new one is a file here, a line in METHODS and one in ``plan.config.METHODS``."""

from __future__ import annotations

from embedserve_training.distributed.collectives import SINGLE_PROCESS, Processes
from embedserve_training.methods.barlow_twins import BarlowTwins
from embedserve_training.methods.cpc import CPC
from embedserve_training.methods.instance_discrimination import InstanceDiscrimination
from embedserve_training.methods.method import Method
from embedserve_training.methods.moco import MoCo
from embedserve_training.methods.simclr import SimCLR
from embedserve_training.networks import backbones
from embedserve_training.plan.config import Settings

METHODS: dict[str, type[Method]] = {
    "simclr": SimCLR,
    "moco": MoCo,
    "barlow-twins": BarlowTwins,
    "instance-discrimination": InstanceDiscrimination,
    "cpc": CPC,
}


def build(settings: Settings, images: int, processes: Processes = SINGLE_PROCESS) -> Method:
    """The method of a run and its backbone, with fresh weights from torch's global generator.

    Args:
        settings: settings of the run.
        images: number of images in the dataset.
        processes: rank and number of the processes that train together.
    """
    backbone = backbones.build(settings.backbone, settings.size_px)
    return METHODS[settings.method].from_settings(settings, backbone, images, processes)
