"""The demo: the whole path, each step as the command that it prints."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from embedserve import Client
from embedserve.cli.sample import unpack
from tests.fakes import FakeEncoder, picture
from tests.running import serving


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_demo(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    port = str(free_port())
    command = [sys.executable, "-m", "embedserve", "demo", *words, "--minutes", "0.05", "--once", "--port", port]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def test_the_sample_has_the_classes_and_numbers_that_it_promises(tmp_path: Path) -> None:
    train, test = unpack(tmp_path)
    counts = {folder.name: len(list(folder.glob("*.png"))) for folder in train.iterdir()}
    assert len(counts) == 10
    assert set(counts.values()) == {300}
    assert {folder.name: len(list(folder.glob("*.png"))) for folder in test.iterdir()} == dict.fromkeys(counts, 100)


def test_a_second_unpacking_changes_nothing(tmp_path: Path) -> None:
    _, test = unpack(tmp_path)
    before = test.stat().st_mtime_ns
    assert unpack(tmp_path)[1] == test
    assert test.stat().st_mtime_ns == before


@pytest.mark.slow
def test_the_demo_goes_from_a_folder_to_searches_and_runs_again(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    for label in range(3):
        folder = tmp_path / "things" / f"label-{label}"
        folder.mkdir(parents=True)
        for number in range(16):
            (folder / f"{number:02}.png").write_bytes(picture(label * 1000 + number % 4, size=(30, 30)))
    done = run_demo("things", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    steps = re.findall(r"\$ embedserve (\w+)", done.stderr)
    assert steps == ["train", "evaluate", "export", "serve", "add", "collection", *["search"] * 3]
    assert re.search(r"^ *trained +\d+\.\d +\d+\.\d", done.stdout, re.MULTILINE)
    assert "same label among the 10 nearest of 48 images" in done.stdout
    assert re.search(r"embedserve +\d+\.\d %\n +raw pixels +\d+\.\d %", done.stdout)
    assert done.stderr.rstrip().endswith("stopped")

    again = run_demo("things", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "known 48" in again.stderr


@pytest.mark.slow
def test_the_demo_without_labels_asks_whether_images_find_themselves(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    folder = tmp_path / "meine Bilder (flach)"  # what no collection could be called
    folder.mkdir()
    for number in range(20):
        (folder / f"{number:02}.png").write_bytes(picture(number, size=(30, 30)))
    done = run_demo(folder.name, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "has no labels" in done.stderr
    assert "MRR" in done.stdout
    assert "kNN" not in done.stdout


def test_a_server_that_already_runs_is_left_alone(tmp_path: Path) -> None:
    with serving(FakeEncoder(), tmp_path / "data") as address, Client(address) as client:
        port = address.rpartition(":")[2]
        done = subprocess.run(
            [sys.executable, "-m", "embedserve", "demo", "--once", "--port", port],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert client.list_collections() == []
    assert done.returncode == 1
    assert f"port {port} is taken" in done.stderr


def test_a_step_that_fails_ends_the_demo_with_its_own_words(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "empty").mkdir()
    done = run_demo("empty", cwd=tmp_path)
    assert done.returncode == 1
    assert "error:" in done.stderr
    assert "Traceback" not in done.stderr
