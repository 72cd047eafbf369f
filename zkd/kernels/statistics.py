"""Statistics, whole or by parts: what one part gives can be combined with others to the result of all.

Means and squared deviations are carried as (count, mean, m2) and merged by the rule of Chan, Golub and
LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979). Where the
mean is 10**k deviations away from zero it loses k digits; the textbook's sum of squares loses 2k. Histograms,
groups and quantiles by parts are in `zkd.kernels.summaries`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np

from zkd.kernels.declaration import kernel
from zkd.kernels.shapes import ROWS_A_BLOCK, Floats, Labels, Matrix, Numbers, Vector, rows_of, side_by_side

# ruff: noqa: N803 - X is a matrix of rows, as in the literature


@dataclass(frozen=True)
class Moments:
    """Of `count` rows: the mean of each column and its sum of squared deviations `m2`.

    With cross products `m2` is the matrix of their sums, its diagonal the squared deviations.
    """

    count: Annotated[int, msgspec.Meta(ge=0)]
    mean: Floats
    m2: Floats
    min: Floats
    max: Floats


@kernel
def mean(x: Numbers, axis: int | None = None) -> Any:
    """The arithmetic mean of all elements, or along one axis. Raises ValueError where there are none."""
    if x.size == 0:
        raise ValueError(f"expected at least one element, got shape {list(x.shape)}")
    return np.mean(x, axis=axis, dtype=np.result_type(x.dtype, np.float64))


@kernel
def describe(x: Floats, axis: int | None = None) -> dict[str, Any]:
    """Count, mean, variance, standard deviation, min and max of all elements, or along one axis.

    The variance is the sample's (divided by count - 1); NaN for a single element. Raises ValueError where
    there are none.
    """
    if x.size == 0:
        raise ValueError(f"expected at least one element, got shape {list(x.shape)}")
    rows = x.reshape(-1, 1) if axis is None else np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)
    found = _moments((rows,), cross=False)
    shape = () if axis is None else np.delete(x.shape, axis)
    var = found.m2 / (found.count - 1) if found.count > 1 else np.full_like(found.m2, np.nan)
    columns = {"mean": found.mean, "var": var, "std": np.sqrt(var), "min": found.min, "max": found.max}
    return {"count": found.count} | {name: column.reshape(shape)[()] for name, column in columns.items()}


@kernel
def histogram(
    x: Floats,
    bins: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] | list[float] = 10,
    range: tuple[float, float] | None = None,  # noqa: A002 - numpy's name for it
    density: bool = False,
) -> dict[str, Any]:
    """Counts of the elements of `x` in bins: ``{"counts": [...], "edges": [...]}``.

    `bins` is a number of equal bins over `range` (or min to max), or the edges. Each bin has its left edge,
    the last one also its right. Counts over the same edges add up over parts (`combine_histograms`). Raises
    ValueError for edges that do not rise, and for NaN without a `range`.
    """
    counts, edges = np.histogram(x, bins=bins, range=range, density=density)
    return {"counts": counts, "edges": edges}


@kernel
def quantiles(x: Floats, q: Floats, axis: int | None = None) -> Any:
    """The quantiles `q` (from 0 to 1) of all elements, or along one axis, linearly interpolated.

    Type 7 of Hyndman and Fan (1996), numpy's default. Quantiles of parts cannot be combined, sketches of them
    can (`quantile_sketch`). Raises ValueError for `q` outside of 0 to 1 and for no elements.
    """
    if x.size == 0:
        raise ValueError(f"expected at least one element, got shape {list(x.shape)}")
    return np.quantile(x, q, axis=axis)


@kernel
def moments(*columns: Floats, cross: bool = False) -> Moments:
    """Count, mean, squared deviations, min and max of each column: the part of one part.

    Columns are vectors or matrices of the same rows, side by side. `cross` gives the matrix of cross products instead
    of squared deviations alone. Give the results of all parts to `combine_moments` or `combine_covariance`. Two passes
    a block, blocks merged: rows need not fit into memory twice. Raises ValueError for columns of different lengths.
    """
    return _moments(columns, cross)


def _moments(columns: Sequence[Floats], cross: bool) -> Moments:
    rows, width = rows_of(columns)
    m2 = np.zeros((width, width) if cross else width)
    merged = Moments(0, np.zeros(width), m2, np.full(width, np.inf), np.full(width, -np.inf))
    for start in range_of(rows):
        merged = _merge(merged, _of_block(side_by_side(columns, start, start + ROWS_A_BLOCK), cross))
    return merged


def range_of(rows: int) -> range:
    return range(0, rows, ROWS_A_BLOCK)


def _of_block(X: Matrix, cross: bool) -> Moments:
    average = X.mean(axis=0)
    away = X - average
    # The deviations sum to zero but for rounding; taking what is left of it off is the corrected two-pass rule.
    left = away.sum(axis=0)
    m2 = away.T @ away - np.outer(left, left) / len(X) if cross else (away**2).sum(axis=0) - left**2 / len(X)
    return Moments(len(X), average, m2, X.min(axis=0), X.max(axis=0))


def _merge(a: Moments, b: Moments) -> Moments:
    if a.count == 0 or b.count == 0:
        return b if a.count == 0 else a
    count = a.count + b.count
    apart = b.mean - a.mean
    between = np.outer(apart, apart) if a.m2.ndim == 2 else apart**2
    return Moments(
        count,
        a.mean + apart * (b.count / count),
        a.m2 + b.m2 + between * (a.count * (b.count / count)),
        np.minimum(a.min, b.min),
        np.maximum(a.max, b.max),
    )


@kernel
def combine_moments(parts: list[Moments]) -> Moments:
    """The moments of all rows from those of the parts (`moments`), whatever the order and sizes of the parts.

    The result can be combined again. ``m2 / (count - 1)`` is the sample variance, or with cross products the
    covariance matrix. Raises ValueError for parts of different columns, and for none.
    """
    if not parts:
        raise ValueError("expected at least one part, got none")
    shapes = {(part.mean.shape, part.m2.shape) for part in parts}
    if len(shapes) > 1:
        raise ValueError(f"expected parts of the same columns, got shapes {sorted(map(str, shapes))}")
    # In pairs, not one after the other: the error then grows with the logarithm of the number of parts.
    while len(parts) > 1:
        pairs = [_merge(a, b) for a, b in zip(parts[::2], parts[1::2], strict=False)]
        parts = pairs + parts[len(pairs) * 2 :]
    return parts[0]


@kernel
def covariance(X: Matrix, ddof: Annotated[int, msgspec.Meta(ge=0)] = 1) -> Floats:
    """The covariance matrix of the columns of `X`, divided by rows - ddof. Raises ValueError for too few rows."""
    return _covariance(_moments((X,), cross=True), ddof)


@kernel
def combine_covariance(parts: list[Moments], ddof: Annotated[int, msgspec.Meta(ge=0)] = 1) -> Floats:
    """The covariance matrix of all rows from `moments` of the parts with ``cross``, divided by rows - ddof.

    Raises ValueError for too few rows, for parts without cross products, and as `combine_moments`.
    """
    return _covariance(combine_moments(parts), ddof)


def _covariance(found: Moments, ddof: int) -> Floats:
    if found.m2.ndim != 2:
        raise ValueError("expected moments with cross products, give `moments` cross=true")
    if found.count <= ddof:
        raise ValueError(f"expected more than {ddof} rows, got {found.count}")
    return found.m2 / (found.count - ddof)


@kernel
def correlation(X: Matrix) -> Floats:
    """Pearson's correlation of the columns of `X`; NaN for a constant column. Raises ValueError below 2 rows."""
    found = _moments((X,), cross=True)
    if found.count < 2:
        raise ValueError(f"expected at least 2 rows, got {found.count}")
    spread = np.sqrt(np.diagonal(found.m2))
    with np.errstate(invalid="ignore", divide="ignore"):
        matrix = found.m2 / spread[:, None] / spread
    matrix = np.clip(matrix, -1.0, 1.0)
    np.fill_diagonal(matrix, np.where(spread > 0, 1.0, np.nan))
    return matrix


@kernel
def class_means(X: Matrix, y: Labels) -> dict[str, Any]:
    """Rows and column means of each class: ``{"labels": [...], "counts": [...], "means": [[...], ...]}``.

    `y` has one whole number a row. Parts are combined by counts. Raises ValueError for other lengths.
    """
    if len(X) != len(y):
        raise ValueError(f"expected one label a row, got {len(X)} rows and {len(y)} labels")
    labels, index, counts = np.unique(y, return_inverse=True, return_counts=True)
    sums = np.zeros((len(labels), X.shape[1]))
    for place in range(len(labels)):
        sums[place] = X[index == place].sum(axis=0)
    return {"labels": labels, "counts": counts, "means": sums / counts[:, None]}


@kernel
def standardize(X: Matrix, mean: Vector, std: Vector) -> Matrix:
    """`(X - mean) / std`, column by column; a column with a deviation of zero is only shifted."""
    result: Matrix = (X - mean) / np.where(std == 0, 1.0, std)
    return result
