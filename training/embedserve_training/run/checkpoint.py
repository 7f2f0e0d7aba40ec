"""The files of a run folder: its plan, its checkpoint and its sample images.

A checkpoint is written beside the old one, forced to the disk and then renamed, so that whatever happens the folder
holds one whole checkpoint.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from embedserve.atomic_write import sync, write_text
from embedserve.errors import TrainingError
from embedserve_training.plan.config import Settings

FORMAT = 2
"""1 held the state of torch's global generator beside the rest; it now follows from seed and step."""
CHECKPOINT = "checkpoint.pt"
PLAN = "plan.json"
METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
SKIPPED = "skipped.txt"
SAMPLES = "samples.npy"
CACHE = "cache"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """All that a run needs to go on exactly where it was.

    No state of a random generator is among it: all that is random in a step follows from seed and step.
    """

    step: int
    """Steps done. Epoch and position within it follow from it, since every epoch has equally many steps."""
    seconds: float
    """Time spent training."""
    step_s: float
    """Time of the last step; a budget in minutes is divided by it."""
    finished: bool
    method: Mapping[str, Any]
    """Weights and state of the method, heads included."""
    optimizer: Mapping[str, Any]
    whitening: Mapping[str, torch.Tensor] | None = None
    """The last layer of the served encoder (``whitening.Whitening``), fitted when a run ends or is stopped."""


@dataclass(frozen=True, kw_only=True)
class StoredPlan:
    """What ``plan.json`` says of a run."""

    config: Mapping[str, Any]
    """The ``TrainConfig`` that the run was started with."""
    settings: Settings
    sources: Mapping[str, str]
    """Source of each setting: default, auto or flag."""
    preprocess: Mapping[str, Any]
    """The PreprocessSpec of the encoder."""
    data: Mapping[str, Any]
    """Folder, fingerprint and number of the images."""
    versions: Mapping[str, str]


def save(checkpoint: Checkpoint, run: Path) -> None:
    """Write the checkpoint of a run in place of the one before.

    Raises:
        TrainingError: the disk is full or the folder not writable; the old checkpoint is still there.
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
        TrainingError: there is none, or it cannot be read.
    """
    path = run / CHECKPOINT
    if not path.exists():
        raise TrainingError(f"{run} holds no training run", hint=f"start one: embedserve train FOLDER -o {run}")
    try:
        document = torch.load(path, map_location=device, weights_only=True)
        version = document.pop("format")
        if version > FORMAT:
            raise TrainingError(f"{path} has format {version}; this embedserve reads up to {FORMAT}")
        return Checkpoint(**{name: document[name] for name in Checkpoint.__dataclass_fields__})
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        raise TrainingError(f"the checkpoint {path} cannot be read: {error}", hint="start anew with --fresh") from error


def load_weights(method: nn.Module, saved: Checkpoint, run: Path) -> None:
    """Put the weights and the state of a checkpoint into its method.

    Raises:
        TrainingError: they are not those of this network.
    """
    try:
        method.load_state_dict(saved.method)
    except RuntimeError as error:
        what = " ".join(str(error).split())[:200]
        raise TrainingError(
            f"the checkpoint in {run} does not fit the network of its plan: {what}",
            hint="it may be of other versions, which plan.json names; --fresh begins anew",
        ) from error


def write_plan(stored: StoredPlan, run: Path) -> None:
    """Write ``plan.json``."""
    document = {name: getattr(stored, name) for name in StoredPlan.__dataclass_fields__}
    document |= {"format": FORMAT, "settings": stored.settings.to_json()}
    write_text(run / PLAN, json.dumps(document, indent=2) + "\n")


def read_plan(run: Path) -> StoredPlan:
    """What ``plan.json`` says.

    Raises:
        TrainingError: there is none, or it is not understood.
    """
    path = run / PLAN
    try:
        document = json.loads(path.read_text())
        document.pop("format")
        return StoredPlan(**{**document, "settings": Settings.from_json(document["settings"])})
    except FileNotFoundError:
        raise TrainingError(
            f"{run} holds no training run", hint=f"start one: embedserve train FOLDER -o {run}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path} is not understood: {error!r}", hint="start anew with --fresh") from error
