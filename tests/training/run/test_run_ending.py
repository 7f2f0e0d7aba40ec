"""What follows the last step: it is foreseen in the minutes, shows progress, and may be interrupted."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from embedserve_training.export.export import export
from embedserve_training.networks import whitening
from embedserve_training.plan.config import TrainConfig
from embedserve_training.run import checkpoint, ending, trainer
from embedserve_training.run.budget import Budget, Spent
from embedserve_training.run.run import RunResult, run_training

Config = Callable[..., TrainConfig]


def train(folder: Path, out: Path, config: TrainConfig, lines: list[str] | None = None) -> RunResult:
    return run_training(folder, config=config, out=out, report=(lines if lines is not None else []).append)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The 48 images are embedded in three batches."""
    monkeypatch.setattr(whitening, "_BATCH", 16)


def signal_at_batch(number: int, monkeypatch: pytest.MonkeyPatch, *, times: int = 1) -> None:
    """Send the process SIGINT, as Ctrl-C does, while a batch is embedded."""
    embed, calls = whitening._embed, 0

    def embed_and_signal(*args: object, **options: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if number <= calls < number + times:
            signal.raise_signal(signal.SIGINT)
        return embed(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(whitening, "_embed", embed_and_signal)


@pytest.mark.usefixtures("small_batches")
def test_the_whitening_shows_progress(
    image_folder: Path, tmp_path: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "REPORT_EVERY_S", 0.0)
    lines: list[str] = []
    result = train(image_folder, tmp_path, tiny_config(epochs=1), lines)
    shown = [line for line in lines if line.startswith("whitening")]
    assert shown == ["whitening the embeddings  16/48 images", "whitening the embeddings  32/48 images"]
    assert result.whitening_s > 0


@pytest.mark.usefixtures("small_batches")
def test_ctrl_c_during_the_whitening_leaves_a_run_that_goes_on_and_can_be_exported(
    image_folder: Path, finished_run: Path, tmp_path: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    with monkeypatch.context() as patch:
        signal_at_batch(2, patch)
        result = train(image_folder, tmp_path / "run", tiny_config(), lines)
    saved = checkpoint.load(tmp_path / "run")
    assert (result.status, saved.step, saved.finished, saved.whitening) == ("stopped", 6, False, None)
    assert any(line.startswith("stopped without the whitening layer") for line in lines)
    file = export(tmp_path / "run", tmp_path / "encoder.onnx", report=lines.append)
    assert file.metadata.training["whiten"] is True
    again = train(image_folder, tmp_path / "run", tiny_config())
    assert (again.status, again.steps) == ("finished", 6)
    one, two = (checkpoint.load(run).whitening for run in (tmp_path / "run", finished_run))
    assert one is not None
    assert two is not None
    torch.testing.assert_close(one["matrix_DD"], two["matrix_DD"])


@pytest.mark.usefixtures("small_batches")
def test_a_second_ctrl_c_ends_the_whitening_of_a_stopped_run_without_an_error(
    image_folder: Path, tmp_path: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = trainer.Trainer._step

    def step_and_signal(self: trainer.Trainer, *args: torch.Tensor) -> object:
        output = step(self, *args)
        if self.step == 2:
            signal.raise_signal(signal.SIGINT)
        return output

    monkeypatch.setattr(trainer.Trainer, "_step", step_and_signal)
    signal_at_batch(2, monkeypatch)
    result = train(image_folder, tmp_path, tiny_config())
    saved = checkpoint.load(tmp_path)
    assert (result.status, saved.step, saved.whitening) == ("stopped", 2, None)


def test_the_last_step_is_on_disk_before_the_whitening_begins(
    image_folder: Path, tmp_path: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    whiten = ending.whiten

    def look(*args: object, **options: object) -> object:
        seen.append(checkpoint.load(tmp_path).step)
        return whiten(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(ending, "whiten", look)
    train(image_folder, tmp_path, tiny_config())
    assert seen == [6]


def test_the_time_of_the_whitening_is_measured_on_some_images_and_kept_free() -> None:
    budget = Budget(epochs=0, minutes=2.0, steps_per_epoch=5, reserve_s=20.0)
    assert budget.used(Spent(seconds=50.0)) == 0.5
    assert budget.done(Spent(seconds=100.0))
    assert not budget.done(Spent(seconds=99.9))
    assert budget.left_s(Spent(seconds=90.0), 1.0) == 10.0


def test_a_run_keeps_what_it_measured_at_its_start_up_to_a_quarter_of_the_minutes(
    image_folder: Path, tmp_path: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whitening, "seconds_to_fit", lambda *args, **options: 1000.0)
    train(image_folder, tmp_path / "minutes", tiny_config(minutes=0.004))
    assert checkpoint.load(tmp_path / "minutes").reserve_s == pytest.approx(0.06)
    train(image_folder, tmp_path / "epochs", tiny_config(epochs=1))
    assert checkpoint.load(tmp_path / "epochs").reserve_s == 0.0


def test_a_checkpoint_of_an_older_version_reserves_nothing(finished_run: Path, tmp_path: Path) -> None:
    document = torch.load(finished_run / "checkpoint.pt", weights_only=True)
    del document["reserve_s"]
    torch.save(document, tmp_path / "checkpoint.pt")
    assert checkpoint.load(tmp_path).reserve_s == 0.0


def test_the_split_is_part_of_the_last_line() -> None:
    result = RunResult(
        run=Path("run"),
        status="finished",
        plan=None,  # type: ignore[arg-type]
        images=48,
        seconds=372.0,
        whitening_s=48.0,
    )
    assert result.took == "6.2 minutes, then 48 seconds of whitening"
