"""A folder of small drawn images, and a run that takes a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from embedserve_training.plan.config import TrainConfig

KINDS = ("stripes", "checks", "discs")


def draw(kind: str, seed: int, side: int = 16) -> np.ndarray:
    """A picture of one of three kinds, different for each seed: uint8 [S, S, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side]
    phase, period = rng.integers(0, 8), rng.integers(3, 6)
    if kind == "stripes":
        shape = (x + phase) // period % 2
    elif kind == "checks":
        shape = ((x + phase) // period + (y + phase) // period) % 2
    else:
        shape = (x - rng.integers(5, 11)) ** 2 + (y - rng.integers(5, 11)) ** 2 < (3 + period) ** 2
    colours = rng.integers(0, 256, (2, 3))
    pixels = np.where(shape[..., None] > 0, colours[0], colours[1])
    return np.clip(pixels + rng.integers(-10, 11, pixels.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 PNGs of 16 × 16 pixels in three subfolders, one per kind. Tests must not change it."""
    root = tmp_path_factory.mktemp("images")
    for number, kind in enumerate(KINDS):
        (root / kind).mkdir()
        for i in range(16):
            Image.fromarray(draw(kind, 100 * number + i)).save(root / kind / f"{i:02d}.png")
    return root


@pytest.fixture
def tiny_config() -> Callable[..., TrainConfig]:
    """``tiny_config(**changes)``: small-cnn, batches of 16: three steps per epoch of ``image_folder``."""

    def config(**changes: object) -> TrainConfig:
        values: dict[str, object] = {"backbone": "small-cnn", "batch_size": 16, "device": "cpu", "workers": 1}
        if "minutes" not in changes:
            values["epochs"] = 2
        return TrainConfig(**{**values, **changes})  # type: ignore[arg-type]

    return config


@pytest.fixture(scope="session")
def finished_run(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a finished run over ``image_folder``. Tests must not change it."""
    from embedserve_training.run.run import run_training

    out = tmp_path_factory.mktemp("runs") / "finished"
    config = TrainConfig(backbone="small-cnn", batch_size=16, epochs=2, device="cpu", workers=1)
    run_training(image_folder, config=config, out=out, report=lambda line: None)
    return out


@pytest.fixture(scope="session")
def exported(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder file of ``finished_run``."""
    from embedserve_training.export.export import export

    path = tmp_path_factory.mktemp("export") / "encoder.onnx"
    export(finished_run, path, report=lambda line: None)
    return path
