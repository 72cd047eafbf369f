"""Newton's method with the exact Hessian of all rows: few rounds, each of which moves size^2 / 2 numbers.

A full step first; where F does not fall, half of it, and each trial is a round. With l1 the step minimises the
quadratic model plus l1 by coordinate descent (proximal Newton; Lee, Sun and Saunders, SIAM J. Optim. 24(3), 2014).
Without a penalty the Hessian also shows whether there is one minimum at all: collinear columns have no curvature in
some direction, separable classes lose it on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from zkd.errors import NoOptimum
from zkd.models.lbfgs import End, between
from zkd.models.model import Matrix, Model, Vector
from zkd.models.objective import Penalty, Point, is_lower
from zkd.models.partials import Wants

TRIALS_MAX = 40
FLAT = 1e-12  # of the largest curvature a parameter, in units where each parameter's own is 1
PIVOT = 1e-9  # what is left of a column, squared, when what those before it say was taken off
FADED = 1e-7  # of a direction's first curvature: a step of Newton on separable classes leaves 1/e
SWEEPS_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Newton:
    model: Model
    penalty: Penalty
    at: Vector  # where it wants F, its gradient and its Hessian
    names: tuple[str, ...] = ()  # of features, for messages
    weight: float = 1.0  # of all training rows
    current: Point | None = None
    direction: Vector | None = None
    step: float = 1.0
    trials: int = 0
    first_hessian: Matrix | None = None
    is_accepted: bool = False  # whether the last point became the current one
    error: float | None = None  # estimate of |w - w*| beside |w|, see `_error`
    stopped: str = ""

    @property
    def wants(self) -> Wants:
        return "hessian"

    def told(self, point: Point) -> Newton:
        """Raises `NoOptimum` where the Hessian shows that nothing holds the parameters in some direction."""
        if self.current is not None and not self._is_acceptable(point):
            if self.trials >= TRIALS_MAX:
                return replace(self, is_accepted=False, stopped="precision")
            assert self.direction is not None
            step = self._shorter(point)
            at = self.current.w + step * self.direction
            return replace(self, at=at, step=step, trials=self.trials + 1, is_accepted=False)
        assert point.hessian is not None
        if not np.isfinite(point.total):
            return replace(self, is_accepted=False, stopped="diverged")
        first = self.first_hessian
        if self.penalty.l2 == 0.0 and self.penalty.l1 == 0.0:
            first = point.hessian if first is None else first
            refuse_flat(self.model, point.hessian, first, self.names)
        direction = _direction(self.model, self.penalty, point)
        error = self._error(point, direction, point.hessian if first is None else first)
        return replace(
            self,
            at=point.w + direction,
            current=replace(point, hessian=None),  # a checkpoint need not carry it
            direction=direction,
            step=1.0,
            trials=0,
            first_hessian=first,
            is_accepted=True,
            error=error,
        )

    def _shorter(self, point: Point) -> float:
        """Where the cubic through both ends of a step that went too far has its minimum; half way with l1."""
        assert self.current is not None
        assert self.direction is not None
        if self.penalty.l1 > 0 or not np.isfinite(point.total):
            return 0.5 * self.step
        with np.errstate(invalid="ignore", over="ignore"):
            ends = [
                End(step, at.total, float(at.gradient @ self.direction))
                for step, at in ((0.0, self.current), (self.step, point))
            ]
        return between(*ends)

    def _error(self, point: Point, direction: Vector, hessian: Matrix) -> float:
        """The next full step beside the parameters, as they are, and as they move scores: whichever is larger.

        What large features move is small in their own units, and would seem to be at the optimum from the start.
        """
        moves = np.sqrt(np.diag(hessian).clip(min=0.0) / self.weight)
        return max(
            float(np.linalg.norm(step) / max(1.0, float(np.linalg.norm(w))))
            for step, w in ((direction, point.w), (moves * direction, moves * point.w))
        )

    def _is_acceptable(self, point: Point) -> bool:
        assert self.current is not None
        if not (np.isfinite(point.total) and np.all(np.isfinite(point.gradient))):
            return False
        return is_lower(point.total, self.current.total)


def lifted(model: Model, hessian: Matrix, *, is_penalised: bool, first: Matrix | None = None) -> Matrix:
    """The Hessian with some curvature where the loss has none by construction, so that it can be inverted.

    There are shifts of all classes of a softmax, and columns of zeros: a gradient has no part there, so no step has.
    With `first`, columns that had curvature there are not lifted: theirs was lost on the way.
    """
    idle = model.idle_directions(is_penalised=is_penalised)
    empty = np.diag(hessian if first is None else first) == 0.0
    own = np.square(idle) @ np.diag(hessian)  # the mean curvature of a feature's weights
    hessian = hessian + (idle * np.where(own > 0, own, 1.0)[:, None]).T @ idle
    held: Matrix = hessian + np.diag(np.where(empty, 1.0, 0.0))
    return held


def refuse_flat(model: Model, hessian: Matrix, first: Matrix, names: Sequence[str] = ()) -> None:
    """Raises `NoOptimum` where an unpenalised problem has no single minimum. `first` is the Hessian at the start."""
    start = lifted(model, first, is_penalised=False)
    root = np.sqrt(np.diag(start))
    values, vectors = np.linalg.eigh(start / np.outer(root, root))
    if values[0] < FLAT * len(values):
        raise NoOptimum(
            f"columns are collinear: {_dependent(model, first, names)}, so their weights cannot be told apart. "
            "Leave one of them out, set l2 > 0, or, where means are large beside spreads, standardise"
        )
    if first is hessian or model.kind == "linear":
        return
    whitened = vectors / np.sqrt(values) / root[:, None]
    now = lifted(model, hessian, is_penalised=False, first=first)
    left, ways = np.linalg.eigh(whitened.T @ now @ whitened)
    if left[0] >= FADED:
        return
    those = _named(model, root * (whitened @ ways[:, 0]), names)
    if model.kind == "poisson":
        what = f"all counts are 0 on one side of {those}: the loss goes on falling as those weights grow, and there is"
    elif model.kind == "svm":
        what = f"no row is within the margin that would hold {those}: many weights do equally well, and there is"
    else:
        what = f"classes are separable by {those}: the loss goes on falling as those weights grow, and there is"
    raise NoOptimum(f"{what} no optimum. Set l2 > 0")


def _named(model: Model, direction: Vector, names: Sequence[str]) -> str:
    """The features that matter in a direction, the intercept among them."""
    rows = np.abs(direction.reshape(model.shapes[0])).max(axis=1)
    large = [index for index in np.argsort(-rows).tolist() if rows[index] > 0.05 * rows.max()][:6]
    known = [*(names or [f"feature {index}" for index in range(model.features)]), "the intercept"]
    return ", ".join(known[index] for index in sorted(large))


def _dependent(model: Model, hessian: Matrix, names: Sequence[str]) -> str:
    """The first column that those before it make up, the intercept being before all, and which of them do."""
    gram = hessian[:: model.outputs, :: model.outputs]  # of one class: weighted products of columns
    order = [*range(model.features, len(gram)), *range(model.features)]
    root = np.sqrt(np.where(np.diag(gram) > 0, np.diag(gram), 1.0))
    scaled = (gram / np.outer(root, root))[np.ix_(order, order)]
    lower = np.zeros_like(scaled)
    kept: list[int] = []
    for at in range(len(scaled)):
        if scaled[at, at] == 0.0:  # a constant column is nobody's sum
            continue
        size = len(kept)
        row = np.linalg.solve(lower[:size, :size], scaled[kept, at])
        rest = scaled[at, at] - row @ row
        if rest < PIVOT:
            shares = np.zeros(len(scaled))
            shares[kept] = np.linalg.solve(lower[:size, :size].T, row)
            shares[at] = 1.0
            direction = np.zeros(model.size)
            direction[:: model.outputs][order] = shares
            return f"{_named(model, direction, names)} make up one another"
        lower[size, :size], lower[size, size] = row, np.sqrt(rest)
        kept.append(at)
    return "none of them alone, but many together nearly make up one another"


def _direction(model: Model, penalty: Penalty, point: Point) -> Vector:
    assert point.hessian is not None
    hessian = lifted(model, point.hessian, is_penalised=penalty.l2 > 0 or penalty.l1 > 0)
    if penalty.l1 > 0:
        return _with_l1(hessian, point, penalty.l1, model.penalised())
    direction: Vector = -solved(hessian, point.gradient)
    return direction


def solved(hessian: Matrix, right: Matrix) -> Matrix:
    """``H^-1 right`` by Cholesky in units where each parameter's own curvature is 1.

    Raises `NoOptimum` where H is not positive definite.
    """
    root = np.sqrt(np.diag(hessian))
    try:
        lower = np.linalg.cholesky(hessian / np.outer(root, root))
    except np.linalg.LinAlgError:
        raise NoOptimum(
            "the Hessian is singular to machine precision; standardise, or set l2 > 0, or a larger one"
        ) from None
    half = np.linalg.solve(lower, (right.T / root).T)
    x: Matrix = (np.linalg.solve(lower.T, half).T / root).T
    return x


def _with_l1(hessian: Matrix, point: Point, l1: float, mask: np.ndarray) -> Vector:
    """Minimises ``g'd + d'Hd/2 + l1 |w + d|_1`` by coordinate descent, first over all, then over what is not 0."""
    d = np.zeros_like(point.w)
    slope = point.gradient.copy()  # g + H d
    diagonal = np.diag(hessian)
    shrink = np.where(mask, l1, 0.0)
    tolerance = 1e-12 * max(1.0, float(np.abs(point.w).max()))
    active = np.arange(len(d))
    for _ in range(SWEEPS_MAX):
        largest = 0.0
        for j in active.tolist():
            now = point.w[j] + d[j]
            free = now - slope[j] / diagonal[j]
            new = np.sign(free) * max(abs(free) - shrink[j] / diagonal[j], 0.0)
            move = new - now
            if move != 0.0:
                d[j] += move
                slope += move * hessian[j]
                largest = max(largest, abs(move))
        is_whole = len(active) == len(d)
        if largest <= tolerance and is_whole:
            break
        done = largest <= tolerance
        active = np.arange(len(d)) if done else np.flatnonzero((point.w + d != 0.0) | ~mask)
    return d
