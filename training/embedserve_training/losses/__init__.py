"""Losses of self-supervised learning as pure functions in fp32, one module per method.

They know nothing of models, devices or processes: joining and adding up over processes is passed in
(``losses/protocols.py``). Each returns the loss and detached scalars that say more than the loss does; ``*_chance`` is
its value for a model that knows nothing.
"""

from __future__ import annotations

from embedserve_training.losses.barlow import barlow_twins, barlow_twins_chance, barlow_twins_rank_one
from embedserve_training.losses.cpc import cpc_chance, cpc_info_nce
from embedserve_training.losses.instance import (
    instance_nce,
    instance_nce_chance,
    instance_normaliser,
    instance_softmax,
    instance_softmax_chance,
    proximal,
)
from embedserve_training.losses.moco import info_nce, info_nce_chance
from embedserve_training.losses.protocols import AllReduce, Gather
from embedserve_training.losses.simclr import nt_xent, nt_xent_chance

__all__ = [
    "AllReduce",
    "Gather",
    "barlow_twins",
    "barlow_twins_chance",
    "barlow_twins_rank_one",
    "cpc_chance",
    "cpc_info_nce",
    "info_nce",
    "info_nce_chance",
    "instance_nce",
    "instance_nce_chance",
    "instance_normaliser",
    "instance_softmax",
    "instance_softmax_chance",
    "nt_xent",
    "nt_xent_chance",
    "proximal",
]
