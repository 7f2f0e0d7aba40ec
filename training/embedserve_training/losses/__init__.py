"""Losses of self-supervised learning as pure functions, one module per method.

They compute in fp32, or in fp64 for fp64 inputs (``dtypes.at_least_fp32``). They know nothing of models, devices or
processes: the gather and the all-reduce are passed in (``losses/protocols.py``). Each returns the loss and detached
scalars for the metrics; ``*_chance`` is the loss of a model that has learned nothing.
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
