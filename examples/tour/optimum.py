"""scikit-learn's optimum of what was trained, over the same training rows, in this one process.

Nothing here is told by zkd but which rows are held out, and that by a hash that anybody can compute.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tour.data import Array
from zkd.models.split import content_hashes, held_out


def held_out_rows(table: Mapping[str, Array], target: str, share: float) -> Array:
    """Which rows zkd holds out, by the hash of their features."""
    return held_out(content_hashes([column for name, column in table.items() if name != target]), share)


def optimum(table: Mapping[str, Array], target: str, held: Array) -> Array:
    """Weights of standardised features, the intercepts last, (features + 1, outputs); l2 is 1."""
    from sklearn.linear_model import LogisticRegression

    x = matrix(table, target)[~held]
    x -= x.mean(axis=0)
    scale = x.std(axis=0)
    x /= np.where(scale == 0, 1.0, scale)
    fitted = LogisticRegression(C=1.0, tol=1e-12, max_iter=1000, solver="newton-cholesky").fit(x, table[target][~held])
    intercept = fitted.intercept_ - (fitted.intercept_.mean() if len(fitted.classes_) > 2 else 0.0)
    return np.vstack([fitted.coef_.T, intercept])


def matrix(table: Mapping[str, Array], target: str) -> Array:
    columns = [column.astype(np.float64) for name, column in table.items() if name != target]
    return np.hstack([column if column.ndim == 2 else column[:, None] for column in columns])
