"""Evaluations of run folders and encoder files, with labels and without."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from embedserve.encoder import encoder_file
from embedserve.errors import DataError, EncoderFileError, InvalidInput, SetupError, TrainingError
from embedserve.images.preprocess import PreprocessSpec
from embedserve_training.augment import PRESETS
from embedserve_training.data import folders
from embedserve_training.evaluate import Evaluation, Figure, Row, evaluate, figures
from embedserve_training.evaluate.bench import Bench
from embedserve_training.evaluate.images import ImageSplit, choose, hold_out, load
from embedserve_training.evaluate.subjects import open_subject
from embedserve_training.networks.whitening import fit_to_images
from embedserve_training.plan.config import TrainConfig
from embedserve_training.run import run_folder, served

OWN = ["trained", "trained, not whitened"]
BASELINES = ["untrained", "untrained, whitened", "raw pixels", "PCA", "PCA, whitened"]
FIGURES = [entry.name for entry in fields(Row) if entry.name not in ("name", "dimension", "note")]
WITHOUT_LABELS = [name for name in FIGURES if name.startswith("self_")]


def quiet(line: str) -> None:
    """Discards the line."""


def figures_of(row: Row) -> dict[str, Figure | None]:
    return {name: getattr(row, name) for name in FIGURES}


def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if PyTorch were not installed."""
    import embedserve_training
    import embedserve_training.run

    for package, name in ((embedserve_training.run, "served"), (embedserve_training, "augment")):
        monkeypatch.setitem(sys.modules, f"{package.__name__}.{name}", None)
        monkeypatch.delattr(package, name, raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)


@pytest.fixture(scope="module")
def result(finished_run: Path, image_folder: Path) -> Evaluation:
    """Of the run on its own folder."""
    return evaluate(finished_run, image_folder, report=quiet)


@pytest.fixture(scope="module")
def other_seed(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run with another seed."""
    from embedserve_training.run.run import run_training

    out = tmp_path_factory.mktemp("runs") / "other-seed"
    config = TrainConfig(backbone="small-cnn", batch_size=16, epochs=2, device="cpu", workers=1, seed=1)
    run_training(image_folder, config=config, out=out, report=quiet)
    return out


@pytest.fixture(scope="module")
def nearly(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures of ``image_folder``, each of them a level brighter: queries that are no copies."""
    return brighter(image_folder, tmp_path_factory.mktemp("nearly"))


def brighter(source: Path, out: Path) -> Path:
    """The pictures of a folder, each of them a level brighter."""
    for path in source.glob("*/*.png"):
        target = out / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            Image.fromarray(np.minimum(np.asarray(image.convert("RGB")), 254) + 1).save(target)
    return out


@pytest.fixture
def flat_folder(image_folder: Path, tmp_path: Path) -> Path:
    """The pictures of ``image_folder`` without their labels."""
    folder = tmp_path / "flat"
    folder.mkdir()
    for path in image_folder.glob("*/*.png"):
        shutil.copy(path, folder / f"{path.parent.name}-{path.name}")
    return folder


def test_a_run_is_measured_beside_its_untrained_network_raw_pixels_and_pca(
    finished_run: Path, image_folder: Path, nearly: Path
) -> None:
    result = evaluate(finished_run, image_folder, nearly, report=quiet)
    assert [row.name for row in result.rows] == [*OWN, *BASELINES]
    assert (result.train_images, result.test_images, result.labels) == (48, 48, 3)
    assert (result.neighbours, result.temperature) == (48, 0.1)
    for row in result.rows:
        for name, figure in figures_of(row).items():
            assert figure is not None, name
            assert 0 < figure.mean <= 1, name
            assert figure.std is None, name
        # Every query is nearly an image to search in.
        assert row.recall_1 == Figure.of([1.0])


def test_without_a_second_folder_a_fifth_of_each_label_is_held_out(
    result: Evaluation, finished_run: Path, image_folder: Path
) -> None:
    assert (result.train_images, result.test_images) == (39, 9)
    assert (result.self_images, result.self_queries) == (48, 48)
    assert evaluate(finished_run, image_folder, report=quiet) == result


def test_the_figures_are_those_of_images_embedded_one_by_one_in_evaluation_mode(
    result: Evaluation, finished_run: Path, image_folder: Path
) -> None:
    # Batch-norm in training mode, a mistake in several published evaluations, would mix the images of a batch.
    spec = open_subject(finished_run).spec
    encoder = served.trained(finished_run)
    vectors, labels = [], []
    for part in hold_out(folders.scan(image_folder)):
        pixels, positions, _ = folders.load_squares(part, spec, workers=1)
        vectors.append(np.concatenate([served.embed(encoder, pixels[i : i + 1]) for i in range(len(pixels))]))
        kinds = [part.paths[position].split("/")[0] for position in positions]
        labels.append(np.unique(kinds, return_inverse=True)[1])
    expected = figures(vectors[0], labels[0], vectors[1], labels[1])
    for entry in fields(expected):
        assert figures_of(result.rows[0])[entry.name] == Figure.of([getattr(expected, entry.name)]), entry.name


def test_the_last_checkpoint_is_measured_and_no_best_epoch_is_known(
    result: Evaluation, finished_run: Path, image_folder: Path, tmp_path: Path
) -> None:
    # Taking the best figure over all epochs would choose by the test images; here nothing can choose.
    for name in (run_folder.PLAN, run_folder.CHECKPOINT):
        shutil.copy(finished_run / name, tmp_path / name)
    assert evaluate(tmp_path, image_folder, report=quiet).rows == result.rows
    recorded = (finished_run / run_folder.METRICS).read_text().splitlines()
    assert recorded
    for line in recorded:
        assert not any(word in line for word in ("knn", "accuracy", "test", "recall"))
        json.loads(line)
    assert len(list(finished_run.glob("*.pt"))) == 1


def test_runs_of_several_seeds_are_one_row_with_mean_and_deviation(
    result: Evaluation, finished_run: Path, other_seed: Path, image_folder: Path
) -> None:
    both = evaluate([finished_run, other_seed], image_folder, report=quiet)
    alone = evaluate(other_seed, image_folder, report=quiet)
    assert [row.name for row in both.rows] == [*OWN, *BASELINES]
    assert both.rows[0].note == "seeds 0, 1"
    for number in (0, 1, 2, 3):  # the untrained network depends on the seed as well
        for name, figure in figures_of(both.rows[number]).items():
            first, second = getattr(result.rows[number], name), getattr(alone.rows[number], name)
            assert figure == Figure.of([first.mean, second.mean]), name
    assert both.rows[4:] == result.rows[4:]


def test_runs_of_different_settings_are_rows_named_after_them(
    finished_run: Path, image_folder: Path, tmp_path: Path, tiny_config: Callable[..., TrainConfig]
) -> None:
    from embedserve_training.run.run import run_training

    out = tmp_path / "shorter"
    run_training(image_folder, config=tiny_config(epochs=1), out=out, report=quiet)
    rows = evaluate([finished_run, out], image_folder, report=quiet).rows
    # Both started as the same network, which is measured once.
    assert [row.name for row in rows] == [
        "finished",
        "shorter",
        "finished, not whitened",
        "shorter, not whitened",
        *BASELINES,
    ]


def test_networks_of_different_kinds_have_untrained_rows_of_their_own(
    finished_run: Path, image_folder: Path, tmp_path: Path, tiny_config: Callable[..., TrainConfig]
) -> None:
    from embedserve_training.run.run import run_training

    out = tmp_path / "shufflenet"
    config = tiny_config(epochs=1, backbone="shufflenet_v2_x0_5", size_px=24)
    run_training(image_folder, config=config, out=out, report=quiet)
    rows = evaluate([finished_run, out], image_folder, report=quiet).rows
    assert [row.name for row in rows] == [
        "finished",
        "shufflenet",
        "finished, not whitened",
        "shufflenet, not whitened",
        "untrained small-cnn",
        "untrained, whitened small-cnn",
        "untrained shufflenet_v2_x0_5",
        "untrained, whitened shufflenet_v2_x0_5",
        *BASELINES[2:],
    ]


def test_a_run_is_also_measured_without_its_whitening_layer(
    finished_run: Path, image_folder: Path, nearly: Path
) -> None:
    spec = open_subject(finished_run).spec
    pixels, positions, _ = folders.load_squares(folders.scan(image_folder), spec, workers=1)
    kinds = [folders.scan(image_folder).paths[position].split("/")[0] for position in positions]
    labels = np.unique(kinds, return_inverse=True)[1]
    asked, _, _ = folders.load_squares(folders.scan(nearly), spec, workers=1)
    backbone = served.trained(finished_run).backbone
    with torch.no_grad():
        h, g = (backbone(torch.from_numpy(part).permute(0, 3, 1, 2).float() / 255).numpy() for part in (pixels, asked))
    expected = figures(h, labels, g, labels)
    rows = evaluate(finished_run, image_folder, nearly, report=quiet, baselines=False).rows
    assert [row.name for row in rows] == ["trained", "trained, not whitened"]
    assert rows[1].map == Figure.of([expected.map])
    assert rows[1].map != rows[0].map


def test_the_untrained_network_is_whitened_as_a_trained_one_is(
    finished_run: Path, image_folder: Path, nearly: Path
) -> None:
    # Otherwise the gain of whitening would be mistaken for learning.
    settings = run_folder.read_plan(finished_run).settings
    spec = open_subject(finished_run).spec
    pixels, positions, _ = folders.load_squares(folders.scan(image_folder), spec, workers=1)
    kinds = [folders.scan(image_folder).paths[position].split("/")[0] for position in positions]
    labels = np.unique(kinds, return_inverse=True)[1]
    backbone = served.untrained(settings).backbone
    encoder = served.ServedEncoder(backbone, fit_to_images(backbone, pixels, spec.size_px)).eval()
    asked, _, _ = folders.load_squares(folders.scan(nearly), spec, workers=1)
    expected = figures(served.embed(encoder, pixels), labels, served.embed(encoder, asked), labels)
    _, _, plain, whitened, *_ = evaluate(finished_run, image_folder, nearly, report=quiet).rows
    assert whitened.map == Figure.of([expected.map])
    assert whitened.map != plain.map


def test_a_supervised_row_is_made_on_request_and_says_how_good_its_own_classifier_is(
    finished_run: Path, image_folder: Path
) -> None:
    row = evaluate(finished_run, image_folder, report=quiet, supervised_epochs=2).rows[-1]
    assert row.name == "supervised"
    assert None not in figures_of(row).values()
    assert row.note.startswith("trained on the labels for 2 epochs; its own classifier is right for ")


def test_a_folder_without_labels_gives_self_retrieval_only(finished_run: Path, flat_folder: Path) -> None:
    lines: list[str] = []
    result = evaluate(finished_run, flat_folder, report=lines.append)
    assert [row.name for row in result.rows] == [*OWN, *BASELINES]
    for row in result.rows:
        assert [name for name, figure in figures_of(row).items() if figure is not None] == WITHOUT_LABELS
    assert (result.labels, result.test_images, result.train_images, result.self_images) == (0, 0, 48, 48)
    assert "has no labels" in lines[0]


def test_self_retrieval_is_the_same_with_labels_and_without(
    finished_run: Path, image_folder: Path, flat_folder: Path, nearly: Path
) -> None:
    # With a second folder nothing is held out, so the images have the same order.
    labelled = evaluate(finished_run, image_folder, nearly, report=quiet).rows[0]
    assert [getattr(evaluate(finished_run, flat_folder, report=quiet).rows[0], name) for name in WITHOUT_LABELS] == [
        getattr(labelled, name) for name in WITHOUT_LABELS
    ]


def test_figures_that_need_labels_are_refused_without_them(
    finished_run: Path, image_folder: Path, flat_folder: Path
) -> None:
    for arguments in (
        {"folder": flat_folder, "test_folder": image_folder},
        {"folder": image_folder, "test_folder": flat_folder},
        {"folder": flat_folder, "supervised_epochs": 1},
    ):
        with pytest.raises(DataError, match="flat has no labels") as caught:
            evaluate(finished_run, report=quiet, **arguments)
        assert "subfolder" in caught.value.hint


def test_one_image_per_label_leaves_nothing_to_search_in(
    finished_run: Path, image_folder: Path, tmp_path: Path
) -> None:
    for kind in ("discs", "checks"):
        (tmp_path / kind).mkdir()
        shutil.copy(image_folder / kind / "00.png", tmp_path / kind)
    with pytest.raises(DataError, match="one image per label") as caught:
        evaluate(finished_run, tmp_path, report=quiet)
    assert "--test FOLDER" in caught.value.hint


def test_the_only_image_of_a_label_is_searched_and_is_no_query(
    finished_run: Path, image_folder: Path, tmp_path: Path
) -> None:
    for name in ("discs/00.png", "discs/01.png", "checks/00.png", "stripes/00.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(image_folder / name, tmp_path / name)
    kept, held_out = hold_out(folders.scan(tmp_path))
    assert sorted(kept.paths + held_out.paths) == list(folders.scan(tmp_path).paths)
    assert [path.split("/")[0] for path in held_out.paths] == ["discs"]
    lines: list[str] = []
    result = evaluate(finished_run, tmp_path, report=lines.append, baselines=False)
    assert (result.train_images, result.test_images, result.labels) == (3, 1, 3)
    assert "labels with one image, which is searched but is no query: 2 (checks, stripes)" in lines
    assert not any("lacks" in line for line in lines)


def test_labels_with_two_images_or_more_all_have_queries_and_none_is_reported(
    finished_run: Path, image_folder: Path
) -> None:
    lines: list[str] = []
    evaluate(finished_run, image_folder, report=lines.append, baselines=False)
    assert not any(line.startswith("labels with one image") for line in lines)


def test_the_augmentation_is_that_of_the_run_unless_another_is_named(
    result: Evaluation, finished_run: Path, image_folder: Path
) -> None:
    settings = run_folder.read_plan(finished_run).settings
    assert result.augmentation == f"{settings.augmentation}, crops from {100 * settings.crop_min:.0f} %"
    other = evaluate(finished_run, image_folder, report=quiet, augmentation="xray")
    assert other.augmentation == "xray"
    assert other.rows[0].knn == result.rows[0].knn
    assert other.rows[0].self_mrr != result.rows[0].self_mrr
    with pytest.raises(InvalidInput, match="there is no augmentation 'magic'"):
        evaluate(finished_run, image_folder, report=quiet, augmentation="magic")


def test_a_path_that_is_neither_run_nor_encoder_is_refused(image_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="holds no training run"):
        evaluate(tmp_path, image_folder, report=quiet)
    with pytest.raises(EncoderFileError, match="no encoder file"):
        evaluate(tmp_path / "nothing.onnx", image_folder, report=quiet)


def test_an_encoder_file_measures_like_the_run_it_came_from(
    result: Evaluation, exported: Path, image_folder: Path
) -> None:
    file = evaluate(exported, image_folder, report=quiet)
    both = [row for row in result.rows if row.name != "trained, not whitened"]  # a file always has its whitening layer
    assert [(row.name, row.note, row.dimension) for row in file.rows] == [
        (row.name, row.note, row.dimension) for row in both
    ]
    assert [(row.knn, row.recall_5, row.self_recall_5) for row in file.rows] == [
        (row.knn, row.recall_5, row.self_recall_5) for row in both
    ]


def test_a_run_and_its_own_file_are_two_rows(finished_run: Path, exported: Path, image_folder: Path) -> None:
    rows = evaluate([finished_run, exported], image_folder, report=quiet).rows
    assert [row.name for row in rows] == ["finished", "encoder.onnx", "finished, not whitened", *BASELINES]


def test_without_torch_a_file_still_has_every_figure_that_needs_none(
    exported: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_torch(monkeypatch)
    result = evaluate(exported, image_folder, report=quiet)
    trained, untrained, *_ = result.rows
    assert [name for name, figure in figures_of(trained).items() if figure is None] == WITHOUT_LABELS
    assert (untrained.name, untrained.knn, untrained.note) == ("untrained", None, "left out: PyTorch is not installed")
    assert (result.augmentation, result.self_images) == ("", 0)
    assert result.self_left_out == "PyTorch is not installed"


def test_without_torch_and_labels_nothing_can_be_measured(
    exported: Path, flat_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_torch(monkeypatch)
    with pytest.raises(SetupError, match="needs PyTorch") as caught:
        evaluate(exported, flat_folder, report=quiet)
    assert "pip install" in caught.value.hint


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
    trained, untrained = evaluate(tmp_path / "foreign.onnx", image_folder, report=quiet).rows[:2]
    assert None not in figures_of(trained).values()
    assert set(figures_of(untrained).values()) == {None}
    assert reason in untrained.note
    # A row on request is not dropped silently.
    supervised = evaluate(tmp_path / "foreign.onnx", image_folder, report=quiet, supervised_epochs=1).rows[-1]
    assert (supervised.name, supervised.note) == ("supervised", untrained.note)


def test_unreadable_files_are_reported_and_left_out_of_both_images_and_labels(
    finished_run: Path, image_folder: Path, nearly: Path, tmp_path: Path
) -> None:
    (tmp_path / "discs").mkdir()
    (tmp_path / "checks").mkdir()
    (tmp_path / "checks/broken.png").write_bytes(b"")
    for name in ("discs/00.png", "discs/01.png", "checks/00.png"):
        Image.open(nearly / name).save(tmp_path / name)
    lines: list[str] = []
    result = evaluate(finished_run, image_folder, tmp_path, report=lines.append)
    assert result.test_images == 3
    assert [entry.path for entry in result.skipped] == ["checks/broken.png"]
    # Every test image is nearly a training image, so the nearest has its label.
    assert [row.recall_1 for row in result.rows] == [Figure.of([1.0])] * 7
    assert any("checks/broken.png" in line for line in lines)


def test_a_folder_that_cannot_be_read_is_named_once_when_images_are_held_out(image_folder: Path) -> None:
    closed = (folders.Skipped(path="locked", reason="the folder cannot be read: Permission denied"),)
    kept, held_out = hold_out(replace(folders.scan(image_folder), unreadable=closed))
    lines: list[str] = []
    spec = PreprocessSpec(size_px=16, resize_px=16, filter="bicubic")
    loaded = load(ImageSplit(train=kept, test=held_out, held_out=True), spec, lines.append)
    assert loaded.skipped == closed
    assert lines == ["left out: locked: the folder cannot be read: Permission denied"]


@pytest.fixture
def one_readable(image_folder: Path, tmp_path: Path) -> Path:
    """Two labels with a single readable image."""
    folder = tmp_path / "one"
    for kind in ("discs", "checks"):
        (folder / kind).mkdir(parents=True)
        (folder / kind / "broken.png").write_bytes(b"")
    shutil.copy(image_folder / "discs/00.png", folder / "discs")
    return folder


def test_self_retrieval_among_fewer_than_two_images_is_left_out_with_its_reason(
    finished_run: Path, one_readable: Path, image_folder: Path
) -> None:
    lines: list[str] = []
    result = evaluate(finished_run, one_readable, image_folder, report=lines.append)
    for row in result.rows:
        assert [name for name, figure in figures_of(row).items() if figure is None] == WITHOUT_LABELS
    reason = "self-retrieval needs 2 different images, but there is 1"
    assert (result.augmentation, result.self_left_out, result.self_images) == ("", reason, 0)
    assert lines.count(f"itself: left out, {reason}") == 1


def test_a_single_image_without_labels_is_refused(finished_run: Path, image_folder: Path, tmp_path: Path) -> None:
    shutil.copy(image_folder / "discs/00.png", tmp_path / "a.png")
    shutil.copy(image_folder / "discs/00.png", tmp_path / "b.png")
    with pytest.raises(DataError, match="self-retrieval needs 2 different images, but there is 1"):
        evaluate(finished_run, tmp_path, report=quiet)


def test_a_supervised_row_of_one_image_is_refused(finished_run: Path, one_readable: Path, image_folder: Path) -> None:
    with pytest.raises(DataError, match="supervised training needs 2 images"):
        evaluate(finished_run, one_readable, image_folder, report=quiet, supervised_epochs=1, baselines=False)


def test_labels_that_only_the_second_folder_has_are_reported(
    finished_run: Path, image_folder: Path, nearly: Path, tmp_path: Path
) -> None:
    for kind, label in (("discs", "discs"), ("checks", "squares")):
        shutil.copytree(nearly / kind, tmp_path / label)
    lines: list[str] = []
    result = evaluate(finished_run, image_folder, tmp_path, report=lines.append)
    assert any(line.startswith("16 test images have a label that") for line in lines)
    assert all(row.recall_10 == Figure.of([0.5]) for row in result.rows)


def test_a_row_whose_vectors_are_not_finite_is_refused_by_name(
    image_folder: Path, flat_folder: Path, finished_run: Path
) -> None:
    spec = open_subject(finished_run).spec
    for folder in (image_folder, flat_folder):
        bench = Bench(choose(folder, None, labels_needed=False), PRESETS["small"][0], quiet)
        with pytest.raises(TrainingError, match=r"^diverged: \d+ of \d+ vectors are not finite"):
            bench.row("diverged", [(lambda pixels: np.full((len(pixels), 2), np.nan, np.float32), spec)])
