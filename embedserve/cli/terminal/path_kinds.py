"""What a path is, and why it is not what a command takes there; imported when a command has a path to check."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_OTHER = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
_HINTS = {
    "images": "give an image, a folder of images, or a list of files as @NAME",
    "folder": "give a folder of images, or a list of files as @NAME",
    "run": "give the folder that embedserve train -o wrote",
    "encoder": "give the file that embedserve export wrote",
    "subject": "give the folder that embedserve train -o wrote, or the file that embedserve export wrote",
    "parquet": "give the file that embedserve collection export wrote, or another one in Parquet",
    "backup": "give the file that embedserve collection backup wrote",
    "data": "give the folder for the collections; a new one is created",
    "list": "a list is a text file with the path of an image on each line",
    "file": "give a file",
}
"""What is wanted → what to type."""
_FOLDERS = {"images", "folder", "run", "subject", "data"}
_FILES = {"images", "encoder", "subject", "parquet", "backup", "list", "file"}


def holds_run(path: Path) -> bool:
    """Whether a folder is that of a training run."""
    return (path / "plan.json").exists() or (path / "checkpoint.pt").exists()


def wrong(path: Path, wanted: str) -> tuple[str, str] | None:
    """For a path that is there: what it is instead of what is wanted, and what to type; None if it is right.

    Args:
        path: of something that exists, if only as a link.
        wanted: a key of ``_HINTS``.
    """
    hint = _HINTS[wanted]
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "is a link to something that is not there", hint
    except OSError as error:
        return f"cannot be read: {error.strerror}", "check the path and its permissions"
    if stat.S_ISDIR(mode):
        return _wrong_folder(path, wanted, hint)
    if not stat.S_ISREG(mode):
        return f"cannot be read: it is {_OTHER.get(stat.S_IFMT(mode), 'something else')}, not a regular file", hint
    if wanted not in _FILES:
        return _wrong_file(path, wanted, hint)
    if not os.access(path, os.R_OK):
        return "cannot be read: Permission denied", "check its permissions, or run as a user who may read it"
    if wanted == "parquet" and not _is_parquet(path):
        return "is not a Parquet file", hint
    return None


def _wrong_folder(path: Path, wanted: str, hint: str) -> tuple[str, str] | None:
    if wanted in _FOLDERS:
        if not os.access(path, os.R_OK | os.X_OK):
            return "cannot be read: Permission denied", "check its permissions, or run as a user who may read it"
        if wanted in {"run", "subject"} and not holds_run(path):
            return "holds no training run", f"start one: embedserve train FOLDER -o {path}"
        return None
    if wanted != "encoder":
        return "is a folder, not a file", hint
    if holds_run(path):
        hint = f"it holds a training run; make an encoder file of it: embedserve export {path}"
    return "is a folder, not an encoder file", hint


def _wrong_file(path: Path, wanted: str, hint: str) -> tuple[str, str]:
    if wanted == "run":
        if path.suffix == ".onnx":
            hint = "an encoder file is already exported; give the folder that embedserve train -o wrote"
        return "is a file, not the folder of a training run", hint
    return "is a file, not a folder", hint


def _is_parquet(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PAR1"
    except OSError:
        return True  # the reader of the file says why it cannot be read
