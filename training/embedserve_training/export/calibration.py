"""The images to calibrate a less precise encoder with, and others to compare it on.

Shapes: N images, S side in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embedserve.cores import usable_cores
from embedserve.errors import DataError
from embedserve.images.preprocess import PreprocessSpec
from embedserve_training.data import folders

if TYPE_CHECKING:
    from numpy.typing import NDArray

CALIBRATION_IMAGES = 256
HELD_OUT_IMAGES = 1000
"""Largest number of each; comparing 1,000 takes a minute with a ResNet-18 at 224 px on two cores."""


@dataclass(frozen=True, kw_only=True)
class CalibrationSet:
    """Both sets of images, preprocessed."""

    calibration_NSSC: NDArray[np.uint8]
    held_out_NSSC: NDArray[np.uint8]
    labels: tuple[str, ...] | None
    """Of the images held out; None if the folder has no labels."""


def gather(
    folder: Path | Sequence[Path],
    spec: PreprocessSpec,
    samples_NSSC: NDArray[np.uint8],
    *,
    must_exist: bool,
    exclude: Sequence[str] = (),
    report: Callable[[str], None],
) -> CalibrationSet:
    """Images evenly spaced over a folder: every fifth to calibrate with, the others to compare on.

    Args:
        folder: images; one folder or several, or lists of files as ``@NAME``.
        spec: their preprocessing.
        samples_NSSC: the images kept in the run folder, used instead if the folder is gone.
        must_exist: the user named the folder, so a missing one is an error.
        exclude: patterns of files and folders to leave out.
        report: called with each line of text.

    Raises:
        DataError: the folder must exist and does not, or has too few images.
    """
    try:
        files = folders.scan(folder, exclude)
        count = min(len(files.paths), CALIBRATION_IMAGES + HELD_OUT_IMAGES)
        chosen = np.linspace(0, len(files.paths) - 1, count).astype(int)
        squares_NSSC, kept, _ = folders.load_squares(files.subset(chosen.tolist()), spec, workers=usable_cores())
    except DataError as error:
        if must_exist:
            raise
        report(
            f"warning: {error.message}; only the {len(samples_NSSC)} images kept in the run folder are compared."
            " --calibration FOLDER uses others"
        )
        return _split(samples_NSSC, None)
    labels = files.labels
    return _split(squares_NSSC, None if labels is None else tuple(labels[chosen[position]] for position in kept))


def _split(squares_NSSC: NDArray[np.uint8], labels: tuple[str, ...] | None) -> CalibrationSet:
    to_calibrate = np.arange(len(squares_NSSC)) % 5 == 0
    if (~to_calibrate).sum() < 2:
        raise DataError(f"{len(squares_NSSC)} images are too few to compare neighbours", hint="give a few hundred")
    held_out = np.flatnonzero(~to_calibrate)
    return CalibrationSet(
        calibration_NSSC=squares_NSSC[to_calibrate],
        held_out_NSSC=squares_NSSC[held_out],
        labels=None if labels is None else tuple(labels[position] for position in held_out),
    )
