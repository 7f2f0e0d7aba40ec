"""The images of what a command was given: folders, lists of files, and files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from embedserve.errors import DataError, InvalidInput
from embedserve.folder.exclude import Exclude
from embedserve.folder.list_file import list_file, read_list
from embedserve.folder.scan import RULE, ScanRule, no_images, scan


@dataclass(frozen=True)
class ImageFile:
    """An image file."""

    name: str
    """Relative to its source, with forward slashes."""
    path: Path
    source: Path
    """The folder, list (as given, with its @) or file that it was found by."""


@dataclass(frozen=True)
class Images:
    """The images of several sources."""

    files: Sequence[ImageFile]
    """By source, and within a folder by name."""
    passed_over: Counter[str]
    """Kind → files or folders that are no images for us."""
    unreadable: Sequence[tuple[Path, str]]
    """What could not be read, and why; also lines of a list that lead to no file."""
    broken: Sequence[Path]
    """Links that lead to nothing, without the suffix of an image."""
    excluded: Sequence[Path]
    """Files and folders that were left out on request."""


def find(
    sources: Sequence[Path],
    exclude: Exclude | None = None,
    *,
    rule: ScanRule = RULE,
    files_too: bool = False,
    unique: bool = True,
) -> Images:
    """The images of all sources.

    Args:
        sources: folders, and lists of files as ``@NAME``.
        exclude: what to leave out of folders and lists.
        rule: what is an image in a folder. In a list every file is one.
        files_too: a source may be a file, which is an image and never left out.
        unique: refuse two files of one name.

    Raises:
        DataError: a source is missing, or has no images and nothing that could not be read.
        InvalidInput: two files would have the same name.
    """
    files: list[ImageFile] = []
    passed_over: Counter[str] = Counter()
    unreadable: list[tuple[Path, str]] = []
    excluded: list[Path] = []
    broken: list[Path] = []
    for source in sources:
        before = len(files), len(unreadable)
        counts: Counter[str] = Counter()
        examples: dict[str, str] = {}
        left_out: list[Path] = []
        if (listed := list_file(source)) is not None:
            _read_listed(source, listed, exclude, files, unreadable, left_out)
        elif files_too and not source.is_dir():
            files.append(ImageFile(source.name, source, source))
        else:
            if not source.is_dir():
                what = "is a file" if source.is_file() else "does not exist"
                raise DataError(f"{source} {what}", hint="give a folder of images; its subfolders are read too")
            found = scan(source, exclude, rule)
            files += [ImageFile(name, source / name, source) for name in found.images]
            unreadable += found.unreadable
            broken += found.broken
            counts, examples, left_out = found.passed_over, found.examples, list(found.excluded)
        if (len(files), len(unreadable)) == before:
            raise no_images(str(source), counts, examples, left_out[0].name if left_out else "")
        passed_over.update(counts)
        excluded += left_out
    if unique:
        _check_names(files)
    return Images(files, passed_over, unreadable, broken, excluded)


def _read_listed(
    source: Path,
    listed: Path,
    exclude: Exclude | None,
    files: list[ImageFile],
    unreadable: list[tuple[Path, str]],
    excluded: list[Path],
) -> None:
    for name, path in read_list(listed):
        if exclude is not None and _is_excluded(exclude, Path(name)):
            excluded.append(path)
        elif path.is_dir():
            unreadable.append((path, f"it is a folder, and {listed} is a list of files"))
        elif not os.path.lexists(path):
            unreadable.append((path, f"there is no such file, and {listed} names it"))
        else:
            files.append(ImageFile(name, path, source))


def _is_excluded(exclude: Exclude, name: Path) -> bool:
    """Whether a file or one of the folders that it is in is left out."""
    folders = [parent for parent in name.parents if parent.parts]
    return any([exclude(name, is_folder=False), *(exclude(folder, is_folder=True) for folder in folders)])


def _check_names(files: Sequence[ImageFile]) -> None:
    first: dict[str, ImageFile] = {}
    for file in files:
        other = first.setdefault(file.name, file)
        if other is not file and other.path == file.path:
            raise InvalidInput(f"{file.path} is given twice", hint="name each folder once, and none inside another")
        if other is not file:
            raise InvalidInput(
                f"{other.path} and {file.path} would both get the name {file.name!r}",
                hint="give the folder that contains both folders, or one of them at a time",
            )
