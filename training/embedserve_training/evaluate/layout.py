"""How a labelled folder is laid out: label folders, in a single folder around them, or below train and test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from embedserve_training.data.folders import ImageFolder, Skipped

Report = Callable[[str], None]
_TRAIN = ("train", "training")
_TEST = ("test", "testing", "val", "valid", "validation", "eval")
"""Names of the folders of queries, the first that has labels is taken."""
_NAMED = 3
"""Files and labels that are named in a line; the rest is counted."""


def named(names: Sequence[str]) -> str:
    """The first names of many, and the number of the others."""
    shown = ", ".join(names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED:,} more"


def without_wrappers(files: ImageFolder, report: Report) -> ImageFolder:
    """The folder that holds the label folders, where single folders are around it.

    Nothing changes if there are no labels inside.
    """
    inner, name = files, ""
    while True:
        first = _first_folders(inner)
        if len(first) > 1:
            break
        if not first or _beside(inner, first):
            return files
        [only] = first
        inner, name = _below(inner, only), f"{name}{only}/"
    if not name:
        return files
    if without_outsiders(inner, _silent).labels is None:
        return files
    report(f"{files.name} holds the single folder {name}: the labels are the folders in it")
    return inner


def parts(files: ImageFolder, report: Report) -> tuple[ImageFolder, ImageFolder | None]:
    """The images to search in and the queries, where a folder is split into ``train`` and ``test`` or ``val``.

    The parts must have a label in common. Else the folder itself is returned, without queries.
    """
    folders = {name.lower(): name for name in _first_folders(files)}
    train = next((folders[name] for name in _TRAIN if name in folders), "")
    if not train or any(name not in _TRAIN + _TEST for name in folders):
        return files, None
    search = without_outsiders(_below(files, train), _silent)
    queries = [folders[name] for name in _TEST if name in folders]
    for name in queries:
        below = without_outsiders(_below(files, name), _silent)
        if _labels(search) & _labels(below):
            others = [other for other in queries if other != name]
            left = f"; {' and '.join(others)} is left out: to use it, --test {files.root / others[0]}" if others else ""
            report(f"{files.name} is split: {name}/ searches in {train}/{left}")
            outside = _outside(files)
            if outside:
                report(f"left out, beside {train}/ and {name}/: {named(outside)}")
            return _below(files, train), _below(files, name)
    if queries and len(_labels(search)) > 1:
        said = " and ".join(f"{name}/" for name in queries)
        report(f"{files.name} looks split, but {said} has no folder for any label of {train}/: {train}/ alone is used")
        return _below(files, train), None
    if queries:
        report(
            f"the folders of {files.name} are taken for labels: {', '.join(sorted(folders.values()))};"
            " if they are parts of a data set, put the images of each label into a subfolder of each"
        )
    return files, None


def without_outsiders(files: ImageFolder, report: Report) -> ImageFolder:
    """Without the images beside the label folders, which are fewer than those inside; they count as skipped.

    A folder of which half or more lies outside has no labels, and stays as it is.
    """
    outside = files.unlabelled
    if not outside:
        return files
    if 2 * len(outside) >= len(files.paths):
        report(
            f"{files.name} has {len(outside):,} of {len(files.paths):,} images beside its folders: they are no labels"
        )
        return files
    names = set(outside)
    kept = files.subset([position for position, path in enumerate(files.paths) if path not in names])
    skipped = tuple(Skipped(path=path, reason="beside the folders of the labels") for path in outside)
    return replace(kept, unreadable=(*files.unreadable, *skipped))


def _silent(line: str) -> None:
    """For trying a layout."""


def _first_folders(files: ImageFolder) -> Counter[str]:
    """The folders at the top → the number of their images."""
    all_parts = [PurePosixPath(path).parts for path in files.paths]
    return Counter(part[0] for part in all_parts if len(part) > 1)


def _outside(files: ImageFolder) -> list[str]:
    return [path for path in files.paths if len(PurePosixPath(path).parts) == 1]


def _beside(files: ImageFolder, first: Counter[str]) -> bool:
    """Whether so many images are beside the folders that these say nothing about the rest."""
    return 2 * first.total() <= len(files.paths)


def _labels(files: ImageFolder) -> set[str]:
    """The labels; unlike ``ImageFolder.labels`` also if there is only one."""
    return set(_first_folders(files)) if not _outside(files) else set()


def _below(files: ImageFolder, name: str) -> ImageFolder:
    """The images in one of the folders at the top, by their names in it."""
    positions = [position for position, path in enumerate(files.paths) if path.startswith(f"{name}/")]
    inside = files.subset(positions)
    others = [path for path in _outside(files) if len(_first_folders(files)) == 1]
    return replace(
        inside,
        root=files.root / name,
        sources=(files.root / name,),
        paths=tuple(path.removeprefix(f"{name}/") for path in inside.paths),
        files=tuple(files.file(position) for position in positions),
        unreadable=(
            *files.unreadable,
            *(Skipped(path=path, reason="beside the folder of the labels") for path in others),
        ),
    )
