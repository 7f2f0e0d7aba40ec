"""Nearest neighbours and their vote against a slow version."""

from __future__ import annotations

import math

import numpy as np
import pytest

from embedserve.errors import TrainingError
from embedserve_training.evaluate import nearest, neighbours, vote
from embedserve_training.evaluate.neighbours import by_block, top


def slow_knn(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, k: int) -> list[int]:
    """Section 3.4 of arXiv 1805.01978 for one test vector after another, in float64."""
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
def test_the_weighted_vote_agrees_with_a_slow_version(k: int) -> None:
    rng = np.random.default_rng(k)
    labels = rng.integers(0, 4, 300)
    train = rng.normal(size=(300, 6)).astype(np.float32) + np.eye(4, 6, dtype=np.float32)[labels] * 2
    test = rng.normal(size=(50, 6)).astype(np.float32)
    scores, found = nearest(train, labels, test, k)
    assert vote(scores, found, 4).tolist() == slow_knn(train, labels, test, k)


def test_the_temperature_of_the_vote_is_a_tenth_and_did_not_drift_to_seven_hundredths() -> None:
    # At 0.1 two neighbours at 0.94 outweigh one at 1: 2·exp(9.4) > exp(10). At 0.07 they would not.
    assert vote(np.array([[1.0, 0.94, 0.94]], np.float32), np.array([[0, 1, 1]]), 2).tolist() == [1]
    assert 2 * math.exp(0.94 / 0.07) < math.exp(1 / 0.07)


def test_a_tied_vote_goes_to_the_first_label() -> None:
    assert vote(np.array([[0.5, 0.5]], np.float32), np.array([[2, 1]]), 3).tolist() == [1]


def test_neighbours_come_nearest_first_and_ties_in_order_of_the_data() -> None:
    train = np.array([[0, 1], [1, 0], [2, 0], [1, 1]], np.float32)
    scores, labels = nearest(train, np.array([0, 1, 2, 3]), np.array([[5, 0]], np.float32), 4)
    assert labels.tolist() == [[1, 2, 3, 0]]
    np.testing.assert_allclose(scores, [[1, 1, math.sqrt(0.5), 0]], atol=1e-6)


@pytest.mark.parametrize("k", [1, 3, 7, 50, 99, 100, 200])
def test_the_nearest_are_those_of_a_stable_sort_even_where_many_are_equal(k: int) -> None:
    cosine = np.random.default_rng(k).integers(0, 6, (40, 100)).astype(np.float32)
    assert top(cosine, k).tolist() == np.argsort(-cosine, axis=1, kind="stable")[:, :k].tolist()


@pytest.mark.parametrize("rows", [1, 5])
def test_blocks_of_any_size_give_the_same_neighbours(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    train, labels = rng.normal(size=(30, 4)).astype(np.float32), rng.integers(0, 3, 30)
    test = rng.normal(size=(17, 4)).astype(np.float32)
    _, at_once = nearest(train, labels, test, 5)
    monkeypatch.setattr(neighbours, "BLOCK_BYTES", 4 * 30 * rows)
    assert nearest(train, labels, test, 5)[1].tolist() == at_once.tolist()
    parts = by_block(train, test, lambda rows, cosine: (list(range(17))[rows], cosine.shape))
    assert [row for part, _ in parts for row in part] == list(range(17))
    assert all(shape == (len(part), 30) and len(part) <= rows for part, shape in parts)


def test_a_vector_of_zeros_has_cosine_0() -> None:
    [cosine] = by_block(np.array([[0, 0], [3, 4]], np.float32), np.array([[3, 4]], np.float32), lambda rows, c: c)
    np.testing.assert_allclose(cosine, [[0, 1]], atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_vectors_that_are_not_finite_are_refused_and_counted(value: float) -> None:
    # Comparisons with NaN are false: every original would have rank 1.
    good, bad = np.ones((3, 2), np.float32), np.array([[1, value], [value, value]], np.float32)
    for train, test in ((good, bad), (bad, good)):
        with pytest.raises(TrainingError, match="2 of 5 vectors are not finite") as caught:
            by_block(train, test, lambda rows, cosine: None)
        assert "learning rate" in caught.value.hint
