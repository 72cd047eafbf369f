"""What the training minimises: the negative log likelihood of softmax regression, plus half of |W|^2.

`W` has a row for each column of the data and a last one for the intercept, which is not penalised.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def penalised(weights: Array, parts: Iterable[tuple[float, Array]]) -> tuple[float, Array]:
    """Loss and gradient: those of the parts, added in their order, and the penalty."""
    loss, gradient = 0.0, np.zeros_like(weights)
    for part_loss, part_gradient in parts:
        loss += part_loss
        gradient += part_gradient
    gradient[:-1] += weights[:-1]
    return loss + 0.5 * float(np.sum(weights[:-1] ** 2)), gradient


def plain_softmax(weights: Array, rows: Array, labels: Array) -> tuple[float, Array]:
    """Negative log likelihood of the labels and its gradient, as a textbook has them: zkd has no part in it."""
    log_p = log_probabilities(weights, rows)
    error = np.exp(log_p) - np.eye(weights.shape[1])[labels]
    return -float(log_p[np.arange(len(rows)), labels].sum()), np.vstack([rows.T @ error, error.sum(axis=0)])


def log_probabilities(weights: Array, rows: Array) -> Array:
    scores: Array = rows @ weights[:-1] + weights[-1]
    scores -= scores.max(axis=1, keepdims=True)
    scores -= np.log(np.exp(scores).sum(axis=1, keepdims=True))
    return scores
