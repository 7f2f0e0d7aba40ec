"""A folder of images: its files, their labels if it has any, and the pixels of those that can be read.

``embedserve.images.codec`` does all decoding. Files that cannot be read are left out, and listed with the reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from embedserve.errors import DataError, ImageError
from embedserve.folder.exclude import Exclude
from embedserve.folder.find import find
from embedserve.folder.kinds import passed_over_lines
from embedserve.folder.scan import RULE, ScanRule
from embedserve.images import codec, preprocess
from embedserve.images.preprocess import PreprocessSpec
from embedserve.types import Limits

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Report = Callable[[str], None]
_IN_FLIGHT = 4
"""Files read ahead per thread; limits the memory of decoded images that wait."""


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A file that was left out."""

    path: str
    """Relative to the folder, with forward slashes."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class Noted:
    """What was decided for an image that is used."""

    path: str
    """Relative to the folder, with forward slashes."""
    note: str
    """A sentence without its full stop."""


@dataclass(frozen=True, kw_only=True)
class ImageFolder:
    """The image files of a folder, in a fixed order."""

    root: Path
    paths: tuple[str, ...]
    """The name of each: relative to its own root, with forward slashes, sorted for each root."""
    files: tuple[Path, ...] = ()
    """Where each is; empty if all are in the root."""
    sources: tuple[Path, ...] = ()
    """The folders and lists that were given, if there are several the root is the first; empty: the root."""
    unreadable: tuple[Skipped, ...] = ()
    """Subfolders and links that cannot be read; their images are left out."""
    passed_over: Mapping[str, int] = field(default_factory=dict)
    """Kind → files or folders that are no images, such as ".svg" or "hidden"."""
    excluded: int = 0
    """Files and folders that were left out on request."""
    limits: Limits = field(default_factory=Limits)
    """``max_image_bytes``, ``max_image_pixels`` and ``max_image_side_px`` of each file."""

    @property
    def name(self) -> str:
        """What was given, for a sentence."""
        return name_of(self.sources or (self.root,))

    def file(self, position: int) -> Path:
        """Where a file is."""
        return self.files[position] if self.files else self.root / self.paths[position]

    @property
    def folders(self) -> list[Path]:
        """The folders that were given and those that its files are in."""
        given = [source for source in (self.sources or (self.root,)) if source.is_dir()]
        return list(dict.fromkeys([*given, *(self.file(position).parent for position in range(len(self.paths)))]))

    @property
    def unlabelled(self) -> tuple[str, ...]:
        """Files beside the subfolders, where there are at least two that could be labels."""
        parts = [PurePosixPath(path).parts for path in self.paths]
        if len({part[0] for part in parts if len(part) > 1}) < 2:
            return ()
        return tuple(part[0] for part in parts if len(part) == 1)

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The label of each file: its top-level subfolder.

        None unless every file is in a subfolder and there are at least two of them.
        """
        parts = [PurePosixPath(path).parts for path in self.paths]
        if any(len(part) < 2 for part in parts):
            return None
        labels = tuple(part[0] for part in parts)
        return labels if len(set(labels)) > 1 else None

    def subset(self, positions: Sequence[int]) -> ImageFolder:
        """Only the files at these positions, without the subfolders that cannot be read."""
        return replace(
            self,
            paths=tuple(self.paths[position] for position in positions),
            files=tuple(self.files[position] for position in positions) if self.files else (),
            unreadable=(),
        )


def scan(
    folders: Path | Sequence[Path], exclude: Sequence[str] = (), *, rule: ScanRule = RULE, report: Report | None = None
) -> ImageFolder:
    """The image files in folders and their subfolders, or in lists of files.

    Args:
        folders: one or several; a list as ``@NAME``.
        exclude: patterns of files and folders to leave out.
        rule: what is an image.
        report: called with a line about what is passed over, if anything is.

    Raises:
        DataError: a folder does not exist, or holds no image file.
        InvalidInput: a pattern means nothing, or files of two folders have the same name.
    """
    sources = [folders] if isinstance(folders, Path) else list(folders)
    patterns = Exclude(exclude)
    found = find(sources, patterns, rule=rule)
    if not found.files:
        path, why = found.unreadable[0]
        raise DataError(f"{name_of(sources)} has no images: {path} cannot be read: {why}")
    files = ImageFolder(
        root=sources[0],
        sources=tuple(sources),
        paths=tuple(file.name for file in found.files),
        files=tuple(file.path for file in found.files),
        unreadable=tuple(
            Skipped(path=_relative(path, sources), reason=f"cannot be read: {why}") for path, why in found.unreadable
        )
        + tuple(Skipped(path=_relative(path, sources), reason="a link that leads to nothing") for path in found.broken),
        passed_over=dict(found.passed_over),
        excluded=len(found.excluded),
    )
    if report is not None:
        for line in passed_over_lines(files.passed_over):
            report(line)
        if found.excluded:
            what = "1 file or folder" if len(found.excluded) == 1 else f"{len(found.excluded):,} files and folders"
            report(f"--exclude leaves out {what}, such as {found.excluded[0]}")
        for pattern in patterns.unused:
            report(f"--exclude {pattern} matches nothing")
    return files


def name_of(sources: Sequence[Path]) -> str:
    """Folders and lists in a sentence."""
    shown = ", ".join(map(str, sources[:3]))
    return shown if len(sources) <= 3 else f"{shown} and {len(sources) - 3} more"


def _relative(path: Path, sources: Sequence[Path]) -> str:
    for source in sources:
        if path.is_relative_to(source):
            return path.relative_to(source).as_posix()
    return str(path)


def load_all(
    folder: ImageFolder,
    spec: PreprocessSpec,
    *,
    workers: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    notes: list[Noted] | None = None,
) -> Iterator[tuple[int, bytes, NDArray[np.uint8] | Skipped]]:
    """Each file in order: its position, the sha256 of its bytes, and its pixels or the reason why it is left out.

    Pixels are uint8 [S, S, 3].

    Args:
        folder: the files.
        spec: how an image becomes a square.
        workers: number of threads that read and decode.
        progress: called with the number of files done and their total.
        notes: receives what was decided for single images, in their order.
    """

    def load(position: int) -> tuple[bytes, NDArray[np.uint8] | Skipped, list[str]]:
        path = folder.paths[position]
        said: list[str] = []
        try:
            data = codec.read_file(folder.file(position), folder.limits)
        except ImageError as error:
            return b"", Skipped(path=path, reason=error.message), said
        except OSError as error:
            return b"", Skipped(path=path, reason=f"cannot be read: {error.strerror or error}"), said
        digest = hashlib.sha256(data).digest()
        try:
            return digest, preprocess.load(spec, data, folder.limits, notes=said), said
        except ImageError as error:
            return digest, Skipped(path=path, reason=error.message), []

    total = len(folder.paths)
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        waiting = [pool.submit(load, position) for position in range(min(workers * _IN_FLIGHT, total))]
        for position in range(total):
            future = waiting.pop(0)
            ahead = position + workers * _IN_FLIGHT
            if ahead < total:
                waiting.append(pool.submit(load, ahead))
            digest, outcome, said = future.result()
            if notes is not None:
                notes += [Noted(path=folder.paths[position], note=note) for note in dict.fromkeys(said)]
            yield position, digest, outcome
            progress(position + 1, total)


def load_squares(
    folder: ImageFolder,
    spec: PreprocessSpec,
    *,
    workers: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    notes: list[Noted] | None = None,
) -> tuple[NDArray[np.uint8], tuple[int, ...], tuple[Skipped, ...]]:
    """All readable images in memory, preprocessed for the encoder.

    Returns:
        uint8 [N, S, S, 3], the positions of these images in ``folder.paths``, and the files that are left out.

    Raises:
        DataError: none of the files can be read.
    """
    import numpy as np

    squares: list[NDArray[np.uint8]] = []
    kept: list[int] = []
    skipped = list(folder.unreadable)
    for position, _, outcome in load_all(folder, spec, workers=workers, progress=progress, notes=notes):
        if isinstance(outcome, Skipped):
            skipped.append(outcome)
        else:
            squares.append(outcome)
            kept.append(position)
    if not squares:
        raise nothing_readable(folder, skipped)
    return np.stack(squares), tuple(kept), tuple(skipped)


def nothing_readable(folder: ImageFolder, skipped: Sequence[Skipped]) -> DataError:
    """The error for a folder in which no file can be read."""
    return DataError(
        f"none of the {len(folder.paths)} image files in {folder.name} can be read;"
        f" the first: {skipped[0].path}: {skipped[0].reason}",
        hint="images are JPEG, PNG, WebP, BMP, GIF or TIFF; open one in a viewer to see whether it is damaged",
    )
