"""The files of one folder and of all folders in it: images, and what is passed over, counted by kind."""

from __future__ import annotations

import errno
import os
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from embedserve.errors import DataError
from embedserve.folder import kinds
from embedserve.folder.exclude import Exclude
from embedserve.images.formats import SUFFIXES
from embedserve.regular_file import regular

_MOST_KINDS = 50
"""Kinds that are counted one by one; names are untrusted, and each could have a suffix of its own."""


@dataclass(frozen=True)
class ScanRule:
    """What counts as an image in a folder."""

    links: bool = True
    """Whether links to folders are followed."""
    own_folders: bool = False
    """Whether folders are read that devices and programs keep for themselves, such as @eaDir."""
    contents: bool = True
    """Whether files without a known suffix are judged by their first bytes."""
    suffixes: frozenset[str] | None = None
    """The suffixes of images; None: those that are read on this machine."""

    def is_image_suffix(self, suffix: str) -> bool:
        """Whether a file is an image by its suffix, in lower case."""
        return kinds.is_image_suffix(suffix) if self.suffixes is None else suffix in self.suffixes


RULE = ScanRule()
OLDER = ScanRule(links=False, own_folders=True, contents=False, suffixes=frozenset(kinds.OLDER_SUFFIXES))
"""What ``train`` did before: runs that began with it go on with it, so that their images stay the same."""


@dataclass
class Folder:
    """What a folder contains."""

    root: Path
    images: Sequence[str] = ()
    """Paths relative to the folder, with forward slashes, sorted."""
    passed_over: Counter[str] = field(default_factory=Counter)
    """Kind → files, or folders with all they contain, that are no images for us."""
    examples: dict[str, str] = field(default_factory=dict)
    """Kind → the first one, relative to the folder."""
    broken: Sequence[Path] = ()
    """Links that lead to nothing and have not the suffix of an image, sorted; among those passed over too."""
    unreadable: Sequence[tuple[Path, str]] = ()
    """Folders and files without a suffix that could not be read, and why, sorted."""
    excluded: Sequence[Path] = ()
    """Files, and folders with everything in them, that were left out on request, sorted."""

    def pass_over(self, kind: str, name: str) -> None:
        """Count one more of a kind."""
        if kind not in self.passed_over and len(self.passed_over) >= _MOST_KINDS:
            kind = kinds.OTHER_SUFFIX
        self.passed_over[kind] += 1
        self.examples[kind] = min(self.examples.get(kind, name), name)


def scan(folder: Path, exclude: Exclude | None = None, rule: ScanRule = RULE) -> Folder:
    """List a folder and all folders in it.

    Links are followed, but each folder is read once, by its real path if that is inside; circular links therefore end.
    Broken links and pipes with the suffix of an image are among the images, and reported when they are read.

    Args:
        folder: to list.
        exclude: what to leave out; a folder that is left out is not read.
        rule: what is an image.

    Raises:
        DataError: the folder itself cannot be read.
    """
    found = Folder(folder)
    images: list[str] = []
    unreadable: list[tuple[Path, str]] = []
    excluded: list[Path] = []
    broken: list[Path] = []
    seen: set[object] = set()
    waiting, links = [""], deque[str]()
    while waiting or links:
        # Links come last, so that a file has its real path if that is inside.
        current = waiting.pop() if waiting else links.popleft()
        try:
            entries = _entries(folder / current, seen)
        except OSError as error:
            if not current:
                raise DataError(f"{folder} cannot be read: {error.strerror}") from error
            unreadable.append((folder / current, error.strerror or str(error)))
            continue
        parent = PurePosixPath(current).name or folder.name
        for entry in entries:
            name = f"{current}/{entry.name}" if current else entry.name
            is_folder = _is_folder(entry)
            if entry.name.startswith("."):
                found.pass_over(kinds.HIDDEN, name)
            elif exclude is not None and exclude(PurePosixPath(name), is_folder=is_folder):
                excluded.append(folder / name)
            elif is_folder and not rule.own_folders and (kind := kinds.own_folder(entry.name, parent)):
                found.pass_over(kind, name)
            elif is_folder:
                if not entry.is_symlink():
                    waiting.append(name)
                elif rule.links:
                    links.append(name)
                else:
                    found.pass_over("links to folders", name)
            else:
                try:
                    kind = _kind_of_file(entry, rule)
                except OSError as error:
                    unreadable.append((folder / name, error.strerror or str(error)))
                    continue
                if kind == kinds.BROKEN_LINK:
                    broken.append(folder / name)
                if kind:
                    found.pass_over(kind, name)
                else:
                    images.append(name)
    found.images = sorted(images)
    found.broken = sorted(broken)
    found.unreadable, found.excluded = sorted(unreadable), sorted(excluded)
    return found


def no_images(place: str, passed_over: Mapping[str, int], examples: Mapping[str, str], excluded: str = "") -> DataError:
    """The error for folders without images; names what they have instead.

    Args:
        place: the folders, as in a sentence.
        passed_over: kind → count.
        examples: kind → one of it.
        excluded: one of the names that were left out on request.
    """
    seen = ""
    if passed_over:
        first = max(sorted(passed_over), key=lambda kind: passed_over[kind])
        seen = f" (passed over: {kinds.passed_over_text(passed_over)}, such as {examples[first]})"
    if excluded:
        seen += f" beside what --exclude leaves out, such as {excluded}"
    suffixes = " ".join(suffix for suffix in SUFFIXES if kinds.is_image_suffix(suffix))
    return DataError(
        f"{place} has no images{seen}",
        hint=f"images are files ending in {suffixes}, or of that content without a suffix",
    )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # such as a link to itself; it is reported as a file


def _kind_of_file(entry: os.DirEntry[str], rule: ScanRule) -> str:
    """The kind of a file that is passed over; empty for an image.

    Raises:
        OSError: it may be an image, and cannot be read.
    """
    suffix = kinds.suffix_of(entry.name)
    if rule.is_image_suffix(suffix):
        return ""
    if not rule.contents or not kinds.needs_a_look(suffix):
        return kinds.kind_of_suffix(suffix)
    if entry.is_symlink():
        try:
            os.stat(entry.path)  # noqa: PTH116
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            return kinds.BROKEN_LINK
    if not entry.is_file():
        return kinds.NO_FILE
    with open(entry.path, "rb", buffering=0, opener=regular) as file:
        return "" if kinds.is_image(file.read(kinds.HEAD_BYTES)) else kinds.kind_of_suffix(suffix)


def _entries(folder: Path, seen: set[object]) -> Iterator[os.DirEntry[str]]:
    """The entries of a folder, sorted; none if it was read before."""
    status = folder.stat()
    # Some network file systems number nothing.
    identity = (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(folder)
    if identity in seen:
        return iter(())
    seen.add(identity)
    with os.scandir(folder) as entries:
        return iter(sorted(entries, key=lambda entry: entry.name))
