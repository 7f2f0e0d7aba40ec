"""`embedserve evaluate`: encoders beside raw pixels, PCA, the untrained network and a supervised one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from embedserve.cli.terminal.options import exclude_option, existing_folder, existing_images, image_limit_options
from embedserve.errors import InvalidInput

if TYPE_CHECKING:
    from embedserve.types import Limits
    from embedserve_training.evaluate import Evaluation, Figure, Row

_LABELLED = {
    "knn": "kNN",
    "linear": "linear",
    "recall_1": "recall\n@1",
    "recall_5": "\n@5",
    "recall_10": "\n@10",
    "map": "mAP",
    "same_label_top10": "same in\ntop 10",
}
_ITSELF = {"self_recall_1": "itself\n@1", "self_mrr": "itself\nMRR"}
"""Figure → heading of its column."""
_SUBJECTS = "the runs and encoders come first, then the folders of images"


@click.command("evaluate")
@click.argument("subjects", metavar="RUN|ENCODER...", nargs=-1, required=True, type=existing_images)
@click.argument("folder", metavar="FOLDER...", type=existing_folder)
@click.option(
    "--test",
    "test_folders",
    type=existing_folder,
    multiple=True,
    help="Labelled folder with the queries. May be repeated.  [default: a fifth of FOLDER, held out]",
)
@exclude_option
@click.option(
    "--augmentation",
    metavar="NAME",
    help="Preset that augments the images of self-retrieval.  [default: that of the first run]",
)
@click.option(
    "--supervised-epochs",
    metavar="N",
    type=click.IntRange(min=1),
    help="Also train the same network on the labels, for N epochs over FOLDER, and show its row.",
)
@image_limit_options
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of a table.")
def command(
    subjects: tuple[Path, ...],
    folder: Path,
    test_folders: tuple[Path, ...],
    exclude: tuple[str, ...],
    augmentation: str | None,
    supervised_epochs: int | None,
    as_json: bool,
    limits: Limits,
) -> None:
    """Measure encoders on a folder of images, with labels and without.

    If FOLDER has a subfolder for each label, each test image searches in FOLDER. kNN: its 200 nearest neighbours vote
    for its label, weighted by exp(cosine / 0.1). Linear: a linear classifier on the vectors predicts it. Recall at k:
    at least one of the k nearest has its label. mAP: mean average precision of the whole ranking. Self-retrieval needs
    no labels: up to 2,000 augmented images search for their originals in FOLDER. For comparison the same is done with
    raw pixels, with their PCA and with the untrained network, whitened as the encoder is. Runs that differ only in the
    seed become one row: mean ± standard deviation.

    A FOLDER with train/ and test/ or val/ has both sides in it. A picture that is there more than once stays on one.

    There may be several FOLDERs, and @LIST stands for the image files that LIST names, one on each line.

    \b
    embedserve evaluate runs/photos photos/
    embedserve evaluate encoder.onnx labelled/train --test labelled/test
    embedserve evaluate runs/seed0 runs/seed1 labelled/ --supervised-epochs 20
    """
    from embedserve.cli.terminal.output import print_json, say
    from embedserve.cli.training import training_installed

    subjects, folders = _folders(subjects, folder)
    with training_installed():
        from embedserve_training.evaluate import evaluate

        evaluation = evaluate(
            subjects,
            folders,
            test_folders or None,
            report=say,
            exclude=exclude,
            augmentation=augmentation,
            supervised_epochs=supervised_epochs or 0,
            limits=limits,
        )
    if as_json:
        print_json(evaluation.to_json())
    else:
        print_evaluation(evaluation)


def _folders(subjects: tuple[Path, ...], last: Path) -> tuple[tuple[Path, ...], list[Path]]:
    """What is measured, and the folders to measure on: the last, and those before it that are no runs.

    The first is always measured, so that a mistyped run is named as one.
    """
    from embedserve.cli.terminal.path_kinds import holds_run, wrong
    from embedserve.folder.list_file import list_file

    folders = [last]
    while len(subjects) > 1:
        one = subjects[-1]
        if list_file(one) is None and (holds_run(one) or not one.is_dir()):
            break
        folders.insert(0, one)
        subjects = subjects[:-1]
    for subject in subjects:
        if list_file(subject) is not None:
            raise InvalidInput(f"{subject} is a list of files, not a run or an encoder", hint=_SUBJECTS)
        if what := wrong(subject, "subject"):
            raise InvalidInput(f"{subject} {what[0]}", hint=what[1])
    return subjects, folders


def print_evaluation(evaluation: Evaluation) -> None:
    """Print the table of an evaluation, and what its figures mean, on stdout."""
    from embedserve.cli.terminal.output import print_line
    from embedserve.cli.terminal.table import print_table

    shown = {**(_LABELLED if evaluation.labels else {}), **(_ITSELF if evaluation.augmentation else {})}
    lines: list[list[str]] = []
    for row in evaluation.rows:
        lines.append([row.name, *(_percent(getattr(row, key)) for key in shown)])
        if any(figure.std is not None for figure in _figures(row, shown)):
            lines.append(["", *(_std(getattr(row, key)) for key in shown)])
    print_table(["%", *shown.values()], lines, right=range(1, len(shown) + 1))
    width = max(len(row.name) for row in evaluation.rows)
    for row in evaluation.rows:
        numbers = f"{row.dimension} numbers" if row.dimension else ""
        print_line(f"{row.name:<{width}}  {'; '.join(filter(None, (numbers, row.note)))}")
    for line in _meaning(evaluation):
        print_line(line)


def _figures(row: Row, shown: dict[str, str]) -> list[Figure]:
    return [figure for key in shown if (figure := getattr(row, key)) is not None]


def _percent(figure: Figure | None) -> str:
    return "–" if figure is None else f"{100 * figure.mean:.1f}"


def _std(figure: Figure | None) -> str:
    return "" if figure is None or figure.std is None else f"±{100 * figure.std:.1f}"


def _meaning(evaluation: Evaluation) -> list[str]:
    lines = []
    if evaluation.labels:
        lines.append(
            f"{evaluation.test_images:,} images with {evaluation.labels} labels search in {evaluation.train_images:,};"
            f" kNN: {evaluation.neighbours} neighbours, temperature {evaluation.temperature:g}"
        )
    if evaluation.augmentation:
        lines.append(
            f"itself: {evaluation.self_queries:,} images, augmented ({evaluation.augmentation}), search for their"
            f" originals among {evaluation.self_images:,}"
        )
    else:
        lines.append(f"itself: left out, {evaluation.self_left_out}")
    if evaluation.copies:
        lines += evaluation.copies.lines(bool(evaluation.labels))
    return lines
