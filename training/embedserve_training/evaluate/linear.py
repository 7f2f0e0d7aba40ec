"""The linear probe: how well a linear classifier on the frozen vectors predicts the labels.

Multinomial logistic regression on features with mean 0 and standard deviation 1. It is deterministic: the minimum is
unique, and the optimiser runs until it has converged. It needs only NumPy, so an encoder file needs no PyTorch.

Shapes: N images, D values per vector, L labels, F = D + 1 with the constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

L2 = 0.01
"""Of 1e-4 to 0.1 the best for PCA of 3,000 images of Fashion-MNIST; 2 points below the best for 500, 1 for 60,000."""
_MOST_STEPS = 500
_MEMORY = 10
"""Pairs that L-BFGS keeps (Nocedal and Wright, Numerical Optimization, chapter 7, advise 3 to 20)."""


@dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """A fitted classifier."""

    mean_D: NDArray[np.float32]
    scale_D: NDArray[np.float32]
    weight_FL: NDArray[np.float32]
    """The last row is the constant."""
    steps: int
    gradient: float
    """Largest absolute entry of the gradient where it stopped."""

    def predict(self, x_ND: NDArray[np.float32]) -> NDArray[np.int64]:
        """The label of each vector: [N]."""
        logits_NL = (x_ND - self.mean_D) * self.scale_D @ self.weight_FL[:-1] + self.weight_FL[-1]
        labels_N: NDArray[np.int64] = logits_NL.argmax(axis=1)
        return labels_N


def fit(
    x_ND: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    labels: int,
    *,
    l2: float = L2,
    tolerance: float = 1e-4,
) -> LinearProbe:
    """The minimum of mean cross-entropy + l2 / 2 · ‖W‖², where W are the weights without the constants.

    Args:
        x_ND: vectors.
        labels_N: 0 to ``labels`` − 1.
        labels: L.
        l2: strength of the penalty.
        tolerance: largest absolute entry of the gradient at which it stops.
    """
    mean_D: NDArray[np.float32] = x_ND.mean(axis=0, dtype=np.float64).astype(np.float32)
    deviation_D = x_ND.std(axis=0, dtype=np.float64)
    # A constant value carries no information, and rounding errors must not be scaled up to a feature: neither those of
    # a large constant, nor those that whitening leaves of a direction without variance.
    varies_D = deviation_D > np.maximum(1e-6 * np.abs(x_ND).max(axis=0), 1e-10 * deviation_D.max())
    scale_D = np.where(varies_D, 1 / np.where(varies_D, deviation_D, 1), 0).astype(np.float32)
    x_NF = np.ones((len(x_ND), x_ND.shape[1] + 1), np.float32)
    x_NF[:, :-1] = (x_ND - mean_D) * scale_D

    def objective(weight_FL: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        return loss_and_gradient(weight_FL, x_NF, labels_N, l2)

    # This matrix bounds the Hessian for every label (Böhning, 1992), so steps start with about the right length in all
    # directions, however different their variances are.
    bound_FF = 0.5 * (x_NF.T @ x_NF).astype(np.float64) / len(x_NF) + l2 * np.eye(x_NF.shape[1])
    inverse_FF: NDArray[np.float64] = np.linalg.inv(bound_FF).astype(np.float64)
    weight_FL, steps, gradient = _minimise(objective, np.zeros((x_NF.shape[1], labels)), inverse_FF, tolerance)
    return LinearProbe(
        mean_D=mean_D, scale_D=scale_D, weight_FL=weight_FL.astype(np.float32), steps=steps, gradient=gradient
    )


def loss_and_gradient(
    weight_FL: NDArray[np.float64], x_NF: NDArray[np.float32], labels_N: NDArray[np.int64], l2: float
) -> tuple[float, NDArray[np.float64]]:
    """Mean cross-entropy plus penalty, and its gradient [F, L]. The last feature is the constant, without penalty."""
    logits_NL = x_NF @ weight_FL.astype(np.float32)
    logits_NL -= logits_NL.max(axis=1, keepdims=True)
    rows_N = np.arange(len(x_NF))
    chosen_N = logits_NL[rows_N, labels_N]
    share_NL = np.exp(logits_NL, out=logits_NL)
    total_N1 = share_NL.sum(axis=1, keepdims=True)
    loss = float((np.log(total_N1[:, 0]) - chosen_N).mean(dtype=np.float64))
    share_NL /= total_N1
    share_NL[rows_N, labels_N] -= 1
    gradient_FL = (x_NF.T @ share_NL).astype(np.float64) / len(x_NF)
    gradient_FL[:-1] += l2 * weight_FL[:-1]
    return loss + 0.5 * l2 * float((weight_FL[:-1] ** 2).sum()), gradient_FL


def _minimise(
    objective: Callable[[NDArray[np.float64]], tuple[float, NDArray[np.float64]]],
    weight_FL: NDArray[np.float64],
    inverse_FF: NDArray[np.float64],
    tolerance: float,
) -> tuple[NDArray[np.float64], int, float]:
    """L-BFGS from a given inverse Hessian (algorithm 7.4), with steps halved until the decrease suffices (3.1)."""
    loss, gradient_FL = objective(weight_FL)
    pairs: list[tuple[NDArray[np.float64], NDArray[np.float64], float]] = []
    step = 0
    while float(np.abs(gradient_FL).max()) > tolerance and step < _MOST_STEPS:
        step += 1
        direction_FL = -_times_inverse_hessian(gradient_FL, pairs, inverse_FF)
        slope = float((direction_FL * gradient_FL).sum())
        length = 1.0
        while True:
            moved_FL = length * direction_FL
            new_loss, new_gradient_FL = objective(weight_FL + moved_FL)
            if new_loss <= loss + 1e-4 * length * slope:
                break
            length /= 2
            if length < 1e-6:  # float32 cannot resolve a smaller difference
                return weight_FL, step, float(np.abs(gradient_FL).max())
        change_FL = new_gradient_FL - gradient_FL
        curvature = float((moved_FL * change_FL).sum())
        if curvature > 0:
            pairs = [*pairs, (moved_FL, change_FL, curvature)][-_MEMORY:]
        weight_FL, loss, gradient_FL = weight_FL + moved_FL, new_loss, new_gradient_FL
    return weight_FL, step, float(np.abs(gradient_FL).max())


def _times_inverse_hessian(
    gradient_FL: NDArray[np.float64],
    pairs: list[tuple[NDArray[np.float64], NDArray[np.float64], float]],
    inverse_FF: NDArray[np.float64],
) -> NDArray[np.float64]:
    q_FL = gradient_FL
    shares: list[float] = []
    for moved_FL, change_FL, curvature in reversed(pairs):
        share = float((moved_FL * q_FL).sum()) / curvature
        q_FL = q_FL - share * change_FL
        shares.append(share)
    q_FL = inverse_FF @ q_FL
    for (moved_FL, change_FL, curvature), share in zip(pairs, reversed(shares), strict=True):
        q_FL = q_FL + (share - float((change_FL * q_FL).sum()) / curvature) * moved_FL
    return q_FL
