"""The items that images in folders become: an id, and metadata from the folders and from a table."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from embedserve.cli.terminal.exclude import Exclude, say_excluded
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


def find(folders: Sequence[Path], patterns: Sequence[str] = ()) -> Found:
    """The images of the folders, sorted by folder and path.

    Raises:
        DataError: a folder has no images.
        InvalidInput: two files would have the same id.
    """
    from embedserve.cli.files import no_images, scan

    exclude = Exclude(patterns)
    items: dict[str, FolderItem] = {}
    unreadable: list[tuple[Path, str]] = []
    excluded: list[Path] = []
    for folder in folders:
        found = scan(folder, exclude)
        if not found.images and not found.unreadable:
            raise no_images(folder, found)
        unreadable += found.unreadable
        excluded += found.excluded
        root = root_of(folder)
        for path in found.images:
            relative = path.relative_to(folder)
            item = FolderItem(relative.as_posix(), path, root, _metadata_of(relative))
            other = items.setdefault(item.id, item)
            if other is not item:
                raise InvalidInput(
                    f"{other.path} and {path} would both get the id {item.id!r}",
                    hint="add the folder that contains both folders, or use two collections",
                )
    say_excluded(exclude, excluded)
    return Found(list(items.values()), unreadable, excluded)


def root_of(folder: Path) -> str:
    """The name of a folder, also of "." and of one that is a link; of the whole file system "/"."""
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


def _metadata_of(relative: Path) -> dict[str, str]:
    if len(relative.parts) == 1:
        return {}
    return {"label": relative.parts[0], "folder": relative.parent.as_posix()}
