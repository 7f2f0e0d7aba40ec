"""How much of a budget is used, and when a run ends, in epochs and in minutes."""

from __future__ import annotations

import pytest

from embedserve_training.run.budget import Budget, Spent

EPOCHS = Budget(epochs=4, minutes=0.0, steps_per_epoch=5)
MINUTES = Budget(epochs=0, minutes=2.0, steps_per_epoch=5)


def test_a_budget_in_epochs_counts_steps_and_not_time() -> None:
    assert EPOCHS.used(Spent(step=5, seconds=1e6)) == 0.25
    assert not EPOCHS.done(Spent(step=19, seconds=1e6, step_s=1e3))
    assert EPOCHS.done(Spent(step=20))
    assert EPOCHS.total_steps(Spent(step=7, seconds=3.0)) == 20


def test_a_budget_in_minutes_counts_time_and_not_steps() -> None:
    assert MINUTES.used(Spent(step=1_000_000, seconds=30.0)) == 0.25
    assert MINUTES.total_steps(Spent(step=100, seconds=30.0)) == 400


@pytest.mark.parametrize(("seconds", "done"), [(113.9, False), (114.0, True), (120.0, True)])
def test_minutes_end_where_most_of_one_more_step_would_exceed_them(seconds: float, done: bool) -> None:
    assert MINUTES.done(Spent(seconds=seconds, step_s=12.0)) is done


def test_before_the_first_step_nothing_is_used_and_nothing_estimated() -> None:
    for budget in (EPOCHS, MINUTES):
        assert budget.used(Spent()) == 0
        assert not budget.done(Spent())
    assert MINUTES.total_steps(Spent()) == 0


def test_a_step_counts_by_its_middle() -> None:
    assert EPOCHS.middle_of_next(Spent(step=0)) == pytest.approx(0.5 / 20)
    assert EPOCHS.middle_of_next(Spent(step=19)) == pytest.approx(19.5 / 20)
    assert MINUTES.middle_of_next(Spent(seconds=60.0, step_s=12.0)) == pytest.approx(66 / 120)
    assert MINUTES.middle_of_next(Spent(seconds=119.0, step_s=12.0)) == 1.0


def test_the_time_left_is_that_of_the_steps_or_of_the_clock() -> None:
    assert EPOCHS.left_s(Spent(step=15, seconds=99.0), seconds_per_step=2.0) == 10.0
    assert MINUTES.left_s(Spent(step=15, seconds=99.0), seconds_per_step=2.0) == 21.0
    assert MINUTES.left_s(Spent(seconds=121.0), seconds_per_step=2.0) == 0.0
