"""The linear probe against closed forms, a loss written out in loops, and its convergence."""

from __future__ import annotations

import math

import numpy as np
import pytest

from embedserve_training.evaluate.linear import fit, loss_and_gradient


def slow_loss(weight: np.ndarray, x: np.ndarray, labels: np.ndarray, l2: float) -> float:
    """Mean cross-entropy plus penalty, one image after another, in float64."""
    total = 0.0
    for features, label in zip(x.astype(np.float64), labels, strict=True):
        logits = [sum(f * w for f, w in zip(features, column, strict=True)) for column in weight.T]
        total += math.log(sum(math.exp(logit) for logit in logits)) - logits[label]
    return total / len(x) + l2 / 2 * float((weight[:-1] ** 2).sum())


def slow_gradient(weight: np.ndarray, x: np.ndarray, labels: np.ndarray, l2: float) -> np.ndarray:
    """Central differences of the slow loss."""
    gradient = np.zeros_like(weight)
    for place in np.ndindex(*weight.shape):
        step = np.zeros_like(weight)
        step[place] = 1e-5
        gradient[place] = (slow_loss(weight + step, x, labels, l2) - slow_loss(weight - step, x, labels, l2)) / 2e-5
    return gradient


def small_problem(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, 40)
    return (rng.normal(size=(40, 4)) + np.eye(3, 4)[labels]).astype(np.float32), labels


def with_constant(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x, np.ones((len(x), 1), np.float32)], axis=1)


def test_the_loss_and_its_gradient_agree_with_slow_versions() -> None:
    x, labels = small_problem(0)
    weight = np.random.default_rng(1).normal(size=(5, 3))
    loss, gradient = loss_and_gradient(weight, with_constant(x), labels, 0.3)
    assert loss == pytest.approx(slow_loss(weight, with_constant(x), labels, 0.3), rel=1e-5)
    np.testing.assert_allclose(gradient, slow_gradient(weight, with_constant(x), labels, 0.3), atol=1e-4)


def test_where_the_fit_stops_the_slow_gradient_is_zero() -> None:
    x, labels = small_problem(2)
    probe = fit(x, labels, 3, l2=0.05, tolerance=1e-5)
    standard = with_constant((x - x.mean(0)) / x.std(0))
    np.testing.assert_allclose(slow_gradient(probe.weight_FL.astype(float), standard, labels, 0.05), 0, atol=1e-4)


def test_two_points_have_the_weights_of_the_closed_form() -> None:
    # x = ∓1 with labels 0 and 1: by symmetry W = (−v, v), where σ(−2v) = l2 · v; so v = 1 for l2 = 1 / (1 + e²).
    probe = fit(np.array([[-1], [1]], np.float32), np.array([0, 1]), 2, l2=1 / (1 + math.exp(2)), tolerance=1e-6)
    np.testing.assert_allclose(probe.weight_FL, [[-1, 1], [0, 0]], atol=1e-4)


def test_features_without_information_leave_the_shares_of_the_labels() -> None:
    probe = fit(np.full((8, 2), 7, np.float32), np.array([0] * 6 + [1] * 2), 2)
    constants = np.exp(probe.weight_FL[-1])
    np.testing.assert_allclose(constants / constants.sum(), [0.75, 0.25], atol=1e-3)
    assert probe.predict(np.array([[7, 7], [100, -3]], np.float32)).tolist() == [0, 0]


def test_features_of_very_different_scales_still_converge_and_scale_does_not_matter() -> None:
    x, labels = small_problem(3)
    correlated = np.concatenate([x, x @ np.random.default_rng(4).normal(size=(4, 4)).astype(np.float32)], axis=1)
    probe = fit(correlated, labels, 3)
    scaled = correlated * np.float32(10) ** np.arange(-4, 4, dtype=np.float32)
    assert probe.gradient <= 1e-4
    assert fit(scaled, labels, 3).predict(scaled).tolist() == probe.predict(correlated).tolist()


def test_linearly_separable_labels_are_all_predicted() -> None:
    x = np.random.default_rng(5).normal(size=(200, 3)).astype(np.float32)
    labels = (x[:, 0] > 0).astype(np.int64)
    x[:, 0] += np.sign(x[:, 0])
    assert (fit(x, labels, 2, l2=1e-4).predict(x) == labels).all()


def test_the_same_data_give_the_same_weights() -> None:
    x, labels = small_problem(6)
    assert np.array_equal(fit(x, labels, 3).weight_FL, fit(x, labels, 3).weight_FL)


def test_more_features_than_images_converge_too() -> None:
    rng = np.random.default_rng(7)
    x, labels = rng.normal(size=(20, 64)).astype(np.float32), np.arange(20) % 5
    probe = fit(x, labels, 5)
    assert probe.gradient <= 1e-4
    assert (probe.predict(x) == labels).all()


def test_negligible_values_are_not_scaled_up_to_features() -> None:
    x, labels = small_problem(8)
    noise = np.full((40, 1), 1e-40, np.float32) * (labels[:, None] == 0)
    assert np.array_equal(fit(np.concatenate([x, noise], axis=1), labels, 3).weight_FL[4], [0, 0, 0])
