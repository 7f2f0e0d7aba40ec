"""What a run is trained on: several folders, lists, patterns to leave out, and the rule by which it began."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from embedserve.errors import TrainingError
from embedserve.folder.scan import OLDER
from embedserve_training.plan.config import TrainConfig
from embedserve_training.run import checkpoint, resume, run_folder
from embedserve_training.run import prepare as preparation
from embedserve_training.run.prepare import Prepared
from tests.fakes import picture

Config = Callable[..., TrainConfig]


def quiet(_: str) -> None:
    """Discards the line."""


def write(folder: Path, count: int, first: int = 0) -> None:
    folder.mkdir(parents=True)
    for seed in range(first, first + count):
        (folder / f"{seed}.png").write_bytes(picture(seed))


def prepared(sources: Sequence[Path], config: TrainConfig, out: Path, *, exclude: Sequence[str] = ()) -> Prepared:
    with ExitStack() as held:
        return preparation.prepare(
            sources, config, out, quiet, exclude=exclude, processes=1, dry_run=False, fresh=False, held=held
        )


def continued(monkeypatch: pytest.MonkeyPatch, out: Path, *, of_older_release: bool = False) -> None:
    """From here on ``out`` holds a run that was stopped before its first step."""
    stored = run_folder.read_plan(out)
    data = {key: value for key, value in stored.data.items() if not (of_older_release and key == "exclude")}
    monkeypatch.setattr(resume, "earlier_run", lambda out, config: replace(stored, data=data))
    monkeypatch.setattr(checkpoint, "load", lambda out: None)


def test_several_folders_a_list_and_patterns(tmp_path: Path, tiny_config: Config) -> None:
    write(tmp_path / "a/x", 12)
    write(tmp_path / "b/y", 12, first=12)
    (tmp_path / "b/notes.svg").touch()
    (tmp_path / "more.txt").write_text("a/x/0.png\ngone.png\n")
    sources = [tmp_path / "a", tmp_path / "b", Path(f"@{tmp_path}/more.txt")]
    made = prepared(sources, tiny_config(), tmp_path / "run", exclude=["11.png"])
    assert (made.images, made.passed_over) == (24, {".svg": 1})
    gone, passed_over = (tmp_path / "run/skipped.txt").read_text().splitlines()
    assert gone.startswith(f"{tmp_path}/gone.png\tcannot be read: there is no such file")
    assert passed_over == "passed over\t1 .svg"
    data = run_folder.read_plan(tmp_path / "run").data
    assert data["folders"] == [*map(str, sources)]
    assert data["exclude"] == ["11.png"]


def test_a_run_is_continued_with_the_same_patterns_only(
    tmp_path: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a", 30)
    made = prepared([tmp_path / "a"], tiny_config(), tmp_path / "run", exclude=["1?.png"])
    continued(monkeypatch, tmp_path / "run")
    again = prepared([tmp_path / "a"], tiny_config(), tmp_path / "run", exclude=["1?.png"])
    assert again.fingerprint == made.fingerprint
    with pytest.raises(TrainingError, match=r"10 are new: 10\.png, 11\.png, 12\.png, …") as refused:
        prepared([tmp_path / "a"], tiny_config(), tmp_path / "run")
    assert refused.value.hint.startswith("it was started with --exclude '1?.png'; or start over with --fresh")


def test_a_run_that_an_older_release_began_keeps_its_images(
    tmp_path: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a", 15)
    write(tmp_path / "a/@eaDir", 3, first=15)
    write(tmp_path / "outside", 3, first=20)
    (tmp_path / "a/linked").symlink_to(tmp_path / "outside")
    (tmp_path / "a/new.jfif").write_bytes(picture(30, format="JPEG"))
    with monkeypatch.context() as patch:
        patch.setattr(preparation, "RULE", OLDER)
        made = prepared([tmp_path / "a"], tiny_config(), tmp_path / "run")
    assert made.images == 18
    continued(monkeypatch, tmp_path / "run", of_older_release=True)
    again = prepared([tmp_path / "a"], tiny_config(), tmp_path / "run")
    assert (again.images, again.fingerprint) == (18, made.fingerprint)
