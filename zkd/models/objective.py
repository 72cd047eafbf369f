"""What is minimised: the sum of all rows' losses plus penalties, and how far from its minimum a point can be.

    F(w) = sum_i weight_i loss_i(w) + l2/2 |v|^2 + l1 |v|_1        v: the weights without the intercepts

So `l2` is 1/C of scikit-learn's LogisticRegression and alpha of its Ridge, in units of the standardised features
where features are standardised. Intercepts are never penalised.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from zkd.errors import BadTraining
from zkd.models.model import Matrix, Model, Vector
from zkd.models.partials import Totals


@dataclass(frozen=True, slots=True)
class Penalty:
    l2: float = 0.0
    l1: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("l2", self.l2), ("l1", self.l1)):
            if not (math.isfinite(value) and value >= 0):
                raise BadTraining(f"{name}: expected a finite number, 0 or more, got {value}")


@dataclass(frozen=True, slots=True)
class Point:
    """F at `w`. `smooth` is F without l1, `gradient` and `hessian` are those of `smooth`.

    `slope` is the norm of the shortest subgradient of F, which is the gradient where there is no l1.
    """

    w: Vector
    total: float
    smooth: float
    gradient: Vector
    slope: float
    hessian: Matrix | None = None


def point(model: Model, penalty: Penalty, w: Vector, totals: Totals) -> Point:
    """F at `w` from the sums over all training rows."""
    mask = model.penalised()
    v = np.where(mask, w, 0.0)
    smooth = totals.loss + 0.5 * penalty.l2 * float(v @ v)
    total = smooth + penalty.l1 * float(np.abs(v).sum())
    if totals.gradient.size == 0:
        return Point(w, total, smooth, totals.gradient, np.nan)
    gradient = totals.gradient + penalty.l2 * v
    hessian = totals.hessian
    if hessian is not None:
        hessian = hessian + np.diag(np.where(mask, penalty.l2, 0.0))
    slope = float(np.linalg.norm(subgradient(w, gradient, penalty.l1, mask)))
    return Point(w, total, smooth, gradient, slope, hessian)


def subgradient(w: Vector, gradient: Vector, l1: float, mask: np.ndarray) -> Vector:
    """The shortest subgradient of ``smooth + l1 |v|_1``."""
    if l1 == 0.0:
        return gradient
    at_zero = np.sign(gradient) * np.maximum(np.abs(gradient) - l1, 0.0)
    return np.where(mask, np.where(w == 0.0, at_zero, gradient + l1 * np.sign(w)), gradient)


def shrunk(w: Vector, by: float, mask: np.ndarray) -> Vector:
    """The proximal step of l1: weights moved towards 0 by `by`, and no further; intercepts stay."""
    return w if by == 0.0 else np.where(mask, np.sign(w) * np.maximum(np.abs(w) - by, 0.0), w)


def certificate(model: Model, penalty: Penalty, at: Point) -> float | None:
    """A bound of the distance |v - v*| of the weights from the optimum's, or None where there is none to give.

    With the free intercepts at their best for given weights, F is strongly convex in the weights, and |slope| / l2 is
    such a bound (of convex models, with l2 > 0). Where the Hessian is known, what the intercepts still lack is folded
    into the slope to first order. Where it is not, no slope bounds it: then twice |slope| / l2 is given, which is no
    proof; by itself |slope| / l2 was too small by up to 1.2 on real data (softmax on digits, on nesterov's way).
    """
    if not model.is_convex or penalty.l2 <= 0.0 or not np.isfinite(at.slope):
        return None
    if not model.intercept:
        return at.slope / penalty.l2
    if at.hessian is None or penalty.l1 > 0:
        return uncertain_bound(penalty, at.slope)
    free = ~model.penalised()
    moved = np.linalg.lstsq(at.hessian[np.ix_(free, free)], at.gradient[free], rcond=None)[0]
    return float(np.linalg.norm(at.gradient[~free] - at.hessian[np.ix_(~free, free)] @ moved)) / penalty.l2


def uncertain_bound(penalty: Penalty, slope: float) -> float:
    return 2.0 * slope / penalty.l2


def is_lower(new: float, old: float) -> bool:
    """Whether `new` is no worse than `old` beyond the noise of their sums."""
    return bool(new <= old + NOISE * abs(old))


NOISE = 1e-13  # relative error of a sum of losses; partials are summed pairwise by BLAS, then exactly
