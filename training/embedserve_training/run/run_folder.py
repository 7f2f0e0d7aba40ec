"""The run folder: its files, its lock, and the plan of the run in ``plan.json``."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedserve.atomic_write import make_private_directory, write_text
from embedserve.errors import TrainingError
from embedserve_training.data.folders import Skipped
from embedserve_training.plan.config import Settings
from embedserve_training.run import image_list

FORMAT = 2
"""Of ``plan.json`` and of the checkpoint. Format 1 also stored the state of torch's global generator, which now follows
from seed and step."""
CHECKPOINT = "checkpoint.pt"
PLAN = "plan.json"
METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
SKIPPED = "skipped.txt"
SAMPLES = "samples.npy"
CACHE = "cache"


@dataclass(frozen=True, kw_only=True)
class StoredPlan:
    """The contents of ``plan.json``."""

    config: Mapping[str, Any]
    """The ``TrainConfig`` that the run was started with."""
    settings: Settings
    sources: Mapping[str, str]
    """Source of each setting, as in ``PlanEntry``."""
    preprocess: Mapping[str, Any]
    """The PreprocessSpec of the encoder."""
    data: Mapping[str, Any]
    """Folder, fingerprint and number of the images."""
    versions: Mapping[str, str]


def write_plan(stored: StoredPlan, run: Path) -> None:
    """Write ``plan.json``."""
    document = {name: getattr(stored, name) for name in StoredPlan.__dataclass_fields__}
    document |= {"format": FORMAT, "settings": stored.settings.to_json()}
    write_text(run / PLAN, json.dumps(document, indent=2) + "\n")


def read_plan(run: Path) -> StoredPlan:
    """The contents of ``plan.json``.

    Raises:
        TrainingError: the file does not exist or cannot be understood.
    """
    path = run / PLAN
    try:
        document = json.loads(path.read_text())
        document.pop("format")
        return StoredPlan(**{**document, "settings": Settings.from_json(document["settings"])})
    except FileNotFoundError:
        raise no_run(run) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path} cannot be understood: {error!r}", hint="start over with --fresh") from error


def no_run(run: Path) -> TrainingError:
    """The error about a folder without a run."""
    return TrainingError(f"{run} holds no training run", hint=f"start one: embedserve train FOLDER -o {run}")


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Create the run folder and keep other processes from training in it; the lock ends with the process.

    Raises:
        TrainingError: the folder cannot be created, or another process is training in it.
    """
    try:
        # With the images of the run in it, decoded.
        make_private_directory(run)
        lock = (run / ".lock").open("w")
    except OSError as error:
        raise TrainingError(
            f"the run folder {run} cannot be created: {error.strerror}", hint="choose another one: -o FOLDER"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainingError(
                f"another process is training in {run}", hint="wait for it, or use another folder: -o FOLDER"
            ) from None
        yield


def clear(run: Path) -> None:
    """Remove the files of an earlier run, but not its decoded images."""
    for name in (CHECKPOINT, PLAN, METRICS, SAMPLES, image_list.NAME):
        (run / name).unlink(missing_ok=True)
    shutil.rmtree(run / TENSORBOARD, ignore_errors=True)


def write_skipped(skipped: tuple[Skipped, ...], run: Path) -> Path:
    """Write ``skipped.txt``, one line for each image that was left out, and return its path."""
    path = run / SKIPPED
    path.write_text("".join(f"{entry.path}\t{entry.reason}\n" for entry in skipped), errors="surrogateescape")
    return path
