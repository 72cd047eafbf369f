"""What a model says of rows: scores, means and probabilities, classes, and why.

A row's attributions say how much each feature moved the score away from that of the mean row: exactly ``w_j (x_j -
mean_j)`` for linear models, and integrated gradients along the straight line from the mean row for nets (Sundararajan,
Taly and Yan, arXiv 1703.01365). They add up to the score less the base score.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from zkd.errors import BadTraining
from zkd.models import mlp
from zkd.models.model import Matrix, Model, Vector
from zkd.models.rows import Array, Scaler, blocks, rows_of

STEPS = 64  # of the Gauss-Legendre rule along the line; kinks of ReLU leave some 1e-3 of the difference
NODES, NODE_WEIGHTS = np.polynomial.legendre.leggauss(STEPS)


class Predictions(NamedTuple):
    """Of n rows: scores (n, outputs); for classes, probabilities (n, K) and the most likely class number (n,)."""

    scores: Matrix
    probabilities: Matrix | None
    classes: Array | None
    means: Vector | None  # (n,) where numbers are predicted


def predict(model: Model, w: Vector, columns: Sequence[Array], scaler: Scaler | None) -> Predictions:
    """Raises `BadTraining` for columns that do not fit. Of equal probabilities the first class wins."""
    return of_scores(model, scores(model, w, columns, scaler))


def of_scores(model: Model, z: Matrix) -> Predictions:
    """What scores (n, outputs) mean."""
    if model.kind == "linear" or (model.kind == "mlp" and model.outputs == 1):
        return Predictions(z, None, None, z[:, 0])
    if model.kind == "poisson":
        return Predictions(z, None, None, np.exp(z[:, 0]))
    if model.kind == "svm":
        return Predictions(z, None, (z[:, 0] > 0).astype(np.int64), None)
    if model.kind == "logistic":
        small = np.exp(-np.abs(z))
        share = np.where(z >= 0, 1.0, small) / (1.0 + small)
        other = np.where(z >= 0, small, 1.0) / (1.0 + small)
        return Predictions(z, np.hstack([other, share]), (z[:, 0] > 0).astype(np.int64), None)
    powers = np.exp(z - z.max(axis=1, keepdims=True))
    return Predictions(z, powers / powers.sum(axis=1, keepdims=True), z.argmax(axis=1), None)


def scores(model: Model, w: Vector, columns: Sequence[Array], scaler: Scaler | None) -> Matrix:
    """Scores (n, outputs), before any link."""
    rows = rows_of(columns, np.zeros(len(columns[0])))
    refuse_other_features(model, rows.features)
    layers = model.layers(w)
    z = np.empty((len(rows), model.outputs))
    start = 0
    for block in blocks(rows, scaler, intercept=model.intercept):
        z[start : start + len(block.x)] = of_rows(model, layers, block.x)
        start += len(block.x)
    return z


def of_rows(model: Model, layers: list[Matrix], x: Matrix) -> Matrix:
    """Scores (n, outputs) of a block's rows, with their ones."""
    return mlp.scores(layers, x) if model.kind == "mlp" else x @ layers[0]


def attributions(
    model: Model,
    w: Vector,
    columns: Sequence[Array],
    scaler: Scaler | None,
    *,
    output: int = 0,
    baseline: Vector | None = None,
) -> tuple[Matrix, float]:
    """How much each feature moved each row's score of one output, (n, features), and the score that it was moved from.

    `baseline` is the row that others are compared with, (features,), in the units that the model was trained in; zeros
    if not given, which is the mean row where features are standardised.
    """
    rows = rows_of(columns, np.zeros(len(columns[0])))
    refuse_other_features(model, rows.features)
    if not 0 <= output < model.outputs:
        raise ValueError(f"expected an output from 0 to {model.outputs - 1}, got {output}")
    layers = model.layers(w)
    base = np.zeros(model.features) if baseline is None else baseline
    base_row = np.append(base, np.ones(int(model.intercept)))[None, :]
    told = np.empty((len(rows), model.features))
    start = 0
    for block in blocks(rows, scaler, intercept=model.intercept):
        moved = block.x[:, : model.features] - base
        slopes = _mean_slopes(layers, base, moved, output) if model.kind == "mlp" else layers[0][: len(base), output]
        told[start : start + len(moved)] = moved * slopes
        start += len(moved)
    return told, float(of_rows(model, layers, base_row)[0, output])


def _mean_slopes(layers: list[Matrix], base: Vector, moved: Matrix, output: int) -> Matrix:
    """The mean slope of an output in each feature on the way from the base row to each row, (n, features)."""
    total = np.zeros_like(moved)
    between = np.ones((len(moved), len(base) + 1))
    above = np.zeros((len(moved), layers[-1].shape[1]))
    above[:, output] = 1.0
    for node, node_weight in zip(NODES, NODE_WEIGHTS, strict=True):
        between[:, :-1] = base + 0.5 * (node + 1.0) * moved
        inputs, _ = mlp.forward(layers, between)
        slopes = above
        for index in range(len(layers) - 1, 0, -1):
            slopes = mlp.slopes_below(layers[index], inputs[index], slopes)
        total += 0.5 * node_weight * (slopes @ layers[0][:-1].T)
    return total


def refuse_other_features(model: Model, features: int) -> None:
    if features != model.features:
        raise BadTraining(f"features: the model has {model.features}, the rows have {features}")
