"""The line that corrects what a plan promised, once the first steps have been timed."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from embedserve_training.plan.config import Settings, TrainConfig
from embedserve_training.plan.plan import Facts, plan
from embedserve_training.run.budget import Budget, Spent
from embedserve_training.run.estimate import FirstSteps, correction
from embedserve_training.watch.progress import counted, long_duration

NOON = datetime(2026, 3, 30, 12, tzinfo=UTC)
FACTS = Facts(images=3200, median_side_px=64)


def chosen(**values: Any) -> Settings:
    return plan(TrainConfig(batch_size=128, **values), FACTS).settings


def line(settings: Settings, step_s: float, planned: float | None = None, reserve_s: float = 0.0) -> str:
    budget = Budget(epochs=settings.epochs, minutes=settings.minutes, steps_per_epoch=3200 // 128, reserve_s=reserve_s)
    return correction(settings, budget, step_s, planned_passes=planned, now=NOON)


def test_a_budget_that_allows_few_steps_says_which_side_would_allow_enough() -> None:
    # 420 s / 3 s = 140 steps, 5.6 passes of 25 steps; at 48 px (64 / 48)² · 140 = 249.
    text = line(chosen(minutes=7.0, backbone="small-cnn", size_px=64), 3.0)
    assert text == (
        "about 140 steps, 5.6 passes over the images, will fit in 7 minutes; --fresh --size-px 48 would give about"
        " 249 steps"
    )


def test_a_network_that_is_too_large_at_any_side_is_replaced_by_a_smaller_one() -> None:
    # ResNet-18 with the stem for small images is too slow even at 32 px (4 · 12 steps); small-cnn costs 45 times less.
    text = line(chosen(minutes=7.0, backbone="resnet18", size_px=64), 35.0)
    assert text.startswith("about 12 steps, 0.5 passes over the images, will fit in 7 minutes; --fresh --backbone")
    assert "--backbone small-cnn --size-px 64 would give about 538 steps" in text


def test_where_no_side_helps_more_minutes_are_proposed() -> None:
    text = line(chosen(minutes=1.0, backbone="small-cnn", size_px=32), 1.2)
    assert (
        text
        == "about 50 steps, 2 passes over the images, will fit in 1 minute; --fresh --minutes 4 would give 8 passes"
    )
    on_a_gpu = replace(chosen(minutes=1.0, backbone="resnet18", size_px=224), device="cuda")
    assert "--size-px" not in line(on_a_gpu, 1.2)


def test_one_step_and_one_minute_are_in_the_singular() -> None:
    text = line(chosen(minutes=1.0, backbone="small-cnn", size_px=32), 60.0)
    assert text.startswith("about 1 step, 0.04 passes over the images, will fit in 1 minute;")


def test_enough_passes_that_differ_much_from_the_plan_are_reported_and_others_are_not() -> None:
    settings = chosen(minutes=10.0, backbone="small-cnn", size_px=32)
    assert line(settings, 1.0, planned=48.0) == (
        "about 600 steps, 24 passes over the images, will fit in 10 minutes; the plan expected 48 passes"
    )
    assert line(settings, 1.0, planned=24.0) == ""
    assert line(settings, 1.0, planned=30.0) == ""
    assert line(settings, 1.0) == ""


def test_the_time_that_is_kept_for_the_end_is_not_counted() -> None:
    settings = chosen(minutes=7.0, backbone="small-cnn", size_px=64)
    assert line(settings, 3.0, reserve_s=60.0).startswith("about 120 steps")


def test_epochs_that_take_long_are_reported_with_their_end() -> None:
    settings = chosen(epochs=100, backbone="small-cnn", size_px=64)
    assert line(settings, 7.2) == (
        "100 epochs will take about 5 hours, until 17:00; --fresh --minutes 30 ends after half an hour, with a schedule"
        " that fits"
    )
    assert line(settings, 0.4) == "100 epochs will take about 17 minutes, until 12:16"
    assert line(settings, 36.0).startswith("100 epochs will take about 25 hours, until 13:00 on 31 March;")
    assert line(settings, 0.2) == ""


def test_the_first_step_is_not_timed_and_the_line_is_said_once() -> None:
    timed = FirstSteps()
    spent = [Spent(step=1, seconds=100.0), Spent(step=2, seconds=102.0), Spent(step=3, seconds=104.0)]
    assert [timed.step_s(one) for one in spent] == [0.0, 0.0, 0.0]
    assert timed.step_s(Spent(step=4, seconds=106.0)) == 2.0
    assert timed.step_s(Spent(step=5, seconds=108.0)) == 0.0


def test_a_single_step_that_takes_long_is_enough() -> None:
    timed = FirstSteps()
    assert timed.step_s(Spent(step=1, seconds=30.0)) == 0.0
    assert timed.step_s(Spent(step=2, seconds=50.0)) == 20.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1, "1 second"),
        (42.4, "42 seconds"),
        (120, "2 minutes"),
        (372, "6.2 minutes"),
        (18_000, "5 hours"),
        (90_000, "25 hours"),
        (259_200, "3 days"),
    ],
)
def test_durations_read_as_in_a_sentence(seconds: float, text: str) -> None:
    assert long_duration(seconds) == text


def test_one_is_singular_and_every_other_number_plural() -> None:
    assert [counted(number, "step") for number in (0, 1, 1.0, 0.5, 2)] == [
        "0 steps", "1 step", "1 step", "0.5 steps", "2 steps",
    ]  # fmt: skip
    assert counted(2, "process", "processes") == "2 processes"
