"""The true optimum of a convex problem, by code that shares nothing with zkd's: scikit-learn's answer, then polished.

Scikit-learn stops where floats of 64 bits let it. So Newton's steps go on from there with gradients in long double (64
bits of mantissa on x86), until a step is below 1e-15: such an optimum is exact to the last digits of a float64, and
says of both how far they are off. Rows are standardised here, in long double, too.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
from scipy import linalg
from scipy.sparse.linalg import LinearOperator, cg
from sklearn.linear_model import LinearRegression, LogisticRegression, PoissonRegressor, Ridge

Array = np.ndarray[Any, np.dtype[Any]]
Long = np.longdouble

BLOCK = 4096
STEPS_MAX = 60
DENSE_MAX = 1100  # parameters; beyond, steps are found by conjugate gradients


class Optimum(NamedTuple):
    """`w` is (features + 1, outputs), the intercepts last, in standardised units; `total` is F there.

    `sklearn` is the largest difference of scikit-learn's parameters from `w`, None where it has no such model.
    `slope` is the norm of the gradient at `w`: divided by l2 it bounds how far the weights are off.
    """

    w: Array
    total: float
    sklearn: float | None
    slope: float


class Problem:
    """F, its gradient in long double and its Hessian in float64, over standardised rows."""

    def __init__(self, kind: str, x: Array, y: Array, l2: float) -> None:
        self.kind, self.l2, self.rows = kind, Long(l2), x
        mean = np.zeros(x.shape[1], Long)
        for block in self._blocks():
            mean += block.sum(axis=0)
        self.mean = mean / len(x)
        square = np.zeros(x.shape[1], Long)
        for block in self._blocks():
            square += np.square(block - self.mean).sum(axis=0)
        deviation = np.sqrt(square / len(x))
        largest = np.abs(x).max(axis=0)
        self.scale = np.where(deviation > 1e-13 * largest, deviation, Long(1.0))
        self.classes = np.unique(y) if kind in ("logistic", "softmax", "svm") else None
        self.y = y.astype(Long) if self.classes is None else np.searchsorted(self.classes, y)
        self.outputs = len(self.classes) if kind == "softmax" and self.classes is not None else 1
        self.features = x.shape[1]

    def _blocks(self) -> Any:
        return (self.rows[start : start + BLOCK].astype(Long) for start in range(0, len(self.rows), BLOCK))

    def standardised(self) -> Array:
        return np.concatenate([((block - self.mean) / self.scale).astype(np.float64) for block in self._blocks()])

    def pieces(self) -> Any:
        for number, block in enumerate(self._blocks()):
            x = np.ones((len(block), self.features + 1), Long)
            x[:, :-1] = (block - self.mean) / self.scale
            yield x, self.y[number * BLOCK : number * BLOCK + len(block)]

    def told(self, w: Array, *, curved: bool) -> tuple[Long, Array, Array | None, list[Array]]:
        """F, gradient, Hessian and, instead of it, the roots of curvatures that products with it are made of."""
        v = w.copy()
        v[-1] = 0
        total, gradient = self.l2 / 2 * (v * v).sum(), self.l2 * v
        size = w.size
        hessian = np.diag(np.asarray(self.l2 * np.ones_like(v), np.float64).ravel()) if curved else None
        if hessian is not None:
            hessian[size - self.outputs :, size - self.outputs :] = 0.0
        kept: list[Array] = []
        for x, y in self.pieces():
            losses, slopes, bends = _of_rows(self.kind, x @ w, y)
            total += losses.sum()
            gradient += x.T @ slopes
            x64, b64 = x.astype(np.float64), bends.astype(np.float64)
            if hessian is not None:
                hessian += _hessian(self.kind, x64, b64)
            else:
                kept += [x64, b64]
        return total, gradient, hessian, kept


def optimum(kind: str, x: Array, y: Array, l2: float = 1.0) -> Optimum:
    """Raises AssertionError if the polished point is no optimum after all."""
    problem = Problem(kind, x, y, l2)
    start = _sklearn(problem, l2)
    w = np.zeros((problem.features + 1, problem.outputs), Long) if start is None else start.astype(Long)
    is_dense = w.size <= DENSE_MAX
    total, gradient, hessian, kept = problem.told(w, curved=is_dense)
    for _ in range(STEPS_MAX):
        step = _step(problem, gradient, hessian, kept)
        length = Long(1.0)
        while True:
            trial = w + length * step
            seen = problem.told(trial, curved=is_dense)
            # Near the optimum F is flat to its last digit, and the gradient says more.
            if seen[0] <= total + Long(1e-17) * abs(total) or length < 1e-9:
                break
            length /= 2
        is_better = np.linalg.norm(seen[1].astype(float)) < np.linalg.norm(gradient.astype(float)) or seen[0] < total
        if not is_better:
            break
        w, (total, gradient, hessian, kept) = trial, seen
        if float(np.abs(step).max()) < 1e-16 * max(1.0, float(np.abs(w).max())):
            break
    if kind == "softmax":
        w[-1] -= w[-1].mean()
    slope = float(np.linalg.norm(gradient.astype(np.float64)))
    last = float(np.abs(_step(problem, gradient, hessian, kept)).max())
    assert last < 1e-11 * max(1.0, float(np.abs(w).max())), f"{kind}: the next step would be {last:g}"
    off = None if start is None else float(np.abs(start - w).max())
    return Optimum(w.astype(np.float64), float(total), off, slope)


def value(kind: str, x: Array, y: Array, l2: float, w: Array) -> float:
    """F at `w`, in long double."""
    return float(Problem(kind, x, y, l2).told(w.astype(Long), curved=False)[0])


def _of_rows(kind: str, z: Array, y: Array) -> tuple[Array, Array, Array]:
    """Loss, slope and curvature in the scores (n, K); for softmax the curvature is the probabilities."""
    if kind == "softmax":
        here = np.arange(len(z))
        top = z.max(axis=1, keepdims=True)
        powers = np.exp(z - top)
        total = powers.sum(axis=1, keepdims=True)
        p = powers / total
        slope = p.copy()
        slope[here, y] -= 1
        return np.log(total[:, 0]) + top[:, 0] - z[here, y], slope, p
    target = np.asarray(y, Long)[:, None]
    if kind == "linear":
        return (z - target) ** 2 / 2, z - target, np.ones_like(z)
    if kind == "poisson":
        mean = np.exp(z)
        return mean - target * z, mean - target, mean
    sign = 2 * target - 1
    if kind == "svm":
        short = np.maximum(1 - sign * z, 0)
        return short * short, -2 * sign * short, np.where(short > 0, Long(2), Long(0))
    m = -sign * z
    small = np.exp(-np.abs(m))
    wrong = np.where(m >= 0, 1, small) / (1 + small)
    return np.maximum(m, 0) + np.log1p(small), -sign * wrong, small / (1 + small) ** 2


def _hessian(kind: str, x: Array, bends: Array) -> Array:
    if kind != "softmax":
        told: Array = x.T @ (x * bends)
        return told
    classes = bends.shape[1]
    whole = np.zeros((x.shape[1], classes, x.shape[1], classes))
    for one in range(classes):
        for other in range(classes):
            weight = -bends[:, one] * bends[:, other] + (bends[:, one] if one == other else 0.0)
            whole[:, one, :, other] = x.T @ (x * weight[:, None])
    return whole.reshape(x.shape[1] * classes, -1)


def _step(problem: Problem, gradient: Array, hessian: Array | None, kept: list[Array]) -> Array:
    right = -gradient.astype(np.float64).ravel()
    if hessian is not None:
        if problem.kind == "softmax":  # the same shift of all intercepts changes nothing
            idle = np.zeros(gradient.shape)
            idle[-1] = problem.outputs**-0.5
            hessian = hessian + np.diag(hessian).mean() * np.outer(idle, idle)
        told: Array = linalg.solve(hessian, right, assume_a="pos").reshape(gradient.shape)
        return told

    def product(vector: Array) -> Array:
        v = vector.reshape(gradient.shape)
        out = float(problem.l2) * v
        out[-1] = 0.0
        for x, bends in zip(kept[::2], kept[1::2], strict=True):
            z = x @ v
            z = bends * (z - (bends * z).sum(axis=1, keepdims=True)) if problem.kind == "softmax" else bends * z
            out = out + x.T @ z
        if problem.kind == "softmax":  # as above
            out[-1] += len(problem.rows) * v[-1].mean()
        return np.asarray(out.ravel())

    size = right.size
    solution, _ = cg(LinearOperator((size, size), matvec=product), right, rtol=1e-12, maxiter=5000)
    answer: Array = solution.reshape(gradient.shape)
    return answer


def _sklearn(problem: Problem, l2: float) -> Array | None:
    x, kind = problem.standardised(), problem.kind
    y = np.asarray(problem.y, np.float64) if problem.classes is None else problem.classes[problem.y]
    if kind == "svm":
        return None  # its LinearSVC has a penalty on the intercept
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of steps that get nowhere any more
        if kind == "linear":
            model = LinearRegression() if l2 == 0 else Ridge(alpha=l2, solver="cholesky", tol=1e-12)
        elif kind == "poisson":
            model = PoissonRegressor(alpha=l2 / len(x), solver="newton-cholesky", tol=1e-12, max_iter=1000)
        else:
            size = (problem.features + 1) * problem.outputs
            solver = "newton-cholesky" if size <= DENSE_MAX else "lbfgs"
            inverse = np.inf if l2 == 0 else 1.0 / l2
            model = LogisticRegression(C=inverse, solver=solver, tol=1e-12, max_iter=5000)
        model.fit(x, y)
    w = np.vstack([np.atleast_2d(model.coef_).T, np.atleast_1d(model.intercept_)[None, :]])
    if kind == "softmax":
        w = w - np.vstack([w[:-1].mean(axis=1, keepdims=True), w[-1:].mean(axis=1, keepdims=True)])
    return w
