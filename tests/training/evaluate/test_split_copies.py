"""Copies and near-copies do not make an encoder look good, and folders split into parts are understood."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from embedserve.errors import DataError
from embedserve.images.preprocess import PreprocessSpec
from embedserve_training.evaluate.bench import Bench
from embedserve_training.evaluate.images import choose
from embedserve_training.evaluate.table import Row

torch = pytest.importorskip("torch")

SPEC = PreprocessSpec(size_px=16, resize_px=16, filter="bicubic")
Write = Callable[[str, int], None]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes the picture of a number."""

    def write(name: str, number: int) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        small = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(small).resize((32, 32), Image.Resampling.BICUBIC).save(path)

    return write


def bench_of(folder: Path, test: Path | None = None) -> tuple[Bench, list[str]]:
    from embedserve_training.evaluate.self_retrieval import first_view

    lines: list[str] = []
    chosen = choose(folder, test, labels_needed=True, report=lines.append)
    return Bench(chosen, first_view("small"), lines.append), lines


def noise(pixels_NSSC: np.ndarray) -> np.ndarray:
    """Vectors that say which picture it is and nothing else."""
    seeds = [int.from_bytes(image.tobytes()[:64], "big") for image in pixels_NSSC]
    return np.stack([np.random.default_rng(seed).standard_normal(64) for seed in seeds]).astype(np.float32)


def row_of_noise(bench: Bench) -> Row:
    return bench.row("noise", [(noise, SPEC)])


def test_noise_does_not_profit_from_copies_within_a_folder(write: Write, tmp_path: Path) -> None:
    for number in range(200):
        for copy in range(3):
            write(f"{'abcdefghij'[number % 10]}/{number:03}-{copy}.png", number)
    bench, _ = bench_of(tmp_path)
    row = row_of_noise(bench)
    loaded = bench.loaded(SPEC)
    assert row.recall_1
    assert row.recall_1.mean < 0.3
    searched = {image.tobytes() for image in loaded.train_NSSC}
    assert not any(image.tobytes() in searched for image in loaded.test_MSSC)
    assert len(loaded.train_NSSC) + len(loaded.test_MSSC) == 600
    assert {path[0] for path in loaded.test_paths} == set("abcdefghij")
    assert bench.copies
    assert bench.copies.regrouped
    assert (bench.copies.copies.pictures, bench.copies.copies.files) == (200, 600)


def test_noise_does_not_profit_from_copies_in_the_other_folder(write: Write, tmp_path: Path) -> None:
    for number in range(60):
        write(f"search/{'abc'[number % 3]}/{number}.png", number)
        write(f"ask/{'abc'[number % 3]}/{number}.png", number if number < 40 else 1000 + number)
    bench, _ = bench_of(tmp_path / "search", tmp_path / "ask")
    row = row_of_noise(bench)
    assert row.recall_1
    assert row.recall_1.mean < 0.8
    assert bench.copies
    assert bench.copies.left_out == 40
    assert len(bench.loaded(SPEC).test_MSSC) == 20
    assert "40 queries are copies of images to search in, and left out" in bench.copies.lines(True)


def test_queries_that_are_all_copies_are_refused(write: Write, tmp_path: Path) -> None:
    for number in range(4):
        write(f"{'ab'[number % 2]}/{number}.png", number)
    bench, _ = bench_of(tmp_path, tmp_path)
    with pytest.raises(DataError, match=r"every query in .* is also an image of") as caught:
        bench.loaded(SPEC)
    assert "--test" in caught.value.hint


def test_labels_of_one_picture_each_leave_nothing_to_hold_out(write: Write, tmp_path: Path) -> None:
    for number in range(8):
        write(f"{'ab'[number % 2]}/{number}.png", number % 2)
    bench, _ = bench_of(tmp_path)
    with pytest.raises(DataError, match="one picture per label"):
        bench.loaded(SPEC)


def test_a_picture_with_two_labels_is_never_a_query(write: Write, tmp_path: Path) -> None:
    for number in range(10):
        write(f"a/{number}.png", number)
        write(f"b/{number}.png", number if number < 7 else 100 + number)
    bench, _ = bench_of(tmp_path)
    assert {Path(path).stem for path in bench.loaded(SPEC).test_paths} <= {"7", "8", "9"}


def test_near_copies_are_counted(write: Write, tmp_path: Path) -> None:
    for number in range(20):
        write(f"search/{'ab'[number % 2]}/{number}.png", number)
        write(f"ask/{'ab'[number % 2]}/{number}.png", 100 + number)
    for number in range(6):
        with Image.open(tmp_path / f"search/{'ab'[number % 2]}/{number}.png") as image:
            data = io.BytesIO()
            image.resize((48, 48)).save(data, "JPEG", quality=85)
        (tmp_path / f"ask/{'ab'[number % 2]}/again{number}.jpg").write_bytes(data.getvalue())
    bench, _ = bench_of(tmp_path / "search", tmp_path / "ask")
    bench.loaded(SPEC)
    assert bench.copies
    assert (bench.copies.near, bench.copies.near_of, bench.copies.left_out) == (6, 26, 0)


@pytest.mark.parametrize("name", ["val", "test", "validation"])
def test_train_and_test_below_one_folder_are_its_two_sides(write: Write, tmp_path: Path, name: str) -> None:
    for number in range(8):
        write(f"data/train/{'ab'[number % 2]}/{number}.png", number)
        write(f"data/{name}/{'ab'[number % 2]}/{number}.png", 100 + number)
    lines: list[str] = []
    chosen = choose(tmp_path, None, labels_needed=True, report=lines.append)
    assert chosen.test
    assert not chosen.held_out
    assert chosen.train.root == tmp_path / "data/train"
    assert chosen.test.root == tmp_path / f"data/{name}"
    assert set(chosen.train.labels or ()) == {"a", "b"}
    assert f"{tmp_path / 'data'} is split: {name}/ searches in train/" in lines
    assert any("single folder data/" in line for line in lines)


def test_of_val_and_test_the_other_is_named_with_what_to_type(write: Write, tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        for number in range(4):
            write(f"{part}/{'ab'[number % 2]}/{number}.png", number)
    lines: list[str] = []
    chosen = choose(tmp_path, None, labels_needed=True, report=lines.append)
    assert chosen.test
    assert chosen.test.root == tmp_path / "test"
    assert any(f"--test {tmp_path / 'val'}" in line for line in lines)


def test_parts_without_labels_are_explained(write: Write, tmp_path: Path) -> None:
    for number in range(8):
        write(f"{'train' if number % 2 else 'test'}/{number}.png", number)
    lines: list[str] = []
    choose(tmp_path, None, labels_needed=True, report=lines.append)
    assert any("are taken for labels: test, train" in line for line in lines)


def test_an_image_beside_the_label_folders_is_named_and_left_out(write: Write, tmp_path: Path) -> None:
    for number in range(10):
        write(f"{'ab'[number % 2]}/{number}.png", number)
    write("cover.png", 50)
    lines: list[str] = []
    chosen = choose(tmp_path, None, labels_needed=True, report=lines.append)
    assert [entry.path for entry in chosen.train.unreadable] == ["cover.png"]
    assert chosen.test
    assert len(chosen.train.paths) + len(chosen.test.paths) == 10
    Bench(chosen, None, lines.append).loaded(SPEC)
    assert lines == ["left out: cover.png: beside the folders of the labels"]
