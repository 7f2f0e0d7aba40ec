"""A list of image files as a command takes it, ``@files.txt``: one path on each line.

A path is absolute, or relative to the folder of the list. Empty lines and lines that begin with ``#`` mean nothing (a
file whose name begins so is written ``./#name``). UTF-8, with or without a byte order mark; lines may end in CR LF.
"""

from __future__ import annotations

import os
from pathlib import Path

from embedserve.errors import DataError
from embedserve.regular_file import read_bytes


def list_file(source: Path) -> Path | None:
    """The file that ``@NAME`` names; None for anything else, also for a file or folder whose own name begins with @."""
    text = str(source)
    if not text.startswith("@") or len(text) < 2 or os.path.lexists(source):
        return None
    return Path(text[1:])


def read_list(path: Path) -> list[tuple[str, Path]]:
    """The files of a list: the name of each, with forward slashes, and its path; each once, in the order of the list.

    A name is relative to the folder of the list. A file outside has its whole path for a name, without the slash at
    the beginning.

    Raises:
        DataError: the list cannot be read, is not text in UTF-8, or names nothing.
    """
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"the list {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"the list {path} is not text in UTF-8", hint="one path on each line") from error
    files: dict[str, Path] = {}
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.removesuffix("\r")
        if not line.strip() or line.startswith("#"):
            continue
        if "\0" in line:
            raise DataError(f"line {number} of the list {path} has a zero byte", hint="one path on each line")
        name = _name(line, path.parent)
        files.setdefault(name, path.parent / line)
    if not files:
        raise DataError(f"the list {path} names no file", hint="one path on each line")
    return list(files.items())


def _name(line: str, folder: Path) -> str:
    absolute = os.path.normpath(os.path.join(os.path.abspath(folder), line))  # noqa: PTH100, PTH118
    relative = os.path.relpath(absolute, os.path.abspath(folder))  # noqa: PTH100
    outside = relative == ".." or relative.startswith(f"..{os.sep}")
    return Path(absolute.lstrip(os.sep) if outside else relative).as_posix()
