"""The images that a less precise encoder is calibrated with, and others that it is compared on.

Shapes: N images, S side in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
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

CALIBRATION = 256
HELD_OUT = 1000
"""Most images of each; comparing 1,000 takes a minute with a ResNet-18 at 224 px on two cores."""


@dataclass(frozen=True, kw_only=True)
class CalibrationSet:
    """Both kinds, as the encoder takes them."""

    calibration_NSSC: NDArray[np.uint8]
    held_out_NSSC: NDArray[np.uint8]
    labels: tuple[str, ...] | None
    """Of those held out, where the folder has class folders."""


def gather(
    folder: Path,
    spec: PreprocessSpec,
    samples_NSSC: NDArray[np.uint8],
    *,
    must_exist: bool,
    report: Callable[[str], None],
) -> CalibrationSet:
    """Images from all over a folder: every fifth to calibrate with, the others to compare on.

    Args:
        folder: images.
        spec: how they become squares.
        samples_NSSC: the images that the run has kept: taken instead if the folder is gone.
        must_exist: the folder was named by a person, and has to be there.
        report: takes lines for a person.

    Raises:
        DataError: the folder has to be there and is not, or has too few images.
    """
    try:
        files = folders.scan(folder)
        count = min(len(files.paths), CALIBRATION + HELD_OUT)
        chosen = np.linspace(0, len(files.paths) - 1, count).astype(int)
        squares_NSSC, kept, _ = folders.load_squares(files.subset(chosen.tolist()), spec, workers=usable_cores())
    except DataError as error:
        if must_exist:
            raise
        report(
            f"warning: {error.message}; only the {len(samples_NSSC)} images that the run has kept are compared."
            " --calibration FOLDER takes others"
        )
        return _split(samples_NSSC, None)
    labels = files.labels
    return _split(squares_NSSC, None if labels is None else tuple(labels[chosen[position]] for position in kept))


def _split(squares_NSSC: NDArray[np.uint8], labels: tuple[str, ...] | None) -> CalibrationSet:
    calibrating = np.arange(len(squares_NSSC)) % 5 == 0
    if (~calibrating).sum() < 2:
        raise DataError(f"{len(squares_NSSC)} images are too few to compare neighbours", hint="give a few hundred")
    held_out = np.flatnonzero(~calibrating)
    return CalibrationSet(
        calibration_NSSC=squares_NSSC[calibrating],
        held_out_NSSC=squares_NSSC[held_out],
        labels=None if labels is None else tuple(labels[position] for position in held_out),
    )
