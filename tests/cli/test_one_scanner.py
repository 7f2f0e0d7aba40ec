"""A folder that has everything, read by every command: each finds the same images and passes over the same files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from embedserve import Client
from embedserve.errors import InvalidInput
from tests.cli.outcome import Cli
from tests.fakes import picture
from tests.folder.everything import IMAGES, PASSED_OVER, write_everything

COUNTED = "passed over: 3 hidden, 2 .svg, 2 @eaDir, 2 broken links, 2 without suffix, 1"


@pytest.fixture
def everything(tmp_path: Path) -> Path:
    folder = tmp_path / "everything"
    folder.mkdir()
    write_everything(folder)
    return folder


def test_add(cli: Cli, client: Client, collection: str, everything: Path) -> None:
    outcome = cli("add", everything, "--collection", collection, "--json")
    assert outcome.exit_code == 0
    assert [item.id for item in client.list_items(collection)] == IMAGES
    assert outcome.json["passed_over"] == PASSED_OVER
    assert f"broken link  {everything}/drive" in outcome.err
    lines = outcome.err.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("passed over: "))
    shown = [lines[first], *(line for line in lines[first + 1 :] if line.startswith("  "))]
    assert shown[0].startswith("passed over: 3 hidden, 2 .svg, 2 @eaDir, 2 broken links")
    assert max(map(len, shown)) <= 80
    again = cli("add", everything, "--collection", collection, "--remove-missing", "--yes", "--json").json
    assert (again["known"], again["removed"]) == (len(IMAGES), 0)


def test_embed(cli: Cli, everything: Path, tmp_path: Path) -> None:
    import json

    assert cli("embed", everything, "-o", tmp_path / "out.npy").exit_code == 0
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["paths"] == [f"{everything}/{name}" for name in IMAGES]
    assert document["passed_over"] == PASSED_OVER


def test_bench(everything: Path) -> None:
    from embedserve.cli import bench_inputs

    assert bench_inputs._files([everything]) == [everything / name for name in IMAGES]


def test_preview(cli: Cli, everything: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    small = ("--images", 16, "--views", 1, "--size-px", 16, "--json")
    document = cli("preview", everything, "-o", tmp_path / "views.png", *small).json
    assert document["images"] == IMAGES
    assert document["passed_over"] == PASSED_OVER
    assert [entry["path"] for entry in document["skipped"]] == ["circle", "drive"]


def test_evaluate(everything: Path) -> None:
    pytest.importorskip("torch")
    from embedserve_training.evaluate.images import choose

    lines: list[str] = []
    chosen = choose(everything, None, labels_needed=False, report=lines.append)
    assert list(chosen.train.paths) == IMAGES
    beside = [name for name in IMAGES if "/" not in name]
    assert list(chosen.train.unlabelled) == beside
    assert chosen.passed_over == PASSED_OVER
    assert lines[0].startswith(COUNTED)


def train(cli: Cli, *arguments: object) -> Any:
    pytest.importorskip("torch")
    small = ("--size-px", 16, "--backbone", "small-cnn", "--device", "cpu", "--json")
    return cli("train", *arguments, *small)


def test_a_plan_for_training(cli: Cli, everything: Path) -> None:
    outcome = train(cli, everything, "--dry-run")
    assert outcome.json["images"] == len(IMAGES)
    assert outcome.json["passed_over"] == PASSED_OVER
    assert COUNTED in outcome.err


def test_two_folders_with_one_name_are_refused_by_training(cli: Cli, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.png").write_bytes(picture(1))
    outcome = train(cli, tmp_path / "a", tmp_path / "b", "--dry-run")
    assert "b/1.png would both get the name '1.png'" in outcome.err


def test_what_is_measured_is_told_from_the_folders(tmp_path: Path) -> None:
    from embedserve.cli.evaluate import _folders

    run, one, two = (tmp_path / name for name in ("run", "one", "two"))
    for folder in (run, one, two):
        folder.mkdir()
    (run / "plan.json").touch()
    encoder, listed = tmp_path / "encoder.onnx", Path("@list.txt")
    encoder.touch()
    assert _folders((run, encoder, one, listed), two) == ((run, encoder), [one, listed, two])
    assert _folders((encoder, run), two) == ((encoder, run), [two])
    with pytest.raises(InvalidInput, match="one holds no training run"):
        _folders((one,), two)


def test_a_list_that_does_not_exist_is_wrong_usage(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("embed", f"@{tmp_path}/list.txt", "-o", "-")
    assert outcome.exit_code == 2
    assert f"@{tmp_path}/list.txt does not exist" in outcome.err


def test_a_list_is_embedded_and_what_it_lacks_fails(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(picture(1))
    (tmp_path / "list.txt").write_text("a\ngone.png\n")
    outcome = cli("embed", f"@{tmp_path}/list.txt", "-o", "-")
    assert outcome.exit_code == 1
    assert [row["path"] for row in outcome.json_lines] == [f"{tmp_path}/a"]
    assert f"{tmp_path}/gone.png" in outcome.err


@pytest.mark.parametrize("command", ["add", "train", "preview"])
def test_a_file_where_a_folder_is_needed_is_wrong_usage(cli: Cli, tmp_path: Path, command: str) -> None:
    (tmp_path / "a.png").write_bytes(picture(1))
    outcome = cli(command, tmp_path / "a.png", *(("--collection", "c") if command == "add" else ()))
    assert outcome.exit_code == 2
    assert f"{tmp_path}/a.png is a file" in outcome.err
