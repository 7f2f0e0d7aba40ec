"""Percentiles and histograms against slow versions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedserve.loadtest.latencies import histogram, percentiles

VALUES = st.lists(st.floats(0, 1e7), min_size=1, max_size=300)
PERCENTS = ["0", "50", "90", "99", "99.9", "100"]


def slow_percentile(values: list[float], percent: str) -> float:
    """Counts: the smallest value that at least so many percent of the values do not exceed."""
    need = Fraction(percent) / 100 * len(values)
    return next(value for value in sorted(values) if sum(other <= value for other in values) >= need)


@given(VALUES)
def test_percentiles_are_those_found_by_counting(values: list[float]) -> None:
    slow = [slow_percentile(values, percent) for percent in PERCENTS]
    assert percentiles(np.array(values), [float(percent) for percent in PERCENTS]) == slow


def test_percentiles_of_1_to_1000_are_round() -> None:
    values = np.random.default_rng(0).permutation(np.arange(1.0, 1001))
    assert percentiles(values, [50, 90, 99, 99.9, 100]) == [500, 900, 990, 999, 1000]


def test_no_values_have_no_percentiles_and_no_histogram() -> None:
    assert all(math.isnan(value) for value in percentiles(np.array([]), [50, 99]))
    assert histogram(np.array([])) == []


@given(VALUES)
def test_every_value_is_counted_in_the_bucket_that_it_belongs_to(values: list[float]) -> None:
    buckets = histogram(np.array(values))
    bounds = [bound for bound, _ in buckets]
    assert bounds == sorted(set(bounds))
    assert sum(count for _, count in buckets) == len(values)
    below = 0
    for bound, count in buckets:
        below += count
        assert sum(value <= bound * (1 + 1e-5) for value in values) >= below


def test_a_bucket_is_an_eighth_wide() -> None:
    [(low, _), (high, _)] = histogram(np.array([9.9, 11.1]))
    assert (low, high) == (10, pytest.approx(11.22, abs=0.01))
