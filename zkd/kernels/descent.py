"""Losses and gradients over one part of the rows, and predictions: the kernels of distributed descent.

A part gives *sums* over its rows and their count, so that adding what all parts gave and dividing by the
count is the mean over all rows. Weights have one row a column of X, or one more: the last is the intercept.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from zkd.kernels.declaration import kernel
from zkd.kernels.shapes import ROWS_A_BLOCK, Labels, Matrix, Vector

# ruff: noqa: N803 - X are rows and W weights, as in the literature


@kernel
def softmax_gradient(W: Matrix, X: Matrix, y: Labels) -> dict[str, Any]:
    """Of softmax regression: ``{"loss": sum, "gradient": sum in W's shape, "count": rows}``.

    `W` is columns (or columns + 1) x classes, `y` the class of each row, from 0. The loss is the negative log
    likelihood in nats, by log-sum-exp: it neither overflows nor takes the logarithm of zero. Raises
    ValueError for shapes that do not fit and labels that are no class.
    """
    _check(W, X, y)
    classes = W.shape[1]
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise ValueError(f"expected labels from 0 to {classes - 1}, got {int(y.min())} to {int(y.max())}")
    loss, gradient = 0.0, np.zeros_like(W)
    for start in range(0, len(X), ROWS_A_BLOCK):
        rows, labels = X[start : start + ROWS_A_BLOCK], y[start : start + ROWS_A_BLOCK]
        scores = _scores(W, rows)
        log_p = scores - _log_sum_exp(scores)
        here = np.arange(len(rows))
        loss -= float(log_p[here, labels].sum())
        error = np.exp(log_p)
        error[here, labels] -= 1.0
        _add_gradient(gradient, rows, error)
    return {"loss": loss, "gradient": gradient, "count": len(X)}


@kernel
def logistic_gradient(w: Vector, X: Matrix, y: Labels) -> dict[str, Any]:
    """Of logistic regression: ``{"loss": sum, "gradient": sum, "count": rows}``, for labels 0 and 1.

    `w` has one weight a column, or one more: the intercept. Raises ValueError for shapes that do not fit and
    labels other than 0 and 1.
    """
    _check(w, X, y)
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) <= 1:
        raise ValueError(f"expected labels 0 and 1, got {int(y.min())} to {int(y.max())}")
    loss, gradient = 0.0, np.zeros_like(w)
    for start in range(0, len(X), ROWS_A_BLOCK):
        rows, labels = X[start : start + ROWS_A_BLOCK], y[start : start + ROWS_A_BLOCK]
        scores = _scores(w, rows)
        # log(1 + e^s) - y s = log(1 + e^-s) for y = 1, so that a sure and right score costs nothing, not -0 + 0.
        loss += float(np.logaddexp(0.0, np.where(labels == 1, -scores, scores)).sum())
        _add_gradient(gradient, rows, _logistic(scores) - labels)
    return {"loss": loss, "gradient": gradient, "count": len(X)}


@kernel
def predict_softmax(W: Matrix, X: Matrix) -> dict[str, Any]:
    """The most likely class of each row and the probabilities of all: ``{"labels", "probabilities"}``.

    `W` as in `softmax_gradient`. Of equal probabilities the first class wins.
    """
    _check(W, X, X)
    scores = _scores(W, X)
    return {"labels": scores.argmax(axis=1), "probabilities": np.exp(scores - _log_sum_exp(scores))}


@kernel
def predict_logistic(w: Vector, X: Matrix) -> dict[str, Any]:
    """Labels (0 or 1) and probabilities of label 1 for each row: ``{"labels", "probabilities"}``."""
    _check(w, X, X)
    scores = _scores(w, X)
    return {"labels": (scores > 0).astype(np.int64), "probabilities": _logistic(scores)}


def _check(weights: Any, X: Matrix, y: Labels | Matrix) -> None:
    if len(weights) not in (X.shape[1], X.shape[1] + 1):
        raise ValueError(f"expected {X.shape[1]} or {X.shape[1] + 1} rows of weights, got {len(weights)}")
    if weights.ndim == 2 and weights.shape[1] < 1:
        raise ValueError("expected weights for at least one class")
    if len(X) != len(y):
        raise ValueError(f"expected one label a row, got {len(X)} rows and {len(y)} labels")


def _scores(weights: Vector | Matrix, rows: Matrix) -> Any:
    columns = rows.shape[1]
    scores = rows @ weights[:columns]
    return scores + weights[columns] if len(weights) > columns else scores


def _add_gradient(gradient: Vector | Matrix, rows: Matrix, error: Any) -> None:
    columns = rows.shape[1]
    gradient[:columns] += rows.T @ error
    if len(gradient) > columns:
        gradient[columns] += error.sum(axis=0)


def _log_sum_exp(scores: Matrix) -> Matrix:
    largest = scores.max(axis=1, keepdims=True)
    total: Matrix = largest + np.log(np.exp(scores - largest).sum(axis=1, keepdims=True))
    return total


def _logistic(scores: Vector) -> Vector:
    """1 / (1 + e^-s) without overflow for large negative scores."""
    small = np.exp(-np.abs(scores))
    result: Vector = np.where(scores >= 0, 1.0, small) / (1.0 + small)
    return result
