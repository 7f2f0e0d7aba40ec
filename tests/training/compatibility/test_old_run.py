"""Run folders of an older version open: their encoder embeds as it did, and a stopped run continues."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embedserve.encoder import encoder_file
from embedserve.encoder.session import Encoder

pytest.importorskip("torch")
from embedserve_training.evaluate import evaluate
from embedserve_training.export.export import export
from embedserve_training.plan.config import TrainConfig
from embedserve_training.run import run_folder, served
from embedserve_training.run.run import run_training

Answers = dict[str, Any]


def quiet(line: str) -> None:
    """Discards the line."""


def test_the_encoder_of_an_old_run_embeds_as_it_did(old: Path, answers: Answers) -> None:
    pixels = [np.asarray(Image.open(old / f"images/{kind}/00.png")) for kind in ("stripes", "checks", "discs")]
    vectors = served.embed(served.trained(old / "run"), np.stack(pixels))
    np.testing.assert_allclose(vectors, answers["embeddings"], atol=2e-6)


def test_an_old_run_takes_its_last_step_as_the_old_version_did(old: Path, answers: Answers) -> None:
    stored = run_folder.read_plan(old / "run")
    lines: list[str] = []
    result = run_training(old / "images", config=TrainConfig(**stored.config), out=old / "run", report=lines.append)
    assert (result.status, result.steps) == ("finished", 6)
    last = json.loads((old / "run" / run_folder.METRICS).read_text().splitlines()[-1])
    expected = answers["continued"]
    assert last.keys() == expected.keys()
    for name in ("step", "loss", "pos", "top1", "lr", "chance", "rank", "std", "alignment", "uniformity"):
        assert last[name] == pytest.approx(expected[name], rel=1e-4), name


def test_an_old_run_and_its_encoder_file_have_the_same_figures(old: Path) -> None:
    evaluation = evaluate([old / "run", old / "encoder.onnx"], old / "images", report=quiet, baselines=False)
    run, file, _ = evaluation.rows
    assert run.knn is not None
    assert (run.knn, run.recall_10, run.self_recall_10) == (file.knn, file.recall_10, file.self_recall_10)


@pytest.mark.slow
def test_an_old_run_is_exported_to_the_encoder_that_it_was_exported_to(old: Path) -> None:
    before = encoder_file.read(old / "encoder.onnx")
    now = export(old / "run", old / "again.onnx", report=quiet)
    if now.metadata.versions == before.metadata.versions:  # another PyTorch may write another graph
        assert now.fingerprint == before.fingerprint
    pixels = np.load(old / "run" / run_folder.SAMPLES)
    one, other = (Encoder.from_file(file, device="cpu").encode(pixels) for file in (before, now))
    np.testing.assert_allclose(one, other, atol=2e-6)
