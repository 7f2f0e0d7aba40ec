"""What may change between two starts of a run, and how what may not is named."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from embedserve.errors import TrainingError
from embedserve_training.plan.config import TrainConfig
from embedserve_training.run import checkpoint, image_list, run_folder, speed
from embedserve_training.run.run import RunResult, run_training

Config = Callable[..., TrainConfig]


@pytest.fixture
def images(image_folder: Path, tmp_path: Path) -> Path:
    """The images of ``finished_run``, to be changed."""
    return Path(shutil.copytree(image_folder, tmp_path / "images"))


@pytest.fixture
def run(image_folder: Path, images: Path, tmp_path: Path, finished_run: Path) -> Path:
    """A run over ``images`` that was stopped after its last step."""
    out = Path(shutil.copytree(finished_run, tmp_path / "run"))
    checkpoint.save(replace(checkpoint.load(out), finished=False), out)
    return out


def go_on(images: Path, run: Path, config: TrainConfig) -> RunResult:
    return run_training(images, config=config, out=run, report=lambda line: None)


def test_another_number_of_workers_continues_a_run_and_is_used(images: Path, run: Path, tiny_config: Config) -> None:
    result = go_on(images, run, tiny_config(workers=3))
    assert (result.status, result.plan.settings.workers) == ("finished", 3)
    assert run_folder.read_plan(run).settings.workers == 1  # what the run was started with


def test_the_value_that_the_plan_chose_may_be_given_and_another_may_not(
    images: Path, run: Path, tiny_config: Config
) -> None:
    settings = run_folder.read_plan(run).settings
    with pytest.raises(TrainingError, match=r"tau was None and is 0\.9"):
        go_on(images, run, tiny_config(tau=0.9))
    same = tiny_config(tau=settings.tau, size_px=settings.size_px, method="simclr", optimizer=settings.optimizer)
    assert go_on(images, run, same).status == "finished"


def test_a_setting_that_an_older_version_did_not_have_is_no_change(
    images: Path, run: Path, tiny_config: Config
) -> None:
    document = json.loads((run / run_folder.PLAN).read_text())
    del document["config"]["device"], document["config"]["clip_norm"]
    (run / run_folder.PLAN).write_text(json.dumps(document))
    assert go_on(images, run, tiny_config()).status == "finished"


def test_images_that_are_new_gone_or_changed_are_named(images: Path, run: Path, tiny_config: Config) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (16, 16), "red").save(images / name)
    (images / "discs/00.png").unlink()
    Image.new("RGB", (16, 16)).save(images / "discs/01.png")
    with pytest.raises(TrainingError) as refused:
        go_on(images, run, tiny_config())
    assert refused.value.message == (
        f"the images in {images} have changed since the run in {run} was started: 2 are new: a.png, b.png;"
        " 1 is gone: discs/00.png; 1 has other bytes: discs/01.png"
    )
    assert "--fresh" in refused.value.hint


def test_of_many_images_three_are_named(images: Path, run: Path, tiny_config: Config) -> None:
    shutil.rmtree(images / "discs")
    with pytest.raises(TrainingError, match=r"16 are gone: discs/00\.png, discs/01\.png, discs/02\.png, …\n"):
        go_on(images, run, tiny_config())


def test_a_name_that_is_no_text_is_stored_and_shown(images: Path, run: Path, tiny_config: Config) -> None:
    shutil.copy(images / "discs/00.png", images / os.fsdecode(b"odd\n\xff.png"))
    with pytest.raises(TrainingError, match=r"1 is new: odd\\n\\udcff\.png\n"):
        go_on(images, run, tiny_config())
    assert go_on(images, run.with_name("other"), tiny_config(epochs=1)).status == "finished"
    stored = (run.with_name("other") / image_list.NAME).read_text().splitlines()
    assert len(stored) == 1 + 49


def test_a_run_of_an_older_version_without_the_list_goes_on_and_refuses_other_images(
    images: Path, run: Path, tiny_config: Config
) -> None:
    (run / image_list.NAME).unlink()
    Image.new("RGB", (16, 16)).save(images / "a.png")
    with pytest.raises(TrainingError, match="are not those that the run"):
        go_on(images, run, tiny_config())
    (images / "a.png").unlink()
    assert go_on(images, run, tiny_config()).status == "finished"


@pytest.mark.parametrize("text", ["", "{}\n", '{"version": 2}\n', '{"version": 1}\n["a"\n', '{"version": 1}\n[1]\n'])
def test_a_list_that_cannot_be_read_is_as_none(text: str, tmp_path: Path) -> None:
    (tmp_path / image_list.NAME).write_text(text)
    assert image_list.changes_since(tmp_path, {"a.png": "0" * 64}) is None


def test_a_run_goes_on_after_images_and_run_have_moved_and_knows_where_they_are(
    images: Path, run: Path, tmp_path: Path, tiny_config: Config
) -> None:
    (tmp_path / "elsewhere").mkdir()
    moved = Path(shutil.move(images, tmp_path / "elsewhere/pictures"))
    moved_run = Path(shutil.move(run, tmp_path / "elsewhere/run"))
    assert go_on(moved, moved_run, tiny_config()).status == "finished"
    assert run_folder.read_plan(moved_run).data["folder"] == str(moved)


def test_a_run_in_minutes_goes_on_with_its_plan_and_measures_nothing(
    images: Path, tmp_path: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = tiny_config(minutes=0.001), tmp_path / "short"
    first = go_on(images, out, config)
    checkpoint.save(replace(checkpoint.load(out), finished=False), out)
    monkeypatch.setattr(speed, "cost", None)  # a measurement would fail
    again = go_on(images, out, config)
    assert (again.status, again.plan.settings) == ("finished", first.plan.settings)


def test_fresh_leaves_no_list_of_the_run_before(images: Path, run: Path, tiny_config: Config) -> None:
    shutil.rmtree(images / "discs")
    run_training(images, config=tiny_config(epochs=1), out=run, report=lambda line: None, fresh=True)
    names = [json.loads(line)[0] for line in (run / image_list.NAME).read_text().splitlines()[1:]]
    assert len(names) == 32
    assert not any(name.startswith("discs") for name in names)
