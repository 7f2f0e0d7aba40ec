"""A folder of images: its files, their labels if it has any, and the pixels of those that can be read.

``embedserve.images.codec`` does all decoding. Files that cannot be read are left out, and listed with the reason.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from embedserve.errors import DataError, ImageError
from embedserve.images import codec, preprocess
from embedserve.images.formats import SUFFIXES
from embedserve.images.preprocess import PreprocessSpec
from embedserve.types import Limits

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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
    """Relative to the root, with forward slashes, sorted."""
    unreadable: tuple[Skipped, ...] = ()
    """Subfolders that cannot be read; their images are left out."""
    limits: Limits = field(default_factory=Limits)
    """``max_image_bytes``, ``max_image_pixels`` and ``max_image_side_px`` of each file."""

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
        paths = tuple(self.paths[position] for position in positions)
        return ImageFolder(root=self.root, paths=paths, limits=self.limits)


def scan(root: Path) -> ImageFolder:
    """The image files in a folder and its subfolders.

    Files and folders whose names start with a dot are ignored, and so are links to folders.

    Raises:
        DataError: the folder does not exist, or holds no image file.
    """
    if not root.is_dir():
        what = "is a file" if root.is_file() else "does not exist"
        raise DataError(f"{root} {what}", hint="give a folder of images; its subfolders are read too")
    found: list[str] = []
    others: list[str] = []
    unreadable: list[Skipped] = []

    def note(error: OSError) -> None:
        path = Path(error.filename).relative_to(root).as_posix()
        unreadable.append(Skipped(path=path, reason=f"the folder cannot be read: {error.strerror}"))

    for folder, names, files in os.walk(root, onerror=note):
        names[:] = sorted(name for name in names if not name.startswith("."))
        relative = Path(folder).relative_to(root)
        for name in files:
            if name.startswith("."):
                continue
            is_image = Path(name).suffix.lower() in SUFFIXES
            (found if is_image else others).append((relative / name).as_posix())
    if not found:
        seen = f" ({len(others)} other files: {', '.join(sorted(others)[:3])}, …)" if others else ""
        raise DataError(f"{root} holds no images{seen}", hint=f"images end in {', '.join(SUFFIXES)}")
    return ImageFolder(root=root, paths=tuple(sorted(found)), unreadable=tuple(unreadable))


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

    def load(path: str) -> tuple[bytes, NDArray[np.uint8] | Skipped, list[str]]:
        said: list[str] = []
        try:
            data = codec.read_file(folder.root / path, folder.limits)
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
        waiting = [pool.submit(load, path) for path in folder.paths[: workers * _IN_FLIGHT]]
        for position in range(total):
            future = waiting.pop(0)
            ahead = position + workers * _IN_FLIGHT
            if ahead < total:
                waiting.append(pool.submit(load, folder.paths[ahead]))
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
        f"none of the {len(folder.paths)} image files in {folder.root} can be read;"
        f" the first: {skipped[0].path}: {skipped[0].reason}",
        hint="images are JPEG, PNG, WebP, BMP, GIF or TIFF; open one in a viewer to see whether it is damaged",
    )
