"""Means and standard deviations over seeds, and which subjects are one encoder with several seeds."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from embedserve.images.preprocess import PreprocessSpec
from embedserve_training.evaluate.figures import Figures
from embedserve_training.evaluate.self_retrieval import SelfRetrieval
from embedserve_training.evaluate.subjects import Subject, groups
from embedserve_training.evaluate.table import Figure, Measured, Row
from embedserve_training.plan.config import Settings

SPEC = PreprocessSpec(size_px=16, resize_px=16, filter="bicubic")


@pytest.fixture
def settings(finished_run: Path) -> Settings:
    from embedserve_training.run.run_folder import read_plan

    return read_plan(finished_run).settings


def subject(name: str, settings: Settings | None, *, spec: PreprocessSpec = SPEC, data: str = "d") -> Subject:
    return Subject(
        path=Path(name),
        embed=lambda pixels: np.zeros((len(pixels), 1), np.float32),
        spec=spec,
        backbone="small-cnn",
        settings=settings,
        data=data,
    )


def names(subjects: list[Subject]) -> list[list[str]]:
    return [[one.name for one in group] for group in groups(subjects)]


def test_the_deviation_is_that_of_a_sample() -> None:
    figure = Figure.of([0.1, 0.2, 0.6])
    # Mean 0.3; deviations −0.2, −0.1, 0.3; their squares sum to 0.14, over n − 1 = 2.
    assert figure.mean == pytest.approx(0.3)
    assert figure.std == pytest.approx(math.sqrt(0.07))
    assert figure.values == (0.1, 0.2, 0.6)


def test_a_single_value_has_no_deviation() -> None:
    assert Figure.of([0.4]) == Figure(mean=0.4, std=None, values=(0.4,))


def test_a_row_has_the_mean_of_each_figure_and_none_for_those_left_out() -> None:
    labelled = Figures(knn=0.5, linear=None, recall_1=0.1, recall_5=0.2, recall_10=0.3, map=0.4, same_label_top10=0.6)
    found = SelfRetrieval(recall_1=0.7, recall_5=0.8, recall_10=0.9, mrr=0.75, images=4, queries=3)
    first = Measured(dimension=8, labelled=labelled, self_retrieval=found)
    row = Row.of("x", [first, replace(first, labelled=replace(labelled, knn=0.7))], "two")
    assert row.knn is not None
    assert row.knn.values == (0.5, 0.7)
    assert row.linear is None
    assert row.self_recall_1 == Figure(mean=0.7, std=0.0, values=(0.7, 0.7))
    assert row.self_mrr is not None
    assert (row.self_mrr.mean, row.dimension, row.note) == (0.75, 8, "two")


def test_the_json_of_a_figure_has_the_documented_keys() -> None:
    row = Row.left_out("x", "no reason")
    assert replace(row, knn=Figure.of([0.5, 0.5])).to_json()["knn"] == {
        "mean": 0.5,
        "spread": 0.0,
        "values": (0.5, 0.5),
    }
    assert list(row.to_json()) == [entry.name for entry in fields(Row)]


def test_without_labels_a_row_has_only_figures_that_need_none() -> None:
    found = SelfRetrieval(recall_1=0.7, recall_5=0.8, recall_10=0.9, mrr=0.75, images=4, queries=3)
    row = Row.of("x", [Measured(dimension=8, labelled=None, self_retrieval=found)])
    assert row.knn is row.map is row.same_label_top10 is None
    assert row.self_recall_10 == Figure.of([0.9])


def test_runs_that_differ_only_in_their_seed_are_one_encoder(settings: Settings) -> None:
    runs = [subject(f"s{seed}", replace(settings, seed=seed)) for seed in range(3)]
    assert names(runs) == [["s0", "s1", "s2"]]


def test_the_device_of_a_run_does_not_tell_encoders_apart(settings: Settings) -> None:
    elsewhere = replace(settings, seed=1, device="cuda", workers=7)
    assert names([subject("here", settings), subject("there", elsewhere)]) == [["here", "there"]]


def test_runs_of_other_settings_images_or_sizes_are_rows_of_their_own(settings: Settings) -> None:
    other = replace(settings, seed=1)
    subjects = [
        subject("a", settings),
        subject("longer", replace(other, epochs=9)),
        subject("other data", other, data="e"),
        subject("larger", other, spec=replace(SPEC, resize_px=18)),
        subject("b", other),
    ]
    assert names(subjects) == [["a", "b"], ["longer"], ["other data"], ["larger"]]


def test_two_with_the_same_seed_are_never_averaged(settings: Settings) -> None:
    assert names([subject("run", settings), subject("its file", settings)]) == [["run"], ["its file"]]


def test_encoders_of_unknown_settings_are_never_averaged() -> None:
    assert names([subject("a", None), subject("b", None)]) == [["a"], ["b"]]
