"""The progress line, the metrics file, the curves for TensorBoard, and the warning of a run that learns nothing."""

from __future__ import annotations

import builtins
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from embedserve_training.watch.monitor import Monitor, sign_of_failure
from embedserve_training.watch.progress import LINE_COLUMNS, Progress, duration, line_columns

PROGRESS = Progress(
    epoch=3,
    epochs=100,
    estimated=False,
    step=412,
    steps=14_000,
    loss=4.2131,
    chance=5.5452,
    collapse=5.5452,
    rank=87.2,
    dimension=512,
    std=0.931,
    alignment=0.78,
    uniformity=-3.2,
    lr=0.048,
    images_per_s=811.9,
    data_wait=0.041,
    seconds=90.0,
    eta_s=720.0,
    diagnostics={"pos": 0.611, "top1": 0.4},
)
BARLOW = replace(
    PROGRESS,
    epochs=20,
    steps=900,
    loss=1031.2,
    chance=2131.5,
    collapse=2048.0,
    dimension=64,
    rank=8.7,
    diagnostics={"on": 0.412, "off": 0.118, "pos": 0.6},
)


def quiet(line: str) -> None:
    """Discards the line."""


@pytest.fixture
def no_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def refuse(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("torch.utils.tensorboard"):
            raise ModuleNotFoundError("No module named 'tensorboard'")
        return original(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", refuse)


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves that TensorBoard shows for a folder: (step, value) by name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_the_progress_line_is_the_documented_one() -> None:
    assert PROGRESS.line() == (
        "epoch   3/100 step   412 loss 4.213 (chance 5.545) pos .61 rank  87/512 std .93 lr .048  812 img/s"
        " data-wait 4 % ETA 12m"
    )


def test_the_line_of_barlow_twins_shows_both_terms_and_the_loss_of_a_collapse() -> None:
    assert replace(BARLOW, std=math.nan).line() == (
        "epoch  3/20 step 412 loss 1031 (chance 2132, collapse 2048) on .41 off .12 rank  9/64 812 img/s"
        " data-wait 4 % ETA 12m"
    )


def test_the_loss_of_a_collapse_is_not_shown_within_a_hundredth_of_chance() -> None:
    near, far = (replace(PROGRESS, dimension=8, collapse=5.5452 * factor, std=math.nan) for factor in (0.991, 0.989))
    assert "collapse" not in near.line()
    assert "(chance 5.545, collapse 5.484)" in replace(far, diagnostics={}, steps=500, epochs=9).line()


@pytest.mark.parametrize(
    ("diagnostics", "shown"),
    [({"pos": -0.031}, " pos -.03 "), ({"pos": 0.996, "top1": 0.2}, " pos 1.0 "), ({"top1": 0.4}, " top1 .40 ")],
)
def test_the_line_shows_the_most_telling_diagnostic(diagnostics: dict[str, float], shown: str) -> None:
    assert shown in replace(PROGRESS, diagnostics=diagnostics).line()


@pytest.mark.parametrize("progress", [PROGRESS, BARLOW])
@pytest.mark.parametrize("changes", [{}, {"lr": 0.0000123, "steps": 1_250_000, "images_per_s": 12_345.0}])
@pytest.mark.parametrize("dimension", [512, 2048])
def test_the_line_fits_its_columns(progress: Progress, changes: dict[str, float], dimension: int) -> None:
    changed = replace(progress, estimated=True, dimension=dimension, eta_s=400_000, data_wait=0.37, **changes)  # type: ignore[arg-type]
    line = changed.line()
    assert len(line) <= LINE_COLUMNS
    assert "loss " in line
    assert "rank " in line
    assert line.endswith(" ETA 111h07m")


@pytest.mark.parametrize("progress", [PROGRESS, BARLOW])
@pytest.mark.parametrize("columns", [80, 100])
def test_the_line_fits_a_narrower_terminal(progress: Progress, columns: int) -> None:
    line = replace(progress, diagnostics={"pos": 0.61}).line(columns)
    assert len(line) <= columns
    assert line.startswith("epoch ")
    assert "loss " in line
    assert " ETA " in line


@pytest.mark.parametrize(("terminal", "columns"), [("80", 80), ("40", 80), ("100", 100), ("300", 120)])
def test_lines_are_as_wide_as_the_terminal_within_limits(
    monkeypatch: pytest.MonkeyPatch, terminal: str, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", terminal)
    assert line_columns() == columns


def test_fields_that_do_not_fit_are_left_out_of_the_line_and_kept_in_the_metrics() -> None:
    crowded = replace(PROGRESS, steps=1_250_000, dimension=2048)
    assert "lr" not in crowded.line()
    assert json.loads(crowded.to_json())["lr"] == 0.048


def test_fields_keep_their_columns_from_the_first_line_to_the_last() -> None:
    first = replace(PROGRESS, epoch=1, step=3, rank=7.1).line()
    last = replace(PROGRESS, epoch=100, step=14_000, rank=412.0).line()
    assert [first.index(word) for word in ("step", "loss", "pos", "std", "lr", "data-wait")] == [
        last.index(word) for word in ("step", "loss", "pos", "std", "lr", "data-wait")
    ]


def test_an_estimated_number_of_epochs_is_marked() -> None:
    assert replace(PROGRESS, estimated=True).line().startswith("epoch   3/~100 ")


def test_metrics_hold_all_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    lines: list[str] = []
    Monitor(tmp_path / "metrics.jsonl", lines.append).record(PROGRESS, used=0.03)
    assert lines == [PROGRESS.line()]
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "epoch": 3,
        "epochs": 100,
        "estimated": False,
        "step": 412,
        "steps": 14_000,
        "loss": 4.2131,
        "chance": 5.5452,
        "collapse": 5.5452,
        "rank": 87.2,
        "dimension": 512,
        "std": 0.931,
        "alignment": 0.78,
        "uniformity": -3.2,
        "lr": 0.048,
        "images_per_s": 811.9,
        "data_wait": 0.041,
        "seconds": 90.0,
        "eta_s": 720.0,
        "pos": 0.611,
        "top1": 0.4,
    }


def test_numbers_that_a_method_lacks_are_left_out_of_the_metrics() -> None:
    numbers = json.loads(replace(PROGRESS, alignment=math.nan).to_json())
    assert "alignment" not in numbers
    assert numbers["uniformity"] == -3.2


def test_records_after_the_checkpoint_are_dropped_on_resume(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path / "metrics.jsonl", quiet)
    for step in (10, 20, 30):
        monitor.record(replace(PROGRESS, step=step), used=0.0)
    with (tmp_path / "metrics.jsonl").open("a") as out:
        out.write('{"step": 1')  # cut short by a crash
    monitor.forget_after(20)
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [10, 20]


class TestTensorBoard:
    @pytest.fixture
    def monitor(self, tmp_path: Path) -> Iterator[Monitor]:
        monitor = Monitor(tmp_path / "metrics.jsonl", quiet, tensorboard=tmp_path / "tensorboard")
        yield monitor
        monitor.close()

    def test_curves_have_the_names_and_values_of_the_metrics(self, monitor: Monitor, tmp_path: Path) -> None:
        monitor.record(PROGRESS, used=0.0)
        drawn = curves(tmp_path / "tensorboard")
        numbers = json.loads(PROGRESS.to_json())
        assert numbers.keys() - drawn.keys() == {"epochs", "estimated", "step", "steps", "dimension"}
        for name, points in drawn.items():
            assert points == [(412, pytest.approx(numbers[name]))]

    def test_a_resumed_run_shows_each_step_once(self, monitor: Monitor, tmp_path: Path) -> None:
        for step, loss in ((10, 5.0), (20, 4.0), (30, 3.0)):
            monitor.record(replace(PROGRESS, step=step, loss=loss), used=0.0)
        monitor.close()
        resumed = Monitor(tmp_path / "metrics.jsonl", quiet, tensorboard=tmp_path / "tensorboard")
        resumed.forget_after(20)
        resumed.record(replace(PROGRESS, step=30, loss=3.5), used=0.0)
        resumed.close()
        assert curves(tmp_path / "tensorboard")["loss"] == [(10, 5.0), (20, 4.0), (30, 3.5)]

    def test_a_run_that_starts_over_shows_nothing_of_the_one_before(self, monitor: Monitor, tmp_path: Path) -> None:
        monitor.record(replace(PROGRESS, step=30), used=0.0)
        monitor.close()
        again = Monitor(tmp_path / "metrics.jsonl", quiet, tensorboard=tmp_path / "tensorboard")
        again.record(replace(PROGRESS, step=5), used=0.0)
        again.close()
        assert [step for step, _ in curves(tmp_path / "tensorboard")["loss"]] == [5]

    def test_event_files_are_written_only_on_request(self, tmp_path: Path) -> None:
        monitor = Monitor(tmp_path / "metrics.jsonl", quiet)
        monitor.record(PROGRESS, used=0.0)
        monitor.close()
        assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]

    @pytest.mark.usefixtures("no_tensorboard")
    def test_without_the_package_training_continues_and_one_line_says_so(self, tmp_path: Path) -> None:
        lines: list[str] = []
        monitor = Monitor(tmp_path / "metrics.jsonl", lines.append, tensorboard=tmp_path / "tensorboard")
        for step in (10, 20):
            monitor.record(replace(PROGRESS, step=step), used=0.0)
        monitor.close()
        assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
        assert [line for line in lines if not line.startswith("epoch")] == [
            "no curves for TensorBoard, training continues: No module named 'tensorboard' (pip install tensorboard)"
        ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"loss": 5.5}, "nothing is being learned (loss 5.500, chance 5.545)"), ({"loss": 5.45}, ""), ({}, "")],
)
def test_a_run_within_a_hundredth_of_chance_gets_a_warning(changes: dict[str, float], words: str) -> None:
    warning = sign_of_failure(replace(PROGRESS, **changes))  # type: ignore[arg-type]
    assert words in warning
    assert bool(warning) == bool(words)


@pytest.mark.parametrize(("epoch", "words"), [(4, [False, False, True, False]), (3, [False, False, False, True])])
def test_the_warning_comes_once_after_a_fifth_of_four_epochs_or_half_of_fewer(
    epoch: int, words: list[bool], tmp_path: Path
) -> None:
    lines: list[str] = []
    monitor = Monitor(tmp_path / "metrics.jsonl", lines.append)
    for used in (0.1, 0.3, 0.6):
        monitor.record(replace(PROGRESS, epoch=epoch, loss=6.0), used)
    assert [line.startswith("warning: ") for line in lines] == words


def test_there_is_no_warning_in_the_first_steps_of_a_short_run(tmp_path: Path) -> None:
    lines: list[str] = []
    Monitor(tmp_path / "metrics.jsonl", lines.append).record(replace(PROGRESS, step=40, loss=6.0), used=1.0)
    assert len(lines) == 1


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.4, "0s"), (42, "42s"), (720, "12m"), (11_100, "3h05m"), (-3, "0s")]
)
def test_durations_are_short_texts(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected
