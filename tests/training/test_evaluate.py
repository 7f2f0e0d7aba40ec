"""Nearest neighbours against a slow version, and evaluations of run folders and encoder files."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from embedserve import encoder_file
from embedserve.errors import DataError, EncoderFileError, TrainingError
from embedserve_training import evaluate as module
from embedserve_training.evaluate import evaluate, nearest, principal_components, vote


def quiet(line: str) -> None:
    """Report to nobody."""


def slow_knn(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, k: int) -> list[int]:
    """Section 3.4 of arXiv 1805.01978 for one test vector after the other, in float64."""
    guesses = []
    for x in test:
        cosines = [float(x @ t / (np.linalg.norm(x) * np.linalg.norm(t))) for t in train]
        order = sorted(range(len(train)), key=lambda i: -cosines[i])[:k]
        votes: dict[int, float] = {}
        for i in order:
            votes[int(train_labels[i])] = votes.get(int(train_labels[i]), 0.0) + math.exp(cosines[i] / 0.1)
        guesses.append(max(sorted(votes), key=lambda label: votes[label]))
    return guesses


@pytest.mark.parametrize("k", [1, 5, 200])
def test_the_weighted_vote_is_the_slow_one(k: int) -> None:
    rng = np.random.default_rng(k)
    labels = rng.integers(0, 4, 300)
    train = rng.normal(size=(300, 6)).astype(np.float32) + np.eye(4, 6, dtype=np.float32)[labels] * 2
    test = rng.normal(size=(50, 6)).astype(np.float32)
    scores, neighbours = nearest(train, labels, test, k)
    assert vote(scores, neighbours, 4).tolist() == slow_knn(train, labels, test, k)


def test_neighbours_come_nearest_first_and_ties_in_order_of_the_data() -> None:
    train = np.array([[0, 1], [1, 0], [2, 0], [1, 1]], np.float32)
    scores, labels = nearest(train, np.array([0, 1, 2, 3]), np.array([[5, 0]], np.float32), 4)
    assert labels.tolist() == [[1, 2, 3, 0]]
    np.testing.assert_allclose(scores, [[1, 1, math.sqrt(0.5), 0]], atol=1e-6)


@pytest.mark.parametrize("shape", [(60, 12), (12, 60)])
def test_principal_components_keep_the_variance_that_a_singular_value_decomposition_gives(
    shape: tuple[int, int],
) -> None:
    train = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    projected, again = principal_components(train, train, 5)
    singular = np.linalg.svd(train - train.mean(0), compute_uv=False)[:5]
    np.testing.assert_allclose((projected**2).sum(0), singular**2, rtol=1e-3)
    np.testing.assert_allclose(projected, again, atol=1e-4)


def test_a_run_is_measured_beside_its_untrained_network_raw_pixels_and_pca(
    finished_run: Path, image_folder: Path
) -> None:
    result = evaluate(finished_run, image_folder, image_folder, report=quiet)
    assert [row.name for row in result.rows] == ["trained", "untrained", "raw pixels", "PCA"]
    assert (result.train_images, result.test_images, result.labels, result.neighbours) == (48, 48, 3, 48)
    for row in result.rows:
        assert row.knn is not None
        assert 1 / 3 <= row.knn <= 1
        assert row.same_label_top10 is not None
        assert 0 < row.same_label_top10 <= 1


def test_without_a_second_folder_a_fifth_of_each_label_is_held_out(finished_run: Path, image_folder: Path) -> None:
    result = evaluate(finished_run, image_folder, None, report=quiet)
    assert (result.train_images, result.test_images) == (39, 9)
    assert evaluate(finished_run, image_folder, None, report=quiet) == result


def test_a_folder_without_labels_cannot_measure(finished_run: Path, image_folder: Path) -> None:
    with pytest.raises(DataError, match="has no labels") as caught:
        evaluate(finished_run, image_folder / "discs", None, report=quiet)
    assert "subfolder" in caught.value.hint


def test_what_is_neither_run_nor_encoder_is_named(image_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="holds no training run"):
        evaluate(tmp_path, image_folder, None, report=quiet)
    with pytest.raises(EncoderFileError, match="no encoder file"):
        evaluate(tmp_path / "nothing.onnx", image_folder, None, report=quiet)


def test_an_encoder_file_measures_like_the_run_it_came_from(
    finished_run: Path, exported: Path, image_folder: Path
) -> None:
    run = evaluate(finished_run, image_folder, None, report=quiet)
    file = evaluate(exported, image_folder, None, report=quiet)
    assert [(row.name, row.knn, row.note) for row in file.rows] == [(row.name, row.knn, row.note) for row in run.rows]


def test_without_torch_the_untrained_row_is_left_out_with_the_reason(
    exported: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "embedserve_training.embed", None)
    import embedserve_training

    monkeypatch.delattr(embedserve_training, "embed", raising=False)
    untrained = evaluate(exported, image_folder, None, report=quiet).rows[1]
    assert (untrained.name, untrained.knn, untrained.note) == ("untrained", None, "left out: PyTorch is not installed")


@pytest.mark.parametrize(
    ("training", "reason"),
    [({}, "does not say how its network is made"), ({"backbone": "resnet19"}, "there is no backbone 'resnet19'")],
)
def test_an_encoder_whose_network_is_not_known_is_measured_without_the_untrained_row(
    training: dict[str, str], reason: str, exported: Path, image_folder: Path, tmp_path: Path
) -> None:
    file = encoder_file.read(exported)
    training = {**file.metadata.training, **training} if training else {}
    foreign = encoder_file.pack(file.model, replace(file.metadata, training=training))
    encoder_file.write(foreign, tmp_path / "foreign.onnx")
    trained, untrained = evaluate(tmp_path / "foreign.onnx", image_folder, None, report=quiet).rows[:2]
    assert trained.knn is not None
    assert untrained.knn is None
    assert reason in untrained.note


def test_unreadable_files_are_reported_and_left_out_of_both_images_and_labels(
    finished_run: Path, image_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "discs").mkdir()
    (tmp_path / "checks").mkdir()
    (tmp_path / "checks/broken.png").write_bytes(b"")
    for name in ("discs/00.png", "discs/01.png", "checks/00.png"):
        Image.open(image_folder / name).save(tmp_path / name)
    lines: list[str] = []
    result = evaluate(finished_run, image_folder, tmp_path, report=lines.append)
    assert result.test_images == 3
    assert [entry.path for entry in result.skipped] == ["checks/broken.png"]
    # Every test image is also a training image, so one of its ten nearest neighbours is surely of its label.
    assert all(row.same_label_top10 is not None and row.same_label_top10 >= 0.1 for row in result.rows)
    assert any("checks/broken.png" in line for line in lines)


def test_raw_pixels_of_large_images_are_compared_at_32_pixels() -> None:
    pixels = np.zeros((2, 64, 64, 3), np.uint8)
    pixels[1] = 255
    vectors = module.raw_pixels(pixels)
    assert vectors.shape == (2, 32 * 32 * 3)
    np.testing.assert_allclose(vectors[1], 1 / math.sqrt(32 * 32 * 3), rtol=1e-5)
