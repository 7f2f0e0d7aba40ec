"""What follows the last step of a run: the whitening layer, with progress, and interruptible."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from embedserve_training.networks import whitening
from embedserve_training.networks.backbones import Backbone
from embedserve_training.plan.config import Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MOST_RESERVED = 0.25
"""Share of the minutes that may be kept for what follows the last step."""


def reserve_s(backbone: Backbone, pixels_NTTC: NDArray[np.uint8], settings: Settings) -> float:
    """Seconds of a budget in minutes to keep for the whitening: measured for a few images, at most a quarter."""
    needed_s = whitening.seconds_to_fit(backbone, pixels_NTTC, settings.size_px, clock=time.perf_counter)
    return min(needed_s, _MOST_RESERVED * 60 * settings.minutes)


def whiten(
    backbone: Backbone,
    pixels_NTTC: NDArray[np.uint8],
    size_px: int,
    *,
    whole: bool | None,
    report: Callable[[str], None],
    every_s: float,
    stop_requested: Callable[[], bool],
) -> Mapping[str, Tensor] | None:
    """The whitening layer of a run; None if it was interrupted.

    A first signal interrupts it. Where one has stopped the run already, the layer is fitted all the same and a second
    one interrupts it: export needs no images then.

    Args:
        backbone: of the run.
        pixels_NTTC: uint8, the decoded images.
        size_px: side that the encoder sees.
        whole: as in ``whitening.fit_to_images``.
        report: called with each line of text.
        every_s: seconds between two lines of progress.
        stop_requested: returns whether a signal has asked for a stop.
    """
    stopped_before, reported = stop_requested(), time.perf_counter()

    def progress(done: int, total: int) -> bool:
        nonlocal reported
        now = time.perf_counter()
        if now - reported >= every_s and done < total:
            reported = now
            report(f"whitening the embeddings  {done}/{total} images")
        return stopped_before or not stop_requested()

    try:
        layer = whitening.fit_to_images(backbone, pixels_NTTC, size_px, whole=whole, progress=progress)
    except (whitening.Interrupted, KeyboardInterrupt):
        report("stopped without the whitening layer; the same command adds it, and so does export")
        return None
    return layer.state_dict()
