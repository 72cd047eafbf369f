"""The loss of one row's score z for its target y, with slope and curvature in z; safe for every finite score.

    linear    (z - y)^2 / 2                 squared loss, so its sum is half the residual sum of squares
    logistic  log(1 + e^-m), m = +-z        negative log likelihood in nats, y in {0, 1}
    softmax   log sum_k e^(z_k - z_y)       the same for K classes, y in 0..K-1
    poisson   e^z - y z                     negative log likelihood without log y!, which no parameter changes
    svm       max(0, 1 - m)^2, m = +-z      squared hinge, y in {0, 1}; its curvature is that of the active rows

Where e^z of a Poisson score is too large for a float the loss is infinite, and a line search turns back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from zkd.models.model import Kind, Matrix, Vector


class Losses(NamedTuple):
    """Of n rows: loss, slope and, if it was asked for, curvature; (n,) each."""

    loss: Vector
    slope: Vector
    curvature: Vector | None


def linear(z: Vector, y: Vector, *, curvature: bool) -> Losses:
    residual = z - y
    return Losses(0.5 * residual * residual, residual, np.ones_like(z) if curvature else None)


def logistic(z: Vector, y: Vector, *, curvature: bool) -> Losses:
    sign = 1.0 - 2.0 * y
    m = sign * z  # how far the score is on the wrong side
    small: Vector = np.exp(-np.abs(m))
    wrong = np.where(m >= 0, 1.0, small) / (1.0 + small)  # the probability of the other class, without cancellation
    loss = np.maximum(m, 0.0) + np.log1p(small)
    bend: Vector | None = small / np.square(1.0 + small) if curvature else None
    return Losses(loss, sign * wrong, bend)


def poisson(z: Vector, y: Vector, *, curvature: bool) -> Losses:
    with np.errstate(over="ignore"):
        mean: Vector = np.exp(z)
    return Losses(mean - y * z, mean - y, mean if curvature else None)


def svm(z: Vector, y: Vector, *, curvature: bool) -> Losses:
    sign = 2.0 * y - 1.0
    short = np.maximum(1.0 - sign * z, 0.0)  # how much the margin is too small
    bend = np.where(short > 0, 2.0, 0.0) if curvature else None
    return Losses(short * short, -2.0 * sign * short, bend)


ONE_OUTPUT: Mapping[Kind, Callable[..., Losses]] = {
    "linear": linear,
    "logistic": logistic,
    "poisson": poisson,
    "svm": svm,
}


def softmax(z: Matrix, y: Vector) -> tuple[Vector, Matrix, Matrix]:
    """Losses (n,), slopes (n, K) and probabilities (n, K) of scores (n, K)."""
    here, label = np.arange(len(z)), y.astype(np.int64)
    shifted = z - z.max(axis=1, keepdims=True)
    powers = np.exp(shifted)
    own = powers[here, label]
    powers[here, label] = 0.0
    others = powers.sum(axis=1)  # apart from the row's own class: what is tiny beside it is not lost
    total = own + others
    slope = powers / total[:, None]
    p = slope.copy()
    p[here, label] = own / total
    slope[here, label] = -others / total
    score = shifted[here, label]
    loss = np.where(score > -1.0, np.log1p(others / own.clip(min=1e-300)), np.log(total) - score)
    return loss, slope, p
