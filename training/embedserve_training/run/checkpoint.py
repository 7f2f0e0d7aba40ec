"""The checkpoint of a run.

It is written beside the old one, synced to the disk and then renamed, so the folder always holds one complete
checkpoint.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from embedserve.atomic_write import sync
from embedserve.errors import TrainingError
from embedserve_training.run.run_folder import CHECKPOINT, FORMAT, no_run


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """All that a run needs to continue exactly where it was.

    It holds no state of a random generator: everything random in a step follows from seed and step.
    """

    step: int
    """Steps taken. Epoch and position within it follow, since all epochs have the same number of steps."""
    seconds: float
    """Time spent training."""
    step_s: float
    """Time of the last step, by which a budget in minutes is divided into steps."""
    finished: bool
    method: Mapping[str, Any]
    """Weights and state of the method, heads included."""
    optimizer: Mapping[str, Any]
    whitening: Mapping[str, torch.Tensor] | None = None
    """The last layer of the served encoder (``whitening.Whitening``), fitted when a run ends or is stopped."""
    reserve_s: float = 0.0
    """Seconds of a budget in minutes that are kept for what follows the last step; 0 in files of older versions."""


def save(checkpoint: Checkpoint, run: Path) -> None:
    """Replace the checkpoint of a run.

    Raises:
        TrainingError: the disk is full or the folder not writable; the old checkpoint is kept.
    """
    document = {"format": FORMAT, **{name: getattr(checkpoint, name) for name in Checkpoint.__dataclass_fields__}}
    partial = run / f".{CHECKPOINT}.partial"
    try:
        with partial.open("wb") as out:
            torch.save(document, out)
            out.flush()
            os.fsync(out.fileno())
        partial.replace(run / CHECKPOINT)
        sync(run)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        partial.unlink(missing_ok=True)
        raise TrainingError(f"the checkpoint cannot be written to {run}: {error}") from error


def load(run: Path, device: str = "cpu") -> Checkpoint:
    """The checkpoint of a run.

    Raises:
        TrainingError: it does not exist or cannot be read.
    """
    path = run / CHECKPOINT
    if not path.exists():
        raise no_run(run)
    try:
        document = torch.load(path, map_location=device, weights_only=True)
        version = document.pop("format")
        if version > FORMAT:
            raise TrainingError(f"{path} has format {version}; this embedserve reads up to {FORMAT}")
        document.setdefault("reserve_s", 0.0)
        return Checkpoint(**{name: document[name] for name in Checkpoint.__dataclass_fields__})
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        raise TrainingError(f"the checkpoint {path} cannot be read: {error}", hint="start over with --fresh") from error


def load_weights(method: nn.Module, saved: Checkpoint, run: Path) -> None:
    """Load the weights and the state of a checkpoint into its method.

    Raises:
        TrainingError: they do not fit this network.
    """
    try:
        method.load_state_dict(saved.method)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(
            f"the checkpoint in {run} does not fit the network of its plan: {reason}",
            hint="other versions may have written it, plan.json names them; --fresh starts over",
        ) from error
