"""Whole runs of two processes on the CPU: they learn what one process learns, and end together.

SimCLR and Barlow Twins normalise over the global batch. MoCo's two processes with s parts of batch-norm equal one
process with 2 · s. Instance Discrimination normalises each process's batch, so one process that splits its batch stands
for two. CPC has no batch-norm. Running statistics that each process has for itself are those of process 0, and are not
compared.

Runs that are compared are in fp64 throughout, losses, queue and bank too: rounding in fp32 pushes a ReLU to its other
side, which after three steps is 1e-4 to 3e-3 of the distance that the weights have moved, on processors whose kernels
round a batch and its halves differently. In fp64 the runs were at most 2e-9 of it apart, with the kernels for AVX-512,
AVX2 and neither (``ATEN_CPU_CAPABILITY``).
"""

from __future__ import annotations

import json
import math
import os
import signal
import traceback
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from embedserve.errors import EmbedserveError, TrainingError
from embedserve_training import methods
from embedserve_training.distributed import launch
from embedserve_training.methods.method import Method, StepOutput
from embedserve_training.networks import backbones, batch_norm
from embedserve_training.plan.config import TrainConfig
from embedserve_training.run import checkpoint, gradient, run_folder, trainer
from embedserve_training.run.run import RunResult, run_training

SGD = {"optimizer": "sgd", "lr": 0.1, "warmup": 0.0, "epochs": 1, "whiten": False}
CASES: dict[str, dict[str, Any]] = {
    "simclr": {"method": "simclr", **SGD},
    "barlow-twins": {"method": "barlow-twins", **SGD, "lr": 0.005, "projector_hidden": 32, "projector_dim": 24},
    "moco": {"method": "moco", **SGD, "queue_size": 20, "bn_splits": 2},
    "moco in parts": {"method": "moco", **SGD, "queue_size": 20, "bn_splits": 1, "accumulate": 2},
    "instance-discrimination": {"method": "instance-discrimination", **SGD, "noise_samples": 8},
    "cpc": {"method": "cpc", **SGD, "size_px": 20, "patch_px": 12, "patch_grid": 3, "predict_steps": 2},
}
ALONE = {"moco": {"bn_splits": 4}, "moco in parts": {"bn_splits": 2}}
"""The settings of the one process where they differ."""
OWN_STATISTICS = ("moco", "moco in parts", "instance-discrimination")


def config_of(name: str, **changes: Any) -> TrainConfig:
    values = {"backbone": "small-cnn", "batch_size": 16, "device": "cpu", "workers": 1}
    return TrainConfig(**{**values, **CASES[name], **changes})


Step = Callable[[trainer.Trainer], None]


def during(steps: dict[int, Step]) -> Callable[..., StepOutput]:
    """A step after which something else is done."""
    original = trainer.Trainer._step

    def step(self: trainer.Trainer, *args: Tensor) -> StepOutput:
        output = original(self, *args)
        if self.step in steps:
            steps[self.step](self)
        return output

    return step


def in_double(patch: pytest.MonkeyPatch) -> None:
    """Make methods and views of the following runs fp64, and report all steps once, at the end."""
    build, views = methods.build, gradient.BatchGradient._views

    def build_in_double(*args: Any, **named: Any) -> Method:
        return build(*args, **named).double()

    patch.setattr(trainer, "REPORT_EVERY_S", math.inf)
    patch.setattr(methods, "build", build_in_double)
    patch.setattr(gradient.BatchGradient, "_views", lambda self, *args: [view.double() for view in views(self, *args)])


def stop(self: trainer.Trainer) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def work(rank: int, folder: str, images: str) -> None:
    """One of two processes, through all runs."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    outcomes: dict[str, Any] = {}
    try:
        _runs(rank, Path(folder), Path(images), outcomes)
    except BaseException:
        outcomes["unexpected"] = traceback.format_exc()
    Path(folder, f"{rank}.json").write_text(json.dumps(outcomes))


def _runs(rank: int, folder: Path, images: Path, outcomes: dict[str, Any]) -> None:
    lines: list[str] = []

    def run(name: str, case: str, **changes: Any) -> RunResult:
        lines.clear()
        result = run_training(images, config=config_of(case, **changes), out=folder / name, report=lines.append)
        outcomes[name] = {"status": result.status, "steps": result.steps, "rank": result.rank, "lines": list(lines)}
        return result

    with pytest.MonkeyPatch.context() as patch:
        in_double(patch)
        for name in CASES:
            run(name, name)
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            patch.setattr(trainer.Trainer, "_step", during({2: stop}))
        run("stopped", "simclr")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "CHECKPOINT_EVERY_S", 0.0)
        patch.setattr(launch.ProcessGroup, "_wait_for_exit_of", lambda self, rank: None)  # there is more to do
        if rank == 1:
            of = gradient.BatchGradient.of

            def poisoned(self: gradient.BatchGradient, pixels: Tensor, indices: Tensor, step: int) -> StepOutput:
                output = of(self, pixels, indices, step)
                return replace(output, loss=output.loss * math.nan) if step == 2 else output

            patch.setattr(gradient.BatchGradient, "of", poisoned)
        outcomes["not finite"] = _failure(lambda: run("not finite", "simclr"))
    images = folder / "nowhere"
    outcomes["no images"] = _failure(lambda: run("no images", "simclr"))


def _failure(fail: Callable[[], object]) -> list[Any]:
    try:
        fail()
    except EmbedserveError as error:
        return [type(error).__name__, error.message]
    except SystemExit as end:
        return ["SystemExit", end.code]
    return []


@pytest.fixture(scope="module")
def both(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs of two processes, and the outcomes in each."""
    folder = tmp_path_factory.mktemp("both")
    spawn(work, args=(str(folder), str(image_folder)), nprocs=2)
    for rank in (0, 1):
        assert "unexpected" not in said(folder, rank), said(folder, rank)["unexpected"]
    return folder


def said(folder: Path, rank: int) -> dict[str, Any]:
    outcomes: dict[str, Any] = json.loads((folder / f"{rank}.json").read_text())
    return outcomes


def state_of(run: Path) -> dict[str, Tensor]:
    return dict(checkpoint.load(run).method)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_run_of_two_processes_ends_with_the_state_of_a_run_of_one(
    name: str, both: Path, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_double(monkeypatch)
    if name == "instance-discrimination":
        build = backbones.build
        monkeypatch.setattr(backbones, "build", lambda *args: batch_norm.split(build(*args), 2))
    result = run_training(
        image_folder, config=config_of(name, **ALONE.get(name, {})), out=tmp_path / "run", report=lambda line: None
    )
    assert (said(both, 0)[name]["status"], said(both, 0)[name]["steps"]) == ("finished", 3)
    torch.manual_seed(0)
    before = methods.build(result.plan.settings, 48).state_dict()
    one, two = state_of(tmp_path / "run"), state_of(both / name)
    assert one.keys() == two.keys()
    compared = [key for key in one if not (name in OWN_STATISTICS and "running_" in key) and "num_batches" not in key]
    for key in compared:
        way = float((one[key] - before[key]).double().norm())
        apart = float((one[key] - two[key]).double().norm())
        assert one[key].dtype in (torch.float64, torch.int64), key
        assert apart <= 1e-7 * way + 1e-12, f"{key}: {apart} apart on a way of {way}"
    assert sum(not torch.equal(one[key], before[key]) for key in compared) > 10
    losses = [json.loads((run / run_folder.METRICS).read_text())["loss"] for run in (tmp_path / "run", both / name)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)


@pytest.mark.slow
def test_process_0_reports_and_writes_for_all(both: Path) -> None:
    first, second = (said(both, rank)["simclr"] for rank in (0, 1))
    assert (first["rank"], second["rank"]) == (0, 1)
    assert second["lines"] == []
    assert any(line.startswith("epoch 1/1") for line in first["lines"])
    assert len((both / "simclr" / run_folder.METRICS).read_text().splitlines()) == 1
    assert run_folder.read_plan(both / "simclr").data["processes"] == 2


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_after_the_same_step(both: Path) -> None:
    for rank in (0, 1):
        outcome = said(both, rank)["stopped"]
        assert (outcome["status"], outcome["steps"]) == ("stopped", 2)
    assert "another process was asked to stop: stopping after this step" in said(both, 0)["stopped"]["lines"]
    saved = checkpoint.load(both / "stopped")
    assert (saved.step, saved.finished) == (2, False)


@pytest.mark.slow
def test_a_run_of_two_processes_does_not_continue_with_one(both: Path, image_folder: Path) -> None:
    with pytest.raises(TrainingError, match="was started with 2 processes, not with 1") as refused:
        run_training(image_folder, config=config_of("simclr"), out=both / "stopped", report=lambda line: None)
    assert "--fresh" in refused.value.hint


@pytest.mark.slow
def test_a_loss_that_is_not_finite_in_one_process_ends_all_and_it_names_the_last_good_checkpoint(
    both: Path,
) -> None:
    kind, message = said(both, 1)["not finite"]
    assert kind == "TrainingError"
    assert message.startswith("the loss is nan at step 2 ")
    assert message.endswith("checkpoint.pt, of step 2")
    assert checkpoint.load(both / "not finite").step == 2
    assert said(both, 0)["not finite"] == ["SystemExit", 1]


@pytest.mark.slow
def test_an_error_before_training_ends_all_processes_with_one_message(both: Path) -> None:
    kind, message = said(both, 0)["no images"]
    assert (kind, "nowhere" in message) == ("DataError", True)
    assert said(both, 1)["no images"] == ["SystemExit", 1]


def test_the_cases_are_those_of_the_settings() -> None:
    assert {asdict(config_of(name))["method"] for name in CASES} == set(methods.METHODS)
