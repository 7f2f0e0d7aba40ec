"""Training names copies, after decoding: in the output, in the plan and in the result."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from embedserve_training.plan.config import TrainConfig
from embedserve_training.run import run_folder
from embedserve_training.run.run import run_training

Config = Callable[..., TrainConfig]


def copied(image_folder: Path, folder: Path, copies: int) -> Path:
    """16 different images, and copies of the first."""
    for number, path in enumerate(sorted(image_folder.glob("*/*.png"))[:16]):
        (folder / "images").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / f"images/{number:02}.png")
    for number in range(copies):
        shutil.copy(folder / "images/00.png", folder / f"images/copy{number}.png")
    return folder / "images"


def test_many_copies_of_one_picture_are_named_with_a_warning(
    image_folder: Path, tmp_path: Path, tiny_config: Config
) -> None:
    lines: list[str] = []
    folder, out = copied(image_folder, tmp_path, 23), tmp_path / "run"
    result = run_training(folder, config=tiny_config(), out=out, report=lines.append)
    assert "24 of 39 images are one picture" in lines
    assert any(line.startswith("warning: only 16 different pictures among 39 images") for line in lines)
    assert result.copies
    assert (result.copies.pictures, result.copies.files, result.copies.largest) == (1, 24, 24)
    stored = json.loads((out / run_folder.PLAN).read_text())
    assert stored["data"]["copies"] == {"images": 39, "pictures": 1, "files": 24, "largest": 24}


def test_different_images_need_no_word(image_folder: Path, tmp_path: Path, tiny_config: Config) -> None:
    lines: list[str] = []
    folder = copied(image_folder, tmp_path, 0)
    run_training(folder, config=tiny_config(), out=tmp_path / "run", report=lines.append)
    assert not any("one picture" in line or "more than once" in line or "warning" in line for line in lines)
