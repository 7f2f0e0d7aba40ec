"""The items that images in folders become: an id, and metadata from the folders and from a table."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from embedserve.errors import InvalidInput

ROOT_KEY = "root"
"""Metadata key for the name of the folder that an item was added from."""


@dataclass(frozen=True)
class FolderItem:
    """An image file, and the id and metadata of its item."""

    id: str
    path: Path
    root: str
    """Name of the folder that was given."""
    metadata: Mapping[str, Any]
    """Without the root, unless a table sets it."""


@dataclass(frozen=True)
class Found:
    """The images of folders."""

    items: Sequence[FolderItem]
    unreadable: Sequence[tuple[Path, str]]
    """Folders inside that could not be read, and why."""
    excluded: Sequence[Path]
    """Files and folders that were left out on request."""
    passed_over: Mapping[str, int]
    """Kind → files or folders that are no images."""


def find(folders: Sequence[Path], patterns: Sequence[str] = ()) -> Found:
    """The images of folders and of lists of files, sorted by folder and path.

    Raises:
        DataError: a folder has no images.
        InvalidInput: two files would have the same id.
    """
    from embedserve.cli.passed_over import say_left_out
    from embedserve.folder.exclude import Exclude
    from embedserve.folder.find import find as find_images

    exclude = Exclude(patterns)
    found = find_images(folders, exclude)
    roots = {folder: root_of(folder) for folder in folders}
    items = [
        FolderItem(file.name, file.path, roots[file.source], _metadata_of(PurePosixPath(file.name)))
        for file in found.files
    ]
    say_left_out(found, exclude)
    return Found(items, found.unreadable, found.excluded, found.passed_over)


def root_of(folder: Path) -> str:
    """The name of a folder, also of "." and of one that is a link; of the whole file system "/".

    That of a list of files is that of the folder that it is in.
    """
    from embedserve.folder.list_file import list_file

    if (listed := list_file(folder)) is not None:
        folder = listed.parent
    # Not the folder that a link leads to: photos → photos-2026-11 stays photos when it is switched.
    name = Path(os.path.abspath(folder)).name  # noqa: PTH100
    return os.fsencode(name).decode("utf-8", "replace") or "/"


def with_table(items: Sequence[FolderItem], table: Path) -> list[FolderItem]:
    """The items with the metadata of a table, which overrides that of the folders.

    Raises:
        InvalidInput: the table is malformed, or it has rows and none is about one of the items.
    """
    from embedserve.cli.metadata_table import read_table
    from embedserve.cli.terminal.output import printable, say

    read = read_table(table)
    for note in read.notes:
        say(printable(note))
    rows = read.rows
    unused = rows.keys() - {item.id for item in items}
    if unused:
        example = printable(min(unused))
        if items and len(unused) == len(rows):
            raise InvalidInput(
                f"none of the {len(rows)} rows in {table} matches an image: the first image is"
                f" {printable(items[0].id)!r}, and a row has {example!r}",
                hint="write paths relative to the folder that is added, with forward slashes",
            )
        say(f"{len(unused)} of {len(rows)} rows in {table} match no image, such as {example!r}")
    return [replace(item, metadata={**item.metadata, **rows.get(item.id, {})}) for item in items]


def _metadata_of(relative: PurePosixPath) -> dict[str, str]:
    if len(relative.parts) == 1:
        return {}
    return {"label": relative.parts[0], "folder": str(relative.parent)}
