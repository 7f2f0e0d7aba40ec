"""The progress line, the metrics file, effective rank and the warnings of a run that fails."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from embedserve_training.monitor import Monitor, Progress, duration, effective_rank, sign_of_failure

PROGRESS = Progress(
    epoch=3,
    epochs=100,
    estimated=False,
    step=412,
    steps=14_000,
    loss=4.2131,
    chance=5.5452,
    rank=87.2,
    dimension=512,
    lr=0.048,
    images_per_s=811.9,
    data_wait=0.041,
    seconds=90.0,
    eta_s=720.0,
    diagnostics={"pos": 0.611, "top1": 0.4},
)


def test_the_progress_line_is_the_documented_one() -> None:
    assert PROGRESS.line() == (
        "epoch 3/100  step 412  loss 4.213 (chance 5.545)  pos 0.61  rank 87/512  lr 0.048  812 img/s"
        "  data-wait 4 %  ETA 12m"
    )


def test_an_estimated_number_of_epochs_is_marked() -> None:
    assert replace(PROGRESS, estimated=True).line().startswith("epoch 3/~100  ")


def test_metrics_hold_the_numbers_of_the_line(tmp_path: Path) -> None:
    lines: list[str] = []
    Monitor(tmp_path / "metrics.jsonl", lines.append).record(PROGRESS, used=0.03)
    record = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert lines == [PROGRESS.line()]
    assert (record["step"], record["loss"], record["pos"], record["top1"]) == (412, 4.2131, 0.611, 0.4)


def test_records_after_the_checkpoint_are_forgotten_on_resume(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path / "metrics.jsonl", lambda line: None)
    for step in (10, 20, 30):
        monitor.record(replace(PROGRESS, step=step), used=0.0)
    with (tmp_path / "metrics.jsonl").open("a") as out:
        out.write('{"step": 1')  # cut short by a crash
    monitor.forget_after(20)
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [10, 20]


def test_the_rank_of_features_on_one_line_is_one() -> None:
    assert effective_rank(torch.linspace(1, 2, 64).unsqueeze(1) * torch.ones(1, 16)) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("shape", [(64, 16), (16, 64)])
def test_the_rank_of_orthogonal_features_is_the_smaller_side(shape: tuple[int, int]) -> None:
    assert effective_rank(torch.eye(*shape) * 3) == pytest.approx(16, abs=1e-3)


def test_the_rank_is_exp_of_the_entropy_of_the_singular_values() -> None:
    # Singular values 3 and 1: shares ¾ and ¼, entropy 0.562335, exp 1.754765.
    assert effective_rank(torch.tensor([[3.0, 0.0], [0.0, 1.0]])) == pytest.approx(1.754765, abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"rank": 1.2}, "collapsed"), ({"loss": 5.54}, "nothing is being learned"), ({}, "")],
)
def test_a_run_that_fails_is_called_out(changes: dict[str, float], words: str) -> None:
    warning = sign_of_failure(replace(PROGRESS, **changes))  # type: ignore[arg-type]
    assert words in warning
    assert bool(warning) == bool(words)


def test_the_warning_comes_once_and_not_in_the_first_fifth(tmp_path: Path) -> None:
    lines: list[str] = []
    monitor = Monitor(tmp_path / "metrics.jsonl", lines.append)
    for used in (0.1, 0.3, 0.5):
        monitor.record(replace(PROGRESS, rank=1.0), used)
    assert [line.startswith("warning: ") for line in lines] == [False, False, True, False]


def test_there_is_no_warning_in_the_first_steps_of_a_short_run(tmp_path: Path) -> None:
    lines: list[str] = []
    Monitor(tmp_path / "metrics.jsonl", lines.append).record(replace(PROGRESS, step=40, rank=1.0), used=1.0)
    assert len(lines) == 1


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.4, "0s"), (42, "42s"), (720, "12m"), (11_100, "3h05m"), (-3, "0s")]
)
def test_durations_are_for_people(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected
