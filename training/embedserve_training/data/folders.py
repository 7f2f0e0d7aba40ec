"""A folder of images: its files, their labels if it has any, and the pixels of those that can be read.

``embedserve.images.codec`` does all decoding. Files that cannot be read are left out, and listed with the reason.
"""

from __future__ import annotations

import hashlib
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from embedserve.errors import DataError, ImageError
from embedserve.images import codec, preprocess
from embedserve.images.formats import SUFFIXES
from embedserve.images.preprocess import PreprocessSpec

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
class ImageFolder:
    """The image files of a folder, in a fixed order."""

    root: Path
    paths: tuple[str, ...]
    """Relative to the root, with forward slashes, sorted."""
    unreadable: tuple[Skipped, ...] = ()
    """Subfolders that cannot be read; their images are left out."""

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
        return ImageFolder(root=self.root, paths=tuple(self.paths[position] for position in positions))


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
) -> Iterator[tuple[int, bytes, NDArray[np.uint8] | Skipped]]:
    """Each file in order: its position, the sha256 of its bytes, and its pixels or the reason why it is left out.

    Pixels are uint8 [S, S, 3].

    Args:
        folder: the files.
        spec: how an image becomes a square.
        workers: number of threads that read and decode.
        progress: called with the number of files done and their total.
    """

    def load(path: str) -> tuple[bytes, NDArray[np.uint8] | Skipped]:
        try:
            data = codec.read_file(folder.root / path)
        except ImageError as error:
            return b"", Skipped(path=path, reason=error.message)
        except OSError as error:
            return b"", Skipped(path=path, reason=f"cannot be read: {error.strerror or error}")
        digest = hashlib.sha256(data).digest()
        try:
            return digest, preprocess.load(spec, data)
        except ImageError as error:
            return digest, Skipped(path=path, reason=error.message)

    total = len(folder.paths)
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        waiting = [pool.submit(load, path) for path in folder.paths[: workers * _IN_FLIGHT]]
        for position in range(total):
            future = waiting.pop(0)
            ahead = position + workers * _IN_FLIGHT
            if ahead < total:
                waiting.append(pool.submit(load, folder.paths[ahead]))
            digest, outcome = future.result()
            yield position, digest, outcome
            progress(position + 1, total)


def load_squares(
    folder: ImageFolder,
    spec: PreprocessSpec,
    *,
    workers: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
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
    for position, _, outcome in load_all(folder, spec, workers=workers, progress=progress):
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


@dataclass(frozen=True, kw_only=True)
class FolderSummary:
    """What a sample of a folder's images says about all of them."""

    median_side_px: int
    """Median of the shorter sides."""
    grey: bool
    """Whether none of them has any colour."""


def summarise(folder: ImageFolder, *, sample: int = 64) -> FolderSummary:
    """Read up to ``sample`` images, evenly spread over the folder.

    Raises:
        DataError: none of them can be read.
    """
    step = max(len(folder.paths) / sample, 1.0)
    sides: list[int] = []
    grey = True
    skipped: list[Skipped] = []
    for path in dict.fromkeys(folder.paths[int(step * i)] for i in range(min(sample, len(folder.paths)))):
        try:
            pixels = codec.decode(codec.read_file(folder.root / path))
        except ImageError as error:
            skipped.append(Skipped(path=path, reason=error.message))
        except OSError as error:
            skipped.append(Skipped(path=path, reason=f"cannot be read: {error.strerror or error}"))
        else:
            sides.append(min(pixels.shape[:2]))
            grey = grey and bool((pixels == pixels[..., :1]).all())
    if not sides:
        raise nothing_readable(folder, skipped)
    return FolderSummary(median_side_px=int(statistics.median(sides)), grey=grey)
