"""`embedserve evaluate` as a person types it: one run, several seeds, an encoder file, a folder without labels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.outcome import Cli
from tests.fakes import picture

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures in two subfolders."""
    root = tmp_path_factory.mktemp("labelled")
    for number in range(24):
        path = root / ("odd" if number % 2 else "even") / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(picture(number))
    return root


@pytest.fixture(scope="module")
def runs(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs that differ in their seed."""
    from embedserve_training.plan.config import TrainConfig
    from embedserve_training.run.run import run_training

    made = []
    for seed in (0, 1):
        out = tmp_path_factory.mktemp("runs") / f"seed{seed}"
        config = TrainConfig(
            backbone="small-cnn", size_px=16, batch_size=8, epochs=1, device="cpu", workers=1, seed=seed
        )
        run_training(labelled, config=config, out=out, report=lambda line: None)
        made.append(out)
    return made


@pytest.fixture
def flat(labelled: Path, tmp_path: Path) -> Path:
    """The pictures without their labels."""
    for path in labelled.glob("*/*.png"):
        shutil.copy(path, tmp_path / path.name)
    return tmp_path


def row_of(out: str, name: str) -> list[str]:
    """The figures of a row of the table."""
    [line] = [line for line in out.splitlines() if line.strip().startswith(f"{name}  ") and ";" not in line][:1]
    return line.strip().removeprefix(name).split()


def test_one_run_has_every_figure_and_no_spread(cli: Cli, runs: list[Path], labelled: Path) -> None:
    outcome = cli("evaluate", runs[0], labelled)
    assert outcome.exit_code == 0, outcome.err
    own = ("trained", "trained, not whitened")
    for name in (*own, "untrained", "untrained, whitened", "raw pixels", "PCA", "PCA, whitened"):
        figures = row_of(outcome.out, name)
        assert len(figures) == 9
        assert all(0 <= float(figure) <= 100 for figure in figures)
    assert "±" not in outcome.out


def test_the_table_fits_a_hundred_columns_even_with_spreads(cli: Cli, runs: list[Path], labelled: Path) -> None:
    outcome = cli("evaluate", *runs, labelled)
    assert max(len(line.rstrip()) for line in outcome.out.splitlines()) <= 100


def test_k_and_the_temperature_of_the_vote_are_named(
    cli: Cli, runs: list[Path], labelled: Path, tmp_path: Path
) -> None:
    for number in range(24):
        path = tmp_path / ("odd" if number % 2 else "even") / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(picture(100 + number))
    outcome = cli("evaluate", runs[0], labelled, "--test", tmp_path)
    assert "24 images with 2 labels search in 24; kNN: 24 neighbours, temperature 0.1" in outcome.out
    document = json.loads(cli("evaluate", runs[0], labelled, "--test", tmp_path, "--json").out)
    assert (document["neighbours"], document["temperature"]) == (24, 0.1)


def test_several_seeds_are_a_mean_with_its_spread_below(cli: Cli, runs: list[Path], labelled: Path) -> None:
    lines = cli("evaluate", *runs, labelled).out.splitlines()
    [place] = [i for i, line in enumerate(lines) if line.strip().startswith("trained ") and ";" not in line]
    spreads = lines[place + 1].split()
    assert len(spreads) == 9
    assert all(spread.startswith("±") for spread in spreads)
    assert any(line.startswith("trained ") and line.endswith("seeds 0, 1") for line in lines)


def test_json_has_all_values_as_shares(cli: Cli, runs: list[Path], labelled: Path) -> None:
    document = json.loads(cli("evaluate", *runs, labelled, "--json").out)
    assert document["subjects"] == [str(run) for run in runs]
    trained = document["rows"][0]
    assert len(trained["knn"]["values"]) == 2
    assert trained["knn"]["mean"] == pytest.approx(sum(trained["knn"]["values"]) / 2)
    assert 0 <= trained["self_mrr"]["mean"] <= 1
    assert next(row for row in document["rows"] if row["name"] == "raw pixels")["knn"]["spread"] is None


def test_an_encoder_file_is_measured_like_a_run(cli: Cli, runs: list[Path], labelled: Path, tmp_path: Path) -> None:
    from embedserve_training.export.export import export

    export(runs[0], tmp_path / "encoder.onnx", report=lambda line: None)
    outcome = cli("evaluate", tmp_path / "encoder.onnx", labelled)
    assert outcome.exit_code == 0, outcome.err
    assert row_of(outcome.out, "untrained") == row_of(cli("evaluate", runs[0], labelled).out, "untrained")


def test_an_encoder_of_unknown_origin_has_a_row_of_dashes_with_the_reason(
    cli: Cli, tiny_encoder_file: Path, labelled: Path
) -> None:
    outcome = cli("evaluate", tiny_encoder_file, labelled)
    assert outcome.exit_code == 0, outcome.err
    assert row_of(outcome.out, "untrained") == ["–"] * 9
    assert "left out: the encoder file does not say how its network is made" in outcome.out


def test_a_folder_without_labels_shows_only_whether_images_find_themselves(
    cli: Cli, runs: list[Path], flat: Path
) -> None:
    outcome = cli("evaluate", runs[0], flat)
    assert outcome.exit_code == 0, outcome.err
    assert len(row_of(outcome.out, "trained")) == 2
    assert "kNN" not in outcome.out
    assert "itself: 24 images, augmented (" in outcome.out
    assert "has no labels" in outcome.err


def test_the_supervised_row_is_shown_only_if_requested(cli: Cli, runs: list[Path], labelled: Path) -> None:
    assert "supervised" not in cli("evaluate", runs[0], labelled).out
    outcome = cli("evaluate", runs[0], labelled, "--supervised-epochs", "1")
    assert len(row_of(outcome.out, "supervised")) == 9
    assert "its own classifier is right for" in outcome.out


def test_without_a_second_image_the_columns_of_itself_are_left_out_with_the_reason(
    cli: Cli, runs: list[Path], labelled: Path, tmp_path: Path
) -> None:
    for name in ("odd/01.png", "even/00.png"):
        (tmp_path / name).parent.mkdir()
        shutil.copy(labelled / "odd/01.png", tmp_path / name)
    outcome = cli("evaluate", runs[0], tmp_path, "--test", labelled)
    assert outcome.exit_code == 0, outcome.err
    assert len(row_of(outcome.out, "trained")) == 7
    assert "itself: left out, self-retrieval needs 2 different images, but there is 1" in outcome.out


def test_another_augmentation_is_named(cli: Cli, runs: list[Path], flat: Path) -> None:
    assert "augmented (microscopy)" in cli("evaluate", runs[0], flat, "--augmentation", "microscopy").out


def test_one_argument_is_not_enough(cli: Cli, labelled: Path) -> None:
    outcome = cli("evaluate", labelled)
    assert outcome.exit_code == 2
    assert "RUN|ENCODER" in outcome.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--test", "flat"), "has no labels to measure with"),
        (("--supervised-epochs", "2"), "has no labels to measure with"),
        (("--augmentation", "magic"), "there is no augmentation 'magic'"),
    ],
)
def test_a_slip_is_answered_with_one_sentence_and_a_hint(
    words: tuple[str, str], expected: str, cli: Cli, runs: list[Path], flat: Path
) -> None:
    outcome = cli("evaluate", runs[0], flat, *(flat if word == "flat" else word for word in words))
    assert outcome.exit_code in (1, 2)
    [error] = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert expected in error
    assert "\nhint:  " in outcome.err
    assert "Traceback" not in outcome.err
