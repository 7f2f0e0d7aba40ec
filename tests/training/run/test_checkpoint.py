"""Checkpoints are complete or absent, and errors say what is wrong with a run folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from embedserve.errors import TrainingError
from embedserve_training.run import checkpoint, run_folder
from embedserve_training.run.checkpoint import Checkpoint


def make(step: int) -> Checkpoint:
    return Checkpoint(
        step=step,
        seconds=1.5,
        step_s=0.1,
        finished=False,
        method={"weight": torch.full((3,), float(step))},
        optimizer={"state": {}, "param_groups": []},
    )


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    checkpoint.save(make(7), tmp_path)
    loaded = checkpoint.load(tmp_path)
    assert (loaded.step, loaded.seconds, loaded.finished) == (7, 1.5, False)
    assert torch.equal(loaded.method["weight"], torch.full((3,), 7.0))


def test_a_write_that_fails_keeps_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(make(1), tmp_path)

    def half_way(document: object, out: object) -> None:
        out.write(b"half of a checkpoint")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half_way)
        with pytest.raises(TrainingError, match="No space left on device"):
            checkpoint.save(make(2), tmp_path)
    assert checkpoint.load(tmp_path).step == 1
    assert [path.name for path in tmp_path.iterdir()] == [run_folder.CHECKPOINT]


def test_a_folder_without_a_run_says_how_to_start_one(tmp_path: Path) -> None:
    for read in (checkpoint.load, run_folder.read_plan):
        with pytest.raises(TrainingError, match="holds no training run") as caught:
            read(tmp_path)
        assert "embedserve train" in caught.value.hint


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / run_folder.CHECKPOINT).write_bytes(b"no checkpoint at all")
    with pytest.raises(TrainingError, match=r"checkpoint\.pt cannot be read") as caught:
        checkpoint.load(tmp_path)
    assert "--fresh" in caught.value.hint


def test_a_checkpoint_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    torch.save({"format": 99}, tmp_path / run_folder.CHECKPOINT)
    with pytest.raises(TrainingError, match="has format 99"):
        checkpoint.load(tmp_path)


def test_a_damaged_plan_is_named(tmp_path: Path) -> None:
    (tmp_path / run_folder.PLAN).write_text('{"format": 1}')
    with pytest.raises(TrainingError, match=r"plan\.json cannot be understood"):
        run_folder.read_plan(tmp_path)
