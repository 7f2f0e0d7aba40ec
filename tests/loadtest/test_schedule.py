"""When calls of an open loop are due."""

from __future__ import annotations

import numpy as np
import pytest

from embedserve.loadtest.schedule import poisson, steady


def test_the_same_seed_gives_the_same_times_and_another_seed_others() -> None:
    assert list(poisson(50, 10, seed=3)) == list(poisson(50, 10, seed=3))
    assert list(poisson(50, 10, seed=3)) != list(poisson(50, 10, seed=4))


def test_times_ascend_within_the_seconds() -> None:
    times = list(poisson(50, 10))
    assert times == sorted(times)
    assert times[0] > 0
    assert times[-1] < 10


def test_counts_have_the_mean_and_the_variance_of_a_poisson_process() -> None:
    # 4,000 seconds at 25/s: the mean count is known to ±0.08 (one standard deviation), the variance to ±0.6.
    counts = np.bincount(np.floor(list(poisson(25, 4000, seed=1))).astype(int), minlength=4000)
    assert counts.mean() == pytest.approx(25, abs=0.4)
    assert counts.var() == pytest.approx(25, abs=3)


def test_pauses_do_not_depend_on_the_pause_before() -> None:
    pauses = np.diff(list(poisson(25, 4000, seed=2)))
    assert np.corrcoef(pauses[:-1], pauses[1:])[0, 1] == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("rate", [0, -1, float("nan")])
def test_a_rate_that_is_not_positive_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        next(poisson(rate, 1))


def test_steady_times_are_evenly_spaced_from_0() -> None:
    assert list(steady(4, 1.5)) == [0, 0.25, 0.5, 0.75, 1, 1.25]
    with pytest.raises(ValueError, match="above 0"):
        steady(0, 1)
