"""Whole runs: planning, resuming to the bit, stopping, budgets, and errors that end a run."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from embedserve.errors import DataError, SetupError, TrainingError
from embedserve_training.methods.method import StepOutput
from embedserve_training.plan.config import TrainConfig
from embedserve_training.run import checkpoint, gradient, run_folder, trainer
from embedserve_training.run.run import run_training
from embedserve_training.watch.monitor import Monitor
from embedserve_training.watch.progress import Progress

Config = Callable[..., TrainConfig]


def quiet(line: str) -> None:
    """Discards the line."""


def weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(checkpoint.load(run).method)


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch, number: int = signal.SIGINT) -> None:
    """Make the next run send itself a signal while it takes a step."""
    original = trainer.Trainer._step

    def step_and_signal(self: trainer.Trainer, *args: torch.Tensor) -> object:
        output = original(self, *args)
        if self.step == step:
            signal.raise_signal(number)
        return output

    monkeypatch.setattr(trainer.Trainer, "_step", step_and_signal)


def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one_to_the_bit(
    image_folder: Path, tmp_path: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(epochs=4)
    run_training(image_folder, config=config, out=tmp_path / "whole", report=quiet)
    with monkeypatch.context() as patch:
        stop_at(5, patch)  # in the middle of the second epoch of three steps
        stopped = run_training(image_folder, config=config, out=tmp_path / "halves", report=quiet)
    assert (stopped.status, stopped.steps) == ("stopped", 5)
    resumed = run_training(image_folder, config=config, out=tmp_path / "halves", report=quiet)
    assert (resumed.status, resumed.steps) == ("finished", 12)
    whole, halves = checkpoint.load(tmp_path / "whole"), checkpoint.load(tmp_path / "halves")
    assert all(torch.equal(whole.method[name], halves.method[name]) for name in whole.method)
    for own, other in zip(whole.optimizer["state"].values(), halves.optimizer["state"].values(), strict=True):
        assert all(torch.equal(own[name], other[name]) for name in own)


def test_the_same_line_twice_gives_the_same_weights_and_another_seed_others(
    image_folder: Path, tmp_path: Path, tiny_config: Config
) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run_training(image_folder, config=tiny_config(epochs=1, seed=seed), out=tmp_path / name, report=quiet)
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert any(not torch.equal(a[key], c[key]) for key in a)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_run_with_a_checkpoint_of_its_last_step(
    number: int, image_folder: Path, tmp_path: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(number)
    lines: list[str] = []
    stop_at(2, monkeypatch, number)
    result = run_training(image_folder, config=tiny_config(), out=tmp_path, report=lines.append)
    assert (result.status, checkpoint.load(tmp_path).step, checkpoint.load(tmp_path).finished) == ("stopped", 2, False)
    assert any(signal.Signals(number).name in line for line in lines)
    assert signal.getsignal(number) == before


def test_training_lowers_the_loss_clearly_below_chance(image_folder: Path, tmp_path: Path, tiny_config: Config) -> None:
    result = run_training(image_folder, config=tiny_config(epochs=15), out=tmp_path, report=quiet)
    assert result.progress is not None
    assert result.progress.loss < result.progress.chance - 0.3


def test_a_finished_run_is_left_alone(finished_run: Path, image_folder: Path, tiny_config: Config) -> None:
    before = (finished_run / run_folder.CHECKPOINT).read_bytes()
    result = run_training(image_folder, config=tiny_config(), out=finished_run, report=quiet)
    assert (result.status, result.steps, result.images) == ("finished before", 6, 48)
    assert (finished_run / run_folder.CHECKPOINT).read_bytes() == before


def test_fresh_starts_over(finished_run: Path, image_folder: Path, tmp_path: Path, tiny_config: Config) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished_run, out)
    result = run_training(image_folder, config=tiny_config(epochs=1), out=out, report=quiet, fresh=True)
    assert (result.status, result.steps) == ("finished", 3)
    records = (out / run_folder.METRICS).read_text().splitlines()
    assert [json.loads(line)["step"] for line in records] == [3]


def test_a_run_is_not_continued_with_another_configuration(
    finished_run: Path, image_folder: Path, tiny_config: Config
) -> None:
    with pytest.raises(TrainingError, match=r"tau was None and is 0\.3") as caught:
        run_training(image_folder, config=tiny_config(tau=0.3), out=finished_run, report=quiet)
    assert "--fresh" in caught.value.hint


def test_a_run_is_not_continued_with_changed_images(
    image_folder: Path, tmp_path: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, out = tmp_path / "images", tmp_path / "run"
    shutil.copytree(image_folder, images)
    with monkeypatch.context() as patch:
        stop_at(2, patch)
        run_training(images, config=tiny_config(), out=out, report=quiet)
    Image.new("RGB", (16, 16)).save(images / "discs/00.png")
    with pytest.raises(TrainingError, match=r"have changed since the run .*: 1 has other bytes: discs/00\.png"):
        run_training(images, config=tiny_config(), out=out, report=quiet)


def test_two_processes_do_not_train_in_one_folder(image_folder: Path, tmp_path: Path, tiny_config: Config) -> None:
    import fcntl

    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(TrainingError, match="another process is training"):
            run_training(image_folder, config=tiny_config(), out=tmp_path, report=quiet)
    assert run_training(image_folder, config=tiny_config(), out=tmp_path, report=quiet).status == "finished"


def test_a_dry_run_reports_the_plan_and_writes_nothing(image_folder: Path, tmp_path: Path, tiny_config: Config) -> None:
    lines: list[str] = []
    result = run_training(image_folder, config=tiny_config(), out=tmp_path / "run", report=lines.append, dry_run=True)
    assert (result.status, result.images) == ("planned", 48)
    assert not (tmp_path / "run").exists()
    assert any(line.split()[:3] == ["batch_size", "16", "flag"] for line in lines)


def test_the_run_folder_holds_plan_metrics_checkpoint_and_samples(finished_run: Path) -> None:
    plan = run_folder.read_plan(finished_run)
    assert plan.sources["batch_size"] == "flag"
    assert plan.data["images"] == 48
    assert (finished_run / run_folder.SAMPLES).exists()
    assert (finished_run / run_folder.SKIPPED).read_text() == ""
    record = json.loads((finished_run / run_folder.METRICS).read_text().splitlines()[-1])
    assert {"step", "loss", "chance", "pos", "rank", "lr", "images_per_s", "data_wait", "eta_s"} <= set(record)
    assert not (finished_run / run_folder.CACHE).exists()  # it is large, and only training needs it


def test_unreadable_images_are_listed_and_training_continues(
    image_folder: Path, tmp_path: Path, tiny_config: Config
) -> None:
    images = tmp_path / "images"
    shutil.copytree(image_folder, images)
    (images / "broken.png").write_bytes(b"not a picture")
    result = run_training(images, config=tiny_config(epochs=1), out=tmp_path / "run", report=quiet)
    assert (result.status, result.images) == ("finished", 48)
    assert [entry.path for entry in result.skipped] == ["broken.png"]
    assert (tmp_path / "run" / run_folder.SKIPPED).read_text().startswith("broken.png\t")


def test_too_few_images_are_refused(tmp_path: Path, tiny_config: Config) -> None:
    (tmp_path / "images").mkdir()
    for i in range(5):
        Image.new("RGB", (16, 16)).save(tmp_path / f"images/{i}.png")
    with pytest.raises(DataError, match="has 5 readable images; training needs at least 16"):
        run_training(tmp_path / "images", config=tiny_config(batch_size=None), out=tmp_path / "run", report=quiet)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_last_good_checkpoint(
    image_folder: Path, tmp_path: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = trainer.Trainer._step

    def poisoned(self: trainer.Trainer, *args: torch.Tensor) -> object:
        if self.step == 3:
            with torch.no_grad():
                next(self.method.parameters()).fill_(float("nan"))
        return original(self, *args)

    monkeypatch.setattr(trainer.Trainer, "_step", poisoned)
    monkeypatch.setattr(trainer, "CHECKPOINT_EVERY_S", 0.0)
    with pytest.raises(TrainingError, match=r"the loss is nan at step 3 .*checkpoint\.pt, of step 3") as caught:
        run_training(image_folder, config=tiny_config(), out=tmp_path, report=quiet)
    assert "lr=" in caught.value.hint
    assert all(torch.isfinite(value).all() for value in weights(tmp_path).values())


def test_a_run_that_collapses_is_stopped_on_request_and_else_continues(
    image_folder: Path, tmp_path: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = gradient.BatchGradient.of

    def alike(self: gradient.BatchGradient, *args: Any) -> StepOutput:
        output = of(self, *args)
        features_ND, projections_ND = torch.ones_like(output.features_ND), torch.ones_like(output.projections_ND)
        return replace(output, features_ND=features_ND, projections_ND=projections_ND)

    monkeypatch.setattr(gradient.BatchGradient, "of", alike)
    config = tiny_config(epochs=26)  # 78 steps: checks after 50 and 75 see the same
    with pytest.raises(TrainingError, match=r"collapsed at step 75: .*the last good checkpoint is .*, of step") as stop:
        run_training(image_folder, config=config, out=tmp_path, report=quiet, stop_on_collapse=True)
    assert "lr" in stop.value.hint
    lines: list[str] = []
    result = run_training(image_folder, config=config, out=tmp_path, report=lines.append)
    assert (result.status, result.steps) == ("finished", 78)
    assert any(line.startswith("continuing at step ") for line in lines)
    assert sum("have collapsed at step" in line for line in lines) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU")
def test_a_missing_gpu_is_named(image_folder: Path, tmp_path: Path, tiny_config: Config) -> None:
    with pytest.raises(SetupError, match="device cuda was asked for"):
        run_training(image_folder, config=tiny_config(device="cuda"), out=tmp_path, report=quiet)


def test_a_budget_in_minutes_is_kept_and_its_schedule_runs_to_the_end(
    image_folder: Path, tmp_path: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    record = Monitor.record

    def keep(self: Monitor, progress: Progress, used: float) -> None:
        rates.append(progress.lr)
        record(self, progress, used)

    monkeypatch.setattr(Monitor, "record", keep)
    monkeypatch.setattr(trainer, "REPORT_EVERY_S", 0.0)
    now = 0.0

    def clock() -> float:
        # Read three times a step, so a step takes 0.1 s, however fast this machine is.
        nonlocal now
        now += 0.1 / 3
        return now

    monkeypatch.setattr(time, "perf_counter", clock)
    result = run_training(image_folder, config=tiny_config(minutes=0.1), out=tmp_path, report=quiet)
    assert result.status == "finished"
    assert result.seconds == pytest.approx(6.0, abs=0.2)
    assert max(rates) > 0.95 * result.plan.settings.lr
    assert rates[-1] < 0.02 * result.plan.settings.lr


def test_a_budget_too_small_to_learn_anything_is_reported(
    image_folder: Path, tmp_path: Path, tiny_config: Config
) -> None:
    lines: list[str] = []
    run_training(image_folder, config=tiny_config(minutes=0.001), out=tmp_path, report=lines.append)
    assert any("too few to learn from" in line for line in lines)


def test_every_image_is_used_once_per_epoch_but_for_the_incomplete_batch() -> None:
    import numpy as np

    from embedserve_training.data.batches import Batches

    pixels = np.zeros((10, 2, 2, 3), np.uint8)
    pixels[:, 0, 0, 0] = range(10)
    batches = Batches(pixels, 3, seed=0, device=torch.device("cpu")).start_at(0)
    first, second = ([next(batches) for _ in range(3)] for _ in range(2))
    for epoch in (first, second):
        indices = torch.cat([indices for indices, _ in epoch])
        assert len(set(indices.tolist())) == 9
    assert all(torch.equal(pixels_BTTC[:, 0, 0, 0].long(), indices) for indices, pixels_BTTC in first)
    assert not torch.equal(first[0][0], second[0][0])


def test_batches_fetched_ahead_are_those_of_resident_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    from embedserve_training.data import batches as module

    pixels = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3), dtype=np.uint8)

    def take(count: int) -> list[torch.Tensor]:
        stream = module.Batches(pixels, 6, seed=1, device=torch.device("cpu")).start_at(2)
        taken = [next(stream)[1] for _ in range(count)]
        stream.close()
        return taken

    resident = take(8)
    monkeypatch.setattr(module, "_fits", lambda size, device: False)
    assert all(torch.equal(a, b) for a, b in zip(resident, take(8), strict=True))


KILLED = """
import sys
from pathlib import Path
from embedserve_training.run import trainer
from embedserve_training.plan.config import TrainConfig
from embedserve_training.run.run import run_training
trainer.CHECKPOINT_EVERY_S = trainer.REPORT_EVERY_S = 0.0
config = TrainConfig(backbone="small-cnn", batch_size=16, epochs=10_000, device="cpu", workers=1)
run_training(Path(sys.argv[1]), config=config, out=Path(sys.argv[2]), report=lambda line: print(line, flush=True))
"""


def test_a_run_killed_while_it_writes_checkpoints_leaves_one_that_loads(image_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(image_folder), str(out)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    # A checkpoint is written after every step, so that one is under way most of the time.
    steps = (line for line in process.stdout if line.startswith("epoch"))
    for _ in range(4):
        next(steps)
    process.kill()
    process.wait()
    process.stdout.close()
    saved = checkpoint.load(out)
    assert saved.step > 0
    assert all(torch.isfinite(value).all() for value in saved.method.values())


def test_asymmetric_moco_trains_with_an_odd_number_of_images_in_a_batch(
    image_folder: Path, tmp_path: Path, tiny_config: Config
) -> None:
    # Its h is that of the queries alone, its z that of queries and keys: the monitor sees 15 and 30 rows.
    config = tiny_config(method="moco", symmetric=False, batch_size=15, epochs=17)
    result = run_training(image_folder, config=config, out=tmp_path, report=quiet)
    assert (result.status, result.steps) == ("finished", 51)
