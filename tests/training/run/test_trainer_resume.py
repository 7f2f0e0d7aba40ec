"""A run that is killed continues exactly, to the bit, with every method."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from embedserve_training.networks import backbones
from embedserve_training.plan.config import METHODS, TrainConfig
from embedserve_training.run import checkpoint, trainer
from embedserve_training.run.run import run_training

Config = Callable[..., TrainConfig]
CONFIGS: dict[str, dict[str, Any]] = {
    "simclr": {"optimizer": "adamw", "clip_norm": 1.0},
    "moco": {"optimizer": "sgd", "lr": 0.05, "queue_size": 20, "symmetric": True, "accumulate": 2, "bn_splits": 2},
    "barlow-twins": {"optimizer": "lars", "lr": 0.2, "projector_hidden": 32, "projector_dim": 24},
    "instance-discrimination": {"optimizer": "sgd", "lr": 0.03, "noise_samples": 8, "proximal": 1.0},
    "cpc": {"size_px": 20, "patch_px": 12, "patch_grid": 3, "predict_steps": 2},
}
STEPS, SAVED_AT, KILLED_AT = 9, 4, 6

KILLED = """
import json, os, signal, sys
from pathlib import Path
from embedserve_training.run import trainer
from embedserve_training.plan.config import TrainConfig
from embedserve_training.run.run import run_training

folder, out, config, saved_at, killed_at = sys.argv[1:]
step = trainer.Trainer._step

def step_or_die(self, *args):
    output = step(self, *args)
    trainer.CHECKPOINT_EVERY_S = 0.0 if self.step <= int(saved_at) else 1e9
    if self.step == int(killed_at):
        os.kill(os.getpid(), signal.SIGKILL)
    return output

trainer.Trainer._step = step_or_die
run_training(Path(folder), config=TrainConfig(**json.loads(config)), out=Path(out), report=print)
"""
"""A run that saves after each step up to one of them and is killed during a later one."""


def quiet(line: str) -> None:
    """Discards the line."""


def flat(document: Any, name: str = "") -> dict[str, Any]:
    """Every tensor and number of nested state, by its path."""
    if isinstance(document, dict):
        return {path: value for key, part in document.items() for path, value in flat(part, f"{name}/{key}").items()}
    if isinstance(document, list):
        return flat(dict(enumerate(document)), name)
    return {name: document}


def assert_equal_to_the_bit(run: Path, other: Path) -> None:
    one, two = checkpoint.load(run), checkpoint.load(other)
    assert (one.step, one.finished) == (two.step, two.finished)
    whitenings = (one.whitening or {}, two.whitening or {})
    for left, right in ((one.method, two.method), (one.optimizer, two.optimizer), whitenings):
        values, others = flat(dict(left)), flat(dict(right))
        assert values.keys() == others.keys()
        differing = [
            name
            for name, value in values.items()
            if not (torch.equal(value, others[name]) if isinstance(value, torch.Tensor) else value == others[name])
        ]
        assert differing == []


def test_every_method_has_a_configuration() -> None:
    assert set(CONFIGS) == set(METHODS)


@pytest.mark.parametrize("method", CONFIGS)
def test_a_run_killed_within_a_step_and_started_again_equals_an_uninterrupted_one_to_the_bit(
    method: str, image_folder: Path, tmp_path: Path
) -> None:
    values: dict[str, Any] = {"method": method, "backbone": "small-cnn", "batch_size": 16, "epochs": 3}
    values |= {"device": "cpu", "workers": 1}
    values |= CONFIGS[method]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.run(
        [sys.executable, "-c", KILLED, image_folder, killed, json.dumps(values), str(SAVED_AT), str(KILLED_AT)],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert checkpoint.load(killed).step == SAVED_AT  # the steps after it are lost, and taken again
    config = TrainConfig(**values)
    run_training(image_folder, config=config, out=whole, report=quiet)
    lines: list[str] = []
    resumed = run_training(image_folder, config=config, out=killed, report=lines.append)
    assert f"continuing at step {SAVED_AT}" in lines
    assert (resumed.status, resumed.steps) == ("finished", STEPS)
    assert_equal_to_the_bit(killed, whole)


def test_what_the_network_draws_is_drawn_again_after_a_resume(
    image_folder: Path, tmp_path: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = backbones.build

    def with_dropout(name: str, size_px: int) -> backbones.Backbone:
        backbone = build(name, size_px)
        return backbones.Backbone(nn.Sequential(backbone.body, nn.Dropout(0.5)), name, backbone.dimension)

    monkeypatch.setattr(backbones, "build", with_dropout)
    run_training(image_folder, config=tiny_config(), out=tmp_path / "whole", report=quiet)
    with monkeypatch.context() as patch:
        step = trainer.Trainer._step

        def step_and_signal(self: trainer.Trainer, *args: torch.Tensor) -> object:
            output = step(self, *args)
            if self.step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return output

        patch.setattr(trainer.Trainer, "_step", step_and_signal)
        assert run_training(image_folder, config=tiny_config(), out=tmp_path / "halves", report=quiet).steps == 2
    torch.manual_seed(99)  # as if other numbers were drawn in between
    run_training(image_folder, config=tiny_config(), out=tmp_path / "halves", report=quiet)
    assert_equal_to_the_bit(tmp_path / "halves", tmp_path / "whole")
