"""Images in folders, for commands that send them to a server."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from embedserve.cli.terminal.exclude import Exclude
from embedserve.errors import DataError


@dataclass(frozen=True)
class Folder:
    """What a folder contains, judged by file names."""

    images: Sequence[Path]
    """Files with the suffix of an image, sorted; without hidden ones."""
    others: Sequence[Path]
    """All other files that are not hidden, sorted."""
    unreadable: Sequence[tuple[Path, str]]
    """Folders inside that could not be read, and why."""
    excluded: Sequence[Path] = ()
    """Files, and folders with everything in them, that were left out on request, sorted."""


def scan(folder: Path, exclude: Exclude | None = None) -> Folder:
    """List a folder and all folders in it.

    Links are followed, but each folder is read once, by its real path if that is inside; circular links therefore end.

    Args:
        folder: to list.
        exclude: what to leave out; a folder that is left out is not read.

    Raises:
        DataError: the folder itself cannot be read.
    """
    from embedserve.images.formats import SUFFIXES

    images: list[Path] = []
    others: list[Path] = []
    unreadable: list[tuple[Path, str]] = []
    excluded: list[Path] = []
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    links: list[Path] = []
    while waiting or links:
        # Links come last, so that a file has its real path if that is inside.
        current = waiting.pop() if waiting else links.pop(0)
        try:
            entries = _entries(current, seen)
        except OSError as error:
            if current == folder:
                raise DataError(f"{folder} cannot be read: {error.strerror}") from error
            unreadable.append((current, error.strerror or str(error)))
            continue
        for entry in entries:
            path = current / entry.name
            if exclude is not None and exclude(path.relative_to(folder), is_folder=entry.is_dir()):
                excluded.append(path)
            elif entry.is_dir():
                (links if entry.is_symlink() else waiting).append(path)
            elif path.suffix.lower() not in SUFFIXES:
                others.append(path)
            else:
                # Broken links and pipes too, so that they are reported when they are read.
                images.append(path)
    return Folder(sorted(images), sorted(others), sorted(unreadable), sorted(excluded))


def no_images(folder: Path, found: Folder) -> DataError:
    """The error for a folder without images; names what it has instead."""
    from embedserve.images.formats import SUFFIXES

    seen = ""
    if found.others:
        names = ", ".join(path.name for path in found.others[:3])
        files = "1 file" if len(found.others) == 1 else f"{len(found.others)} files"
        seen = f" ({files} seen: {names}{', …' if len(found.others) > 3 else ''})"
    if found.excluded:
        seen += f" beside what --exclude leaves out, such as {found.excluded[0].name}"
    return DataError(f"{folder} has no images{seen}", hint=f"images are files ending in {' '.join(SUFFIXES)}")


def _entries(folder: Path, seen: set[tuple[int, int]]) -> list[os.DirEntry[str]]:
    """The entries of a folder, sorted, without hidden ones; none if it was read before."""
    stat = folder.stat()
    if (stat.st_dev, stat.st_ino) in seen:
        return []
    seen.add((stat.st_dev, stat.st_ino))
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
