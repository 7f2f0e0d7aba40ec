"""The run folder: its files, its lock, and the plan of the run in ``plan.json``."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedserve.atomic_write import check_outside_data, make_private_directory, write_text
from embedserve.errors import TrainingError
from embedserve.folder.kinds import passed_over_text
from embedserve_training.data.folders import Noted, Skipped
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
NOTES = "notes.txt"
SAMPLES = "samples.npy"
CACHE = "cache"
LOCK = ".lock"
_PARTIAL = (f".{PLAN}.partial", f".{SKIPPED}.partial")


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
        why = f"{error} is missing" if isinstance(error, KeyError) else getattr(error, "strerror", None) or error
        raise TrainingError(f"{path} cannot be understood: {why}", hint="start over with --fresh") from error


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
        lock = (run / LOCK).open("a")  # which empties nothing, should it be a link
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


def check_place(run: Path, images: Iterable[Path]) -> None:
    """Check that a run may be kept in this folder, before anything is written there.

    Args:
        run: the folder.
        images: folders with images of the run.

    Raises:
        TrainingError: it is the folder of the images or one above it, or holds something that is not a run.
        DataError: it is in the data directory of a server.
    """
    choose = "choose a new folder: -o FOLDER"
    check_outside_data(run)
    try:
        place = _identity(run)
        for folder in images if place is not None else ():
            if place == _identity(folder):
                raise TrainingError(f"the run folder {run} is the folder of the images", hint=choose)
            if place in map(_identity, folder.resolve().parents):
                raise TrainingError(f"the run folder {run} has the images in it: {folder}", hint=choose)
        if not os.path.lexists(run):
            return
        if not run.is_dir():
            raise TrainingError(f"the run folder {run} is not a folder", hint=choose)
        strangers = sorted(entry.name for entry in run.iterdir() if not _is_ours(entry))
        if strangers and not _is_run(run):
            more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
            raise TrainingError(
                f"the run folder {run} is not empty and holds no run: {strangers[0]!r}{more}",
                hint=choose,
            )
    except OSError as error:
        raise TrainingError(f"the run folder {run} cannot be read: {error.strerror}", hint=choose) from error


def _identity(folder: Path) -> tuple[int, int] | None:
    """What stays the same for every name and link of a folder; None if there is none."""
    try:
        status = folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino


def _is_run(run: Path) -> bool:
    """Whether a plan of ours is in a folder."""
    try:
        document = json.loads((run / PLAN).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and {"format", "settings", "preprocess"} <= document.keys()


def _is_ours(entry: Path) -> bool:
    """Whether something in a folder is what a run leaves that ended before it had a plan."""
    if not (entry.parent / LOCK).is_file():
        return False
    if entry.name == CACHE:
        return entry.is_dir() and not entry.is_symlink() and all(map(_is_cached, entry.iterdir()))
    return entry.name in (LOCK, SKIPPED, *_PARTIAL) and entry.is_file() and not entry.is_symlink()


def _is_cached(path: Path) -> bool:
    return path.is_file() and re.fullmatch(r"\.?[0-9a-f]{16}\.(u8|json|partial|json\.partial)", path.name) is not None


def clear(run: Path) -> None:
    """Remove the files of an earlier run, but not its decoded images."""
    for name in (CHECKPOINT, METRICS, SAMPLES, NOTES, image_list.NAME):
        (run / name).unlink(missing_ok=True)
    _remove_from(run / TENSORBOARD, lambda path: path.name.startswith("events.out.tfevents."))
    # The plan last: by it the folder is known as a run, also if this is interrupted.
    (run / PLAN).unlink(missing_ok=True)


def clear_cache(run: Path) -> None:
    """Remove the decoded images of a run."""
    _remove_from(run / CACHE, _is_cached)


def _remove_from(folder: Path, ours: Callable[[Path], bool]) -> None:
    """Remove our files in a folder, and the folder if nothing else is in it; what others put there stays."""
    if folder.is_symlink() or not folder.is_dir():
        return
    with suppress(OSError):  # whatever cannot be removed is no reason to fail
        for path in list(folder.iterdir()):
            if ours(path):
                path.unlink(missing_ok=True)
        folder.rmdir()


def write_skipped(skipped: tuple[Skipped, ...], run: Path, passed_over: Mapping[str, int] | None = None) -> Path:
    """Write ``skipped.txt``, one line for each image that was left out, and return its path.

    What is passed over as no image is counted by kind in a last line.
    """
    path = run / SKIPPED
    text = "".join(f"{entry.path}\t{entry.reason}\n" for entry in skipped)
    if passed_over:
        text += f"passed over\t{passed_over_text(passed_over)}\n"
    write_text(path, text)
    return path


def write_notes(notes: tuple[Noted, ...], run: Path) -> Path:
    """Write ``notes.txt``, a line for each thing that was decided for an image that is used, and return its path."""
    path = run / NOTES
    write_text(path, "".join(f"{entry.path}\t{entry.note}\n" for entry in notes))
    return path
