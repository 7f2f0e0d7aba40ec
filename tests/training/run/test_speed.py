"""The speed of a machine is measured once, for plans that depend on it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from embedserve_training.plan.config import TrainConfig
from embedserve_training.run import speed
from embedserve_training.run.prepare import Prepared, prepare

Config = Callable[..., TrainConfig]


def planned(folder: Path, config: TrainConfig, out: Path, measured: list[float]) -> Prepared:
    def measure() -> float:
        measured.append(5.0)
        return 5.0

    with ExitStack() as held:
        return prepare(
            folder,
            config,
            out,
            lambda line: None,
            processes=1,
            dry_run=True,
            fresh=False,
            held=held,
            measure_speed=measure,
        )


def test_speed_is_the_work_of_the_fastest_batch_over_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # The clock is read once at the beginning, and before and after each batch: 0.3 s (not counted), 0.1 s and 0.2 s,
    # after which more than half a second is over.
    times = iter([0.0, 0.0, 0.3, 0.3, 0.4, 0.4, 0.6])

    def clock() -> float:
        return next(times)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    # 32 views · 3 · 24,240 FLOP · 32² = 2.38 GFLOP in 0.1 s.
    assert speed.measure(clock) == pytest.approx(23.8, abs=0.05)


def test_measuring_draws_no_random_number_of_the_run_and_leaves_its_threads() -> None:
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    assert speed.measure() > 0
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_only_a_budget_in_minutes_is_planned_by_speed_and_a_dry_run_is_too(
    image_folder: Path, tmp_path: Path, tiny_config: Config
) -> None:
    measured: list[float] = []
    assert planned(image_folder, tiny_config(), tmp_path / "run", measured).plan.passes is None
    assert measured == []
    the_plan = planned(image_folder, tiny_config(minutes=1), tmp_path / "run", measured).plan
    assert measured == [5.0]
    # 5 GFLOP/s · 60 s / (48 images · 6 · 24,240 FLOP · 16²)
    assert the_plan.passes == pytest.approx(168, abs=1)
