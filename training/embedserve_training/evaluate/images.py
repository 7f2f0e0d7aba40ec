"""The images of an evaluation: those to search in and the queries, their labels if there are any, and their pixels.

Shapes: N images to search in, M queries, A = all images of the folder, Q queries of self-retrieval, S side in pixels,
C = 3 channels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from embedserve.cores import usable_cores
from embedserve.errors import DataError
from embedserve.types import Limits
from embedserve_training.data import folders
from embedserve_training.data.folders import ImageFolder, Noted, Skipped
from embedserve_training.evaluate import layout

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedserve.images.preprocess import PreprocessSpec

TEST_SHARE = 0.2
_ScalarT = TypeVar("_ScalarT", bound=np.generic)


@dataclass(frozen=True, kw_only=True)
class ImageSplit:
    """Files to search in and query files."""

    train: ImageFolder
    test: ImageFolder | None
    """Queries; None if there are no labels, where only self-retrieval is possible."""
    held_out: bool
    """Whether the queries are of the same folder."""

    @property
    def passed_over(self) -> Mapping[str, int]:
        """Kind → files or folders that are no images."""
        # Parts of one folder have the same counts.
        other = {} if self.test is None or self.held_out else self.test.passed_over
        return dict(Counter(self.train.passed_over) + Counter(other))

    @property
    def labels_without_query(self) -> tuple[str, ...]:
        """Labels that are searched but have no query."""
        return tuple(sorted(_label_set(self.train) - _label_set(self.test))) if self.test else ()


@dataclass(frozen=True, kw_only=True)
class LoadedSplit:
    """The pixels of an ``ImageSplit`` in the size of an encoder, and their labels as numbers."""

    train_NSSC: NDArray[np.uint8]
    train_labels_N: NDArray[np.int64]
    test_MSSC: NDArray[np.uint8]
    test_labels_M: NDArray[np.int64]
    names: tuple[str, ...]
    """The label of each number; empty without labels."""
    held_out: bool
    skipped: tuple[Skipped, ...]
    train_paths: tuple[str, ...] = ()
    """The name of each image in its folder."""
    test_paths: tuple[str, ...] = ()

    @property
    def all_ASSC(self) -> NDArray[np.uint8]:
        """All images of the folder, those that were held out at the end."""
        return self.all_of(self.train_NSSC, self.test_MSSC)

    def all_of(self, of_train: NDArray[_ScalarT], of_test: NDArray[_ScalarT]) -> NDArray[_ScalarT]:
        """Values of all images of the folder, from the values of each part."""
        return np.concatenate([of_train, of_test]) if self.held_out else of_train


def choose(
    folder: Path | Sequence[Path],
    test_folder: Path | Sequence[Path] | None,
    *,
    labels_needed: bool,
    exclude: Sequence[str] = (),
    limits: Limits | None = None,
    report: Callable[[str], None] | None = None,
) -> ImageSplit:
    """Choose the images to search in and the queries.

    Args:
        folder: images, in a subfolder per label if they have labels; one folder or several, or lists as ``@NAME``.
        test_folder: labelled query images; None: a fifth of each label of ``folder``.
        labels_needed: whether a folder without labels is an error.
        exclude: patterns of files and folders to leave out.
        limits: on an image; larger ones are left out.
        report: called with a line about what is passed over, if anything is.

    Raises:
        DataError: a folder is missing, or has no labels though they are needed.
    """
    limits, say = limits or Limits(), report or _silent
    train = layout.without_wrappers(replace(folders.scan(folder, exclude, report=report), limits=limits), say)
    train, test = layout.parts(train, say)
    train = layout.without_outsiders(train, say)
    if train.labels is None:
        if labels_needed or test_folder is not None:
            raise _no_labels(train.name)
        return ImageSplit(train=train, test=None, held_out=False)
    if test_folder is None and test is None:
        kept, held_out = hold_out(train)
        return ImageSplit(train=kept, test=held_out, held_out=True)
    if test_folder is not None:
        test = layout.without_wrappers(replace(folders.scan(test_folder, exclude, report=report), limits=limits), say)
    assert test is not None, "queries are of one folder or of the other"
    test = layout.without_outsiders(test, say)
    if test.labels is None and not (test_folder is None and _label_set(test) <= _label_set(train)):
        raise _no_labels(test.name)
    return ImageSplit(train=train, test=test, held_out=False)


def _silent(line: str) -> None:
    """Without a report."""


def _no_labels(folder: str) -> DataError:
    return DataError(
        f"{folder} has no labels to measure with",
        hint="put the images of each label into a subfolder of that name, at least two of them",
    )


def hold_out(files: ImageFolder, pictures: Sequence[int] = ()) -> tuple[ImageFolder, ImageFolder]:
    """Hold out a fifth of each label, at least one image, the same ones every time.

    A label with one picture keeps it: held out, it would have a label that no other image has. Copies of one picture
    stay together, and are kept if they have several labels or are more than a fifth of their label.

    Args:
        files: in a subfolder for each label.
        pictures: a number for each file, equal for copies of one picture; empty: there are none.

    Raises:
        DataError: no label has two pictures.
    """
    labels = files.labels or ()
    pictures = pictures or range(len(labels))
    labels_of: dict[int, set[str]] = {}
    for picture, label in zip(pictures, labels, strict=True):
        labels_of.setdefault(picture, set()).add(label)
    generator = np.random.default_rng(0)
    held_out: set[int] = set()
    for label in sorted(set(labels)):
        positions = [i for i, other in enumerate(labels) if other == label]
        order = generator.permutation(positions).tolist()
        groups: dict[int, list[int]] = {}
        for position in order:
            groups.setdefault(pictures[position], []).append(position)
        alone = [group for picture, group in groups.items() if len(labels_of[picture]) == 1]
        if len(groups) < 2 or not alone:
            continue
        count = max(round(len(positions) * TEST_SHARE), 1)
        taken: list[int] = []
        for group in alone:
            if len(taken) + len(group) <= count:
                taken += group
        if not taken:
            taken = min(alone, key=len)
        held_out.update(taken)
    if not held_out:
        raise DataError(
            f"{files.name} has one {'image' if len(labels_of) == len(labels) else 'picture'} per label, so none can be"
            " held out as a query",
            hint="give a second folder with queries: --test FOLDER",
        )
    kept = [i for i in range(len(labels)) if i not in held_out]
    # Folders that cannot be read are reported once, with the images to search in.
    return replace(files.subset(kept), unreadable=files.unreadable), files.subset(sorted(held_out))


def _label_set(files: ImageFolder) -> set[str]:
    """The labels of files; unlike ``ImageFolder.labels`` also if there is only one."""
    return {_label(path) for path in files.paths}


def _label(path: str) -> str:
    return path.split("/")[0]


def load(images: ImageSplit, spec: PreprocessSpec, report: Callable[[str], None]) -> LoadedSplit:
    """The pixels of all readable images.

    Raises:
        DataError: a folder has none.
    """
    train_NSSC, train_paths, skipped = _load(images.train, spec, report)
    train_labels = [_label(path) for path in train_paths]
    if images.test is None:
        return LoadedSplit(
            train_NSSC=train_NSSC,
            train_labels_N=np.zeros(len(train_NSSC), np.int64),
            test_MSSC=train_NSSC[:0],
            test_labels_M=np.zeros(0, np.int64),
            names=(),
            held_out=False,
            skipped=skipped,
            train_paths=train_paths,
        )
    test_MSSC, test_paths, skipped_too = _load(images.test, spec, report)
    test_labels = [_label(path) for path in test_paths]
    names = tuple(sorted({*train_labels, *test_labels}))
    number = {name: i for i, name in enumerate(names)}
    return LoadedSplit(
        train_NSSC=train_NSSC,
        train_labels_N=np.array([number[label] for label in train_labels]),
        test_MSSC=test_MSSC,
        test_labels_M=np.array([number[label] for label in test_labels]),
        names=names,
        held_out=images.held_out,
        # A folder that is split into parts is scanned once.
        skipped=tuple(dict.fromkeys(skipped + skipped_too)),
        train_paths=train_paths,
        test_paths=test_paths,
    )


def _load(
    files: ImageFolder, spec: PreprocessSpec, report: Callable[[str], None]
) -> tuple[NDArray[np.uint8], tuple[str, ...], tuple[Skipped, ...]]:
    notes: list[Noted] = []
    workers = min(usable_cores(), 16)
    pixels_NSSC, positions, skipped = folders.load_squares(files, spec, workers=workers, notes=notes)
    for entry in skipped:
        report(f"left out: {entry.path}: {entry.reason}")
    for note, count in Counter(entry.note for entry in notes).most_common():
        report(f"in {count} {'image' if count == 1 else 'images'}: {note}")
    return pixels_NSSC, tuple(files.paths[position] for position in positions), skipped
