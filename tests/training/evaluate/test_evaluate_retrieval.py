"""Recall and average precision worked out by hand, and all figures of two small sets."""

from __future__ import annotations

import math

import numpy as np
import pytest

from embedserve_training.evaluate import figures
from embedserve_training.evaluate.retrieval import average_precision, recall


def test_recall_at_k_counts_queries_with_at_least_one_of_their_label_among_the_k_nearest() -> None:
    same = np.array([[False, True, True], [False, False, False], [True, False, False]])
    assert recall(same, 1).tolist() == [False, False, True]
    assert recall(same, 2).tolist() == [True, False, True]


def test_average_precision_is_the_mean_precision_at_the_ranks_of_relevant_items() -> None:
    # Relevant at ranks 1, 3 and 5 of five: (1/1 + 2/3 + 3/5) / 3.
    cosine = np.array([[0.1, 0.9, 0.5, 0.3, 0.7]], np.float32)
    same = np.array([[True, True, True, False, False]])
    assert average_precision(cosine, same).tolist() == [pytest.approx((1 + 2 / 3 + 3 / 5) / 3)]


def test_equal_items_share_the_last_of_their_ranks() -> None:
    # One relevant item before all others; the second shares rank 4 with two irrelevant ones: (1/1 + 2/4) / 2.
    cosine = np.array([[0.9, 0.5, 0.5, 0.5, 0.1]], np.float32)
    same = np.array([[True, False, True, False, False]])
    assert average_precision(cosine, same).tolist() == [pytest.approx(0.75)]


def test_an_encoder_that_maps_all_images_to_one_vector_has_the_share_of_the_label() -> None:
    cosine = np.ones((2, 8), np.float32)
    same = np.arange(8) < np.array([[2], [6]])
    assert average_precision(cosine, same).tolist() == [0.25, 0.75]


def test_a_query_with_an_unknown_label_has_precision_0() -> None:
    assert average_precision(np.ones((1, 3), np.float32), np.zeros((1, 3), bool)).tolist() == [0.0]


def test_average_precision_agrees_with_a_loop_over_the_ranking() -> None:
    rng = np.random.default_rng(0)
    cosine, same = rng.permutation(4000).reshape(40, 100).astype(np.float32), rng.random((40, 100)) < 0.2
    expected = []
    for scores, wanted in zip(cosine.tolist(), same.tolist(), strict=True):
        found, precisions = 0, []
        for rank, i in enumerate(sorted(range(100), key=lambda i: -scores[i]), start=1):
            if wanted[i]:
                found += 1
                precisions.append(found / rank)
        expected.append(sum(precisions) / len(precisions))
    np.testing.assert_allclose(average_precision(cosine, same), expected)


def at(*degrees: float) -> np.ndarray:
    """Points on the unit circle."""
    return np.array([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees], np.float32)


def test_the_figures_of_a_small_set_are_those_worked_out_by_hand() -> None:
    train, labels = at(0, 10, 20, 90, 100), np.array([0, 1, 0, 1, 1])
    # 4° is nearest to 0° (label 0), then 10° (1), 20° (0); 96° to 100° (1), 90° (1), 20° (0), 10° (1), 0° (0).
    result = figures(train, labels, at(4, 96), np.array([1, 1]))
    # Five vote. For 4°: exp(9.976) + exp(9.613) for 0, exp(9.945) and two small ones for 1; for 96°: 1 by far.
    assert result.knn == 0.5
    assert result.recall_1 == 0.5
    assert result.recall_5 == result.recall_10 == 1.0
    # For 4° label 1 is at ranks 2, 4, 5; for 96° at ranks 1, 2, 4.
    assert result.map == pytest.approx(((1 / 2 + 2 / 4 + 3 / 5) / 3 + (1 + 1 + 3 / 4) / 3) / 2)
    # Of five that there are, three have the label.
    assert result.same_label_top10 == pytest.approx(3 / 5)
    assert result.linear is not None


def test_an_unknown_label_counts_as_wrong_in_every_figure() -> None:
    result = figures(at(0, 90), np.array([0, 1]), at(0, 90), np.array([2, 1]))
    assert (result.knn, result.linear, result.recall_1, result.recall_10, result.map, result.same_label_top10) == (
        0.5,
        0.5,
        0.5,
        0.5,
        0.5,
        0.25,
    )


def test_the_linear_probe_can_be_left_out() -> None:
    assert figures(at(0, 90), np.array([0, 1]), at(1), np.array([0]), linear=False).linear is None


def test_figures_do_not_depend_on_the_length_of_vectors() -> None:
    rng = np.random.default_rng(1)
    train, labels = rng.normal(size=(60, 5)).astype(np.float32), rng.integers(0, 3, 60)
    test, asked = rng.normal(size=(20, 5)).astype(np.float32), rng.integers(0, 3, 20)
    lengths = rng.uniform(0.5, 2, (60, 1)).astype(np.float32)
    assert figures(train * lengths, labels, test * 3, asked, linear=False) == figures(
        train, labels, test, asked, linear=False
    )
