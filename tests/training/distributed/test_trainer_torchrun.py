"""Two processes that torchrun starts, through the command line: killed, stopped, and continued bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from embedserve_training.run import checkpoint
from tests.training.run.test_trainer_resume import assert_equal_to_the_bit

STEPS, SAVED_AT, KILLED_AT = 30, 4, 6

KILLED = """
import os, signal
from embedserve.cli import run
from embedserve_training.run import trainer

step = trainer.Trainer._step

def step_or_die(self, *args):
    output = step(self, *args)
    trainer.CHECKPOINT_EVERY_S = 0.0 if self.step <= SAVED_AT else 1e9
    if self.step == KILLED_AT:
        os.kill(os.getpid(), signal.SIGKILL)
    return output

trainer.Trainer._step = step_or_die
run()
"""
"""The command line, saving after each step up to one of them; every process is killed within a later one."""


def torchrun(program: list[str], folder: Path, out: Path) -> subprocess.Popen[str]:
    """Two processes that train, with their output in one pipe."""
    line = [*program, "train", str(folder), "-o", str(out), "--method", "moco", "--set", "queue_size=20"]
    line += ["--backbone", "small-cnn", "--batch-size", "16", "--epochs", "10", "--device", "cpu", "--workers", "1"]
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *line],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_two_processes_that_are_killed_and_then_stopped_continue_bit_for_bit(
    image_folder: Path, tmp_path: Path
) -> None:
    whole, halves, script = tmp_path / "whole", tmp_path / "halves", tmp_path / "killed.py"
    script.write_text(KILLED.replace("SAVED_AT", str(SAVED_AT)).replace("KILLED_AT", str(KILLED_AT)))
    embedserve = ["-m", "embedserve"]

    killed = torchrun([str(script)], image_folder, halves)
    _, said = killed.communicate()
    assert killed.returncode != 0
    assert "Signal 9" in said or "SIGKILL" in said, said
    assert checkpoint.load(halves).step == SAVED_AT, said

    stopped = torchrun(embedserve, image_folder, halves)
    assert stopped.stderr is not None
    lines = []
    for line in stopped.stderr:
        lines.append(line)
        if line.startswith(f"continuing at step {SAVED_AT}"):
            stopped.send_signal(signal.SIGTERM)
    stopped.wait()
    stopped.stderr.close()
    said = "".join(lines)
    assert "stopping after this step" in said, said
    assert said.count("the same command continues from there") in (1, 2)  # of process 0 alone
    saved = checkpoint.load(halves)
    assert SAVED_AT < saved.step < STEPS
    assert not saved.finished

    for out in (halves, whole):
        finished = torchrun(embedserve, image_folder, out)
        _, said = finished.communicate()
        assert finished.returncode == 0, said
        assert said.count(f"{out}: {STEPS} steps on 48 images") == 1
    assert checkpoint.load(whole).step == STEPS
    assert_equal_to_the_bit(halves, whole)


def test_a_missing_folder_is_reported_once(tmp_path: Path) -> None:
    failed = torchrun(["-m", "embedserve"], tmp_path / "nowhere", tmp_path / "run")
    _, said = failed.communicate()
    assert failed.returncode == 1
    assert said.count("error: ") == 1, said
