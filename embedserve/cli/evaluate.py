"""`embedserve evaluate`: an encoder beside raw pixels, PCA and the untrained network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from embedserve_training.evaluate import Evaluation


@click.command("evaluate")
@click.argument("subject", metavar="RUN|ENCODER", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--test",
    "test_folder",
    type=click.Path(path_type=Path),
    help="Labelled folder to ask with.  [default: a fifth of FOLDER, held out]",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of a table.")
def command(subject: Path, folder: Path, test_folder: Path | None, as_json: bool) -> None:
    """Measure an encoder by its nearest neighbours on labelled images.

    FOLDER has a subfolder for each label. Each test image is given the label that its 200 nearest neighbours in FOLDER
    vote for, weighted by exp(cosine / 0.1); the share that is right is the kNN accuracy. The same is done with raw
    pixels, with PCA of them and with the untrained network, so that the figure can be read.

    \b
    embedserve evaluate runs/photos labelled/train --test labelled/test
    embedserve evaluate encoder.onnx labelled/
    """
    from dataclasses import asdict

    from embedserve.cli.output import print_json, say
    from embedserve.cli.training import training_installed

    with training_installed():
        from embedserve_training.evaluate import evaluate

        evaluation = evaluate(subject, folder, test_folder, report=say)
    if as_json:
        print_json(asdict(evaluation))
    else:
        print_evaluation(evaluation)


def print_evaluation(evaluation: Evaluation) -> None:
    """The table of an evaluation, on stdout."""
    from embedserve.cli.output import print_table

    def percent(share: float | None) -> str:
        return "–" if share is None else f"{100 * share:.1f} %"

    print_table(
        ["vectors", "kNN accuracy", "same label in top 10", "numbers", ""],
        [
            [row.name, percent(row.knn), percent(row.same_label_top10), str(row.dimension or "–"), row.note]
            for row in evaluation.rows
        ],
        right=(1, 2, 3),
    )
