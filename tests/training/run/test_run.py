"""How a run handles bad folders, earlier runs and wrong settings."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from embedserve.errors import InvalidInput, SetupError, TrainingError
from embedserve.images.preprocess import PreprocessSpec
from embedserve_training.data import cache, folders
from embedserve_training.plan.config import TrainConfig
from embedserve_training.run import checkpoint, run_folder, served
from embedserve_training.run.prepare import prepare
from embedserve_training.run.run import run_training

Config = Callable[..., TrainConfig]
CACHED = PreprocessSpec(size_px=16, resize_px=16, filter="bicubic")


def quiet(_: str) -> None:
    """Discards the line."""


def test_a_wrong_backbone_is_refused_before_an_earlier_run_is_removed(
    finished_run: Path, image_folder: Path, tmp_path: Path, tiny_config: Config
) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    with pytest.raises(InvalidInput, match="no backbone 'resnet19'"):
        run_training(
            image_folder, config=tiny_config(backbone="resnet19"), out=tmp_path / "run", report=quiet, fresh=True
        )
    assert checkpoint.load(tmp_path / "run").finished


def test_a_dry_run_refuses_a_wrong_backbone(image_folder: Path, tmp_path: Path, tiny_config: Config) -> None:
    with pytest.raises(InvalidInput, match="no backbone"):
        run_training(
            image_folder, config=tiny_config(backbone="resnet19"), out=tmp_path / "run", report=quiet, dry_run=True
        )


def test_a_run_on_a_gpu_is_not_continued_without_one(
    finished_run: Path, image_folder: Path, tmp_path: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    stored = run_folder.read_plan(tmp_path / "run")
    run_folder.write_plan(replace(stored, settings=replace(stored.settings, device="cuda")), tmp_path / "run")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SetupError, match="no CUDA GPU") as refused:
        run_training(image_folder, config=tiny_config(), out=tmp_path / "run", report=quiet)
    assert "--fresh" in refused.value.hint


def test_a_checkpoint_of_another_network_is_a_training_error(finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    saved = checkpoint.load(tmp_path / "run")
    method = {name: value for name, value in saved.method.items() if "projector" not in name}
    checkpoint.save(replace(saved, method=method), tmp_path / "run")
    with pytest.raises(TrainingError, match="does not fit the network of its plan"):
        served.trained(tmp_path / "run")


def test_a_damaged_index_of_decoded_images_is_rebuilt(image_folder: Path, tmp_path: Path, tiny_config: Config) -> None:
    images = folders.scan(image_folder)
    first = cache.open_cache(images, CACHED, tmp_path, workers=1)
    [index] = tmp_path.glob("*.json")
    index.write_text("")
    again = cache.open_cache(images, CACHED, tmp_path, workers=1)
    assert again.fingerprint == first.fingerprint
    assert (again.pixels_NTTC == first.pixels_NTTC).all()


def test_decoded_images_are_found_by_their_fingerprint_as_another_process_finds_them(
    image_folder: Path, tmp_path: Path
) -> None:
    made = cache.open_cache(folders.scan(image_folder), CACHED, tmp_path, workers=1)
    found = cache.find_cache(tmp_path, CACHED, made.fingerprint)
    assert found is not None
    assert (found.positions, (found.pixels_NTTC == made.pixels_NTTC).all()) == (made.positions, True)
    assert cache.find_cache(tmp_path, CACHED, "of others") is None
    assert cache.find_cache(tmp_path, replace(CACHED, size_px=15, resize_px=15), made.fingerprint) is None
    assert cache.find_cache(tmp_path, replace(CACHED, fit="squeeze", resize_px=0), made.fingerprint) is None
    assert cache.find_cache(tmp_path / "not shared", CACHED, made.fingerprint) is None


def test_a_process_that_does_not_see_the_run_folder_of_process_0_says_so(
    image_folder: Path, tmp_path: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "find_cache", lambda *args: None)
    with pytest.raises(TrainingError, match=r"process 0 does not see in .* what process 0 wrote there") as refused:
        run_training(image_folder, config=tiny_config(), out=tmp_path, report=quiet)
    assert "share" in refused.value.hint


def test_a_run_of_one_process_is_not_continued_with_two(
    image_folder: Path, tmp_path: Path, tiny_config: Config, finished_run: Path
) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    checkpoint.save(replace(checkpoint.load(finished_run), finished=False), tmp_path / "run")
    with ExitStack() as held, pytest.raises(TrainingError, match="was started with 1 process, not with 2"):
        prepare(
            image_folder,
            tiny_config(),
            tmp_path / "run",
            quiet,
            processes=2,
            dry_run=False,
            fresh=False,
            held=held,
        )


def test_a_huge_file_is_left_out_without_being_read(image_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(image_folder, tmp_path / "images")
    with (tmp_path / "images" / "film.png").open("wb") as film:
        film.truncate(1 << 40)  # holes only: reading them would take all memory
    _, _, skipped = folders.load_squares(folders.scan(tmp_path / "images"), _spec(), workers=1)
    assert [entry.path for entry in skipped] == ["film.png"]
    assert "max_image_bytes" in skipped[0].reason


def test_a_pipe_in_the_folder_is_left_out_without_waiting_for_it(image_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(image_folder, tmp_path / "images")
    os.mkfifo(tmp_path / "images" / "pipe.png")
    _, _, skipped = folders.load_squares(folders.scan(tmp_path / "images"), _spec(), workers=1)
    assert [(entry.path, entry.reason) for entry in skipped] == [
        ("pipe.png", "cannot be read: it is a pipe, not a regular file")
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everywhere")
def test_a_folder_that_cannot_be_read_is_reported(image_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(image_folder, tmp_path / "images")
    closed = tmp_path / "images" / "discs"
    closed.chmod(0)
    try:
        found = folders.scan(tmp_path / "images")
    finally:
        closed.chmod(0o755)
    assert [entry.path for entry in found.unreadable] == ["discs"]


def _spec() -> PreprocessSpec:
    return PreprocessSpec(size_px=16)
