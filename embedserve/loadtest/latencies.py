"""Percentiles and histograms of latencies. Exact: values are put into buckets only for a histogram."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BUCKETS_PER_DECADE = 20
"""Each bucket of a histogram ends 12 % above the one before."""


def percentiles(values: NDArray[np.float64], percents: Sequence[float]) -> list[float]:
    """For each percent, the smallest value that this percentage of all values does not exceed (nearest rank).

    Always one of the values, so "p99" is the latency of an actual call. NaN if there are no values.
    """
    if not len(values):
        return [math.nan] * len(percents)
    # Rounded first: 99.9 % of 1,000 is 999.0000000000001 in floating point, whose ceiling would be one too many.
    ranks = [max(1, math.ceil(round(percent / 100 * len(values), 9))) for percent in percents]
    found = np.partition(values, sorted({rank - 1 for rank in ranks}))
    return [float(found[rank - 1]) for rank in ranks]


def histogram(values: NDArray[np.float64]) -> list[tuple[float, int]]:
    """Upper bound and count of every bucket that is not empty, ascending; the bounds are geometric."""
    if not len(values):
        return []
    tiny = 10.0**-6  # zero has no logarithm
    exponents = np.ceil(np.log10(np.maximum(values, tiny)) * BUCKETS_PER_DECADE).astype(int)
    found, counts = np.unique(exponents, return_counts=True)
    return [
        (float(f"{10 ** (exponent / BUCKETS_PER_DECADE):.6g}"), int(count))
        for exponent, count in zip(found, counts, strict=True)
    ]
