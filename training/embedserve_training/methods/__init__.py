"""The training methods by name. A new one is a file in this folder and a line in METHODS."""

from __future__ import annotations

from embedserve_training.backbones import Backbone
from embedserve_training.config import Settings
from embedserve_training.method import Method
from embedserve_training.methods.simclr import SimCLR

METHODS: dict[str, type[Method]] = {"simclr": SimCLR}


def build(settings: Settings, backbone: Backbone) -> Method:
    """The method of a run around its backbone, with fresh weights from torch's global generator."""
    return METHODS[settings.method].from_settings(settings, backbone)
