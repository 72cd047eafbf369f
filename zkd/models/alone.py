"""Scores of rows, each computed as if it were alone: its bits do not depend on how many rows there are beside it.

A product of matrices takes rows some at a time, and its last bits depend on how many there are. Here each row is a
product of a vector and a matrix of its own, in one call for all of them: up to twice as slow for nets, and so it does
not matter which requests were answered together. All that comes after a product is element by element, or along a row.
"""

from __future__ import annotations

import numpy as np

from zkd.models.model import Matrix, Model, Vector
from zkd.models.predict import Predictions, attributions, of_scores
from zkd.models.rows import Scaler

BLOCK_FLOATS = 1 << 18  # of what stands between two layers at a time


def predictions(model: Model, w: Vector, rows: Matrix, scaler: Scaler | None) -> Predictions:
    """What a model says of rows (n, features) of float64."""
    return of_scores(model, scores(model, w, rows, scaler))


def scores(model: Model, w: Vector, rows: Matrix, scaler: Scaler | None) -> Matrix:
    """Scores (n, outputs), before any link."""
    layers = model.layers(w)
    step = max(1, BLOCK_FLOATS // (max(layer.shape[0] for layer in layers) + model.outputs))
    z = np.empty((len(rows), model.outputs))
    for start in range(0, len(rows), step):
        z[start : start + step] = _scores(model, layers, rows[start : start + step], scaler)
    return z


def _scores(model: Model, layers: list[Matrix], rows: Matrix, scaler: Scaler | None) -> Matrix:
    into = np.ones((len(rows), 1, model.features + model.intercept))
    into[:, 0, : model.features] = rows
    if scaler is not None:
        into[:, 0, : model.features] -= scaler.mean
        into[:, 0, : model.features] *= 1.0 / scaler.scale
    for layer in layers[:-1]:
        hidden = np.ones((len(rows), 1, layer.shape[1] + 1))
        np.maximum(into @ layer, 0.0, out=hidden[:, :, :-1])
        into = hidden
    return np.asarray((into @ layers[-1])[:, 0, :])


def reasons(
    model: Model, w: Vector, rows: Matrix, scaler: Scaler | None, mean: Vector, outputs: list[int]
) -> tuple[Matrix, Vector]:
    """How much each feature moved each row's score of one of the outputs, (n, features), and the score of the mean
    row, from which it was moved, (n,). `outputs` has that of each row."""
    baseline = mean if scaler is None else None
    told, base = np.empty((len(rows), model.features)), np.empty(len(rows))
    groups: dict[int, list[int]] = {}
    for place, output in enumerate(outputs):  # those of a linear model are taken element by element
        groups.setdefault(place if model.kind == "mlp" else output, []).append(place)
    for some in groups.values():
        told[some], base[some] = attributions(
            model, w, [rows[some]], scaler, output=outputs[some[0]], baseline=baseline
        )
    return told, base
