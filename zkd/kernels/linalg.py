"""Linear algebra in double precision, by LAPACK. Orthogonal methods where squaring the condition would hurt.

Factors are unique only up to signs, so signs are fixed (the largest entry of each vector is positive):
the same input gives the same result on every node of one CPU type.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from zkd.kernels.declaration import kernel
from zkd.kernels.shapes import Floats, Matrix, Numbers, Vector

# ruff: noqa: N803 - X is a matrix of rows, as in the literature

Count = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]


@kernel
def dot(x: Numbers, y: Numbers) -> Any:
    """The product of two vectors, of a matrix and a vector, or of two matrices, as ``numpy.dot``.

    Integers of up to 2**53 give exact results as long as those stay below it, too: products are taken in
    double precision. Raises ValueError for lengths that do not fit.
    """
    return np.dot(_at_least_double(x), _at_least_double(y))


@kernel
def matmul(x: Numbers, y: Numbers) -> Any:
    """The matrix product, over stacks of matrices where there are more than two dimensions.

    Raises ValueError for shapes that do not fit and for single numbers.
    """
    return np.matmul(_at_least_double(x), _at_least_double(y))


def _at_least_double(x: Numbers) -> Numbers:
    # numpy's integer products wrap around in silence, and skip BLAS.
    return x.astype(np.result_type(x.dtype, np.float64), copy=False)


@kernel
def norm(
    x: Floats,
    ord: float | Literal["fro", "nuc", "inf", "-inf"] | None = None,  # noqa: A002 - numpy's name for it
    axis: int | None = None,
) -> Any:
    """The 2-norm of all elements, or another by `ord`, of vectors along one axis where given.

    `ord` is a number, "inf" or "-inf", or for matrices "fro" and "nuc", as in ``numpy.linalg.norm``. Scaled, so
    that the 2-norm of large and tiny numbers neither overflows nor vanishes.
    """
    if ord is not None or axis is not None:
        return np.linalg.norm(x, float(ord) if ord in ("inf", "-inf") else ord, axis=axis)  # type: ignore[arg-type]
    largest = float(np.max(np.abs(x), initial=0.0))
    if largest == 0.0 or not np.isfinite(largest):
        return largest
    return largest * float(np.linalg.norm(x / largest))


@kernel
def solve(a: Matrix, b: Floats) -> Any:
    """The `x` of ``a @ x = b``: `a` square, `b` a vector or a matrix of right-hand sides.

    Raises LinAlgError if `a` is singular, exactly or to double precision.
    """
    if a.shape[0] != a.shape[1] or b.ndim not in (1, 2) or len(b) != len(a):
        raise ValueError(f"expected a square `a` and as many rows in `b`, got {list(a.shape)} and {list(b.shape)}")
    x = np.linalg.solve(a, b)
    if a.size and np.linalg.cond(a, 1) > 1 / np.finfo(np.float64).eps:
        raise np.linalg.LinAlgError("the matrix is singular to double precision; lstsq finds a least-squares solution")
    return x


@kernel
def lstsq(a: Matrix, b: Floats) -> dict[str, Any]:
    """The `x` of least norm that minimises ``|a @ x - b|``: solution, residuals, rank, singular_values.

    By singular values, those below eps * max(shape) times the largest count as zero. `residuals` is the sum
    of squares for each column of `b`.
    """
    x, _, rank, singular_values = np.linalg.lstsq(a, b, rcond=None)
    residuals = np.sum((b - a @ x) ** 2, axis=0)
    return {"solution": x, "residuals": residuals, "rank": int(rank), "singular_values": singular_values}


@kernel
def ridge(X: Matrix, y: Floats, alpha: NotNegative = 1.0, intercept: bool = True) -> dict[str, Any]:
    """Ridge regression: ``{"coef": w, "intercept": b}`` minimising ``|X @ w + b - y|^2 + alpha * |w|^2``.

    `y` is a vector, or a matrix of one target a column; the intercept is not penalised. By QR of the matrix
    with sqrt(alpha) below it (Golub 1965), which does not square its condition. Raises LinAlgError when
    `alpha` is 0 and columns depend on each other, ValueError for other lengths.
    """
    if y.ndim not in (1, 2) or len(X) != len(y) or len(X) == 0:
        raise ValueError(f"expected one target a row, got {len(X)} rows and targets of shape {list(y.shape)}")
    columns = X.shape[1]
    x_mean, y_mean = (X.mean(axis=0), y.mean(axis=0)) if intercept else (np.zeros(columns), np.zeros(y.shape[1:]))
    stacked = np.vstack([X - x_mean, np.sqrt(alpha) * np.eye(columns)])
    targets = np.concatenate([y - y_mean, np.zeros((columns, *y.shape[1:]))])
    q, r = np.linalg.qr(stacked)
    pivots = np.abs(np.diagonal(r))
    if columns and pivots.min() <= pivots.max() * max(X.shape) * np.finfo(np.float64).eps:
        raise np.linalg.LinAlgError("columns of X depend on each other; use alpha > 0, or lstsq")
    coef = np.linalg.solve(r, q.T @ targets)
    return {"coef": coef, "intercept": y_mean - x_mean @ coef}


@kernel
def svd(a: Matrix, k: Count | None = None) -> dict[str, Any]:
    """Singular values and vectors, ``a = u @ diag(s) @ vt``: the `k` largest, or all min(shape) of them.

    Signs are fixed so that the largest entry of each row of `vt` is positive. Raises LinAlgError for NaN.
    """
    u, s, vt = np.linalg.svd(a, full_matrices=False)
    signs = _signs(vt)
    return {"u": (u * signs)[:, :k], "s": s[:k], "vt": (vt * signs[:, None])[:k]}


def _signs(rows: Matrix) -> Vector:
    if rows.size == 0:
        return np.ones(len(rows))
    largest = np.take_along_axis(rows, np.abs(rows).argmax(axis=1)[:, None], axis=1)[:, 0]
    return np.where(largest < 0, -1.0, 1.0)


@kernel
def pca(X: Matrix, k: Count | None = None) -> dict[str, Any]:
    """Principal components of the rows of `X`: components, explained_variance, its ratio, singular_values, mean.

    By the singular values of the centred matrix. Components are rows, the most important first, their largest
    entry positive. Raises ValueError below 2 rows.
    """
    if len(X) < 2:
        raise ValueError(f"expected at least 2 rows, got {len(X)}")
    average = X.mean(axis=0)
    _, s, vt = np.linalg.svd(X - average, full_matrices=False)
    variance = s**2 / (len(X) - 1)
    total = variance.sum()
    return {
        "components": (vt * _signs(vt)[:, None])[:k],
        "explained_variance": variance[:k],
        "explained_variance_ratio": (variance / total if total > 0 else np.zeros_like(variance))[:k],
        "singular_values": s[:k],
        "mean": average,
    }


@kernel
def eigh(a: Matrix, k: Count | None = None) -> dict[str, Any]:
    """Eigenvalues and eigenvectors of a symmetric matrix: ``{"values": [...], "vectors": [[...]]}``.

    In descending order, the `k` largest or all; vectors are columns, their largest entry positive. Raises
    ValueError if `a` is not symmetric to 1e-10 of its largest entry.
    """
    if a.shape[0] != a.shape[1]:
        raise ValueError(f"expected a square matrix, got shape {list(a.shape)}")
    scale = float(np.max(np.abs(a), initial=0.0))
    if not np.allclose(a, a.T, rtol=0, atol=1e-10 * scale):
        raise ValueError("expected a symmetric matrix; numpy.linalg.eig takes others")
    values, vectors = np.linalg.eigh(a)
    vectors = vectors[:, ::-1] * _signs(np.ascontiguousarray(vectors[:, ::-1].T))
    return {"values": values[::-1][:k], "vectors": vectors[:, :k]}
