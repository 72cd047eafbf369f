"""L-BFGS: Newton's direction from the last 60 steps and what they did to the gradient; a round moves one vector.

The two-loop recursion of Nocedal and Wright, "Numerical Optimization" (2006), algorithm 7.4. The line search accepts
by the approximate Wolfe conditions of Hager and Zhang (SIAM J. Optim. 16(1), 2005), which compare slopes where losses
differ by less than their rounding; each of its trials is a round.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from zkd.models.model import Vector
from zkd.models.objective import NOISE, Point
from zkd.models.partials import Wants

# Steps that are remembered; fewer of more parameters, since checkpoints carry them. 60 reached the optimum of 7,850
# parameters of digits in 821 rounds, where 20 took 1,111.
MEMORY, MEMORY_OF_MANY, MANY = 60, 20, 1 << 14
TRIALS_MAX = 30
DELTA, SIGMA = 0.1, 0.9  # how much F has to fall, how much of the slope may be left
EXPAND, EXPAND_MAX = 4.0, 1e10


@dataclass(frozen=True, slots=True)
class End:
    """One end of the interval in which a step is searched: how far along, F and its slope along the direction."""

    step: float
    total: float
    slope: float


@dataclass(frozen=True, slots=True)
class Lbfgs:
    at: Vector
    current: Point | None = None
    moves: tuple[Vector, ...] = ()  # w_new - w_old, oldest first
    changes: tuple[Vector, ...] = ()  # gradient_new - gradient_old
    direction: Vector | None = None
    step: float = 1.0
    low: End | None = None
    high: End | None = None
    trials: int = 0
    is_accepted: bool = False
    stopped: str = ""

    @property
    def wants(self) -> Wants:
        return "gradient"

    @property
    def error(self) -> float | None:
        return None

    def told(self, point: Point) -> Lbfgs:
        if self.current is None:
            if not np.isfinite(point.total):
                return replace(self, stopped="diverged")
            return self._turned(point)
        assert self.direction is not None
        assert self.low is not None
        with np.errstate(invalid="ignore"):
            end = End(self.step, point.total, float(point.gradient @ self.direction))
        start = float(self.current.gradient @ self.direction)
        if self._is_good(end, start):
            move, change = point.w - self.current.w, point.gradient - self.current.gradient
            moves, changes = self.moves, self.changes
            if float(move @ change) > 1e-16 * float(change @ change):
                memory = MEMORY if len(move) <= MANY else MEMORY_OF_MANY
                moves, changes = (*moves, move)[-memory:], (*changes, change)[-memory:]
            return replace(self, moves=moves, changes=changes)._turned(point)
        if self.trials >= TRIALS_MAX:
            if not self.moves:
                return replace(self, is_accepted=False, stopped="precision")
            return replace(self, moves=(), changes=())._turned(self.current, is_accepted=False)
        return self._narrowed(end)

    def _turned(self, point: Point, *, is_accepted: bool = True) -> Lbfgs:
        """A new direction from a new current point."""
        direction = _direction(point.gradient, self.moves, self.changes)
        slope = float(point.gradient @ direction)
        if slope >= 0.0:
            stopped = "tolerance" if slope == 0.0 else "precision"
            return replace(self, current=point, is_accepted=is_accepted, stopped=stopped)
        norm = float(np.linalg.norm(point.gradient))
        step = 1.0 if self.moves else min(1.0, 1.0 / norm)
        return replace(
            self,
            at=point.w + step * direction,
            current=point,
            direction=direction,
            step=step,
            low=End(0.0, point.total, slope),
            high=None,
            trials=0,
            is_accepted=is_accepted,
        )

    def _is_good(self, end: End, start: float) -> bool:
        assert self.current is not None
        if not np.isfinite(end.total) or not np.isfinite(end.slope) or end.slope < SIGMA * start:
            return False
        before = self.current.total
        falls = end.total <= before + DELTA * end.step * start
        nearly = end.total <= before + NOISE * abs(before) and end.slope <= (2 * DELTA - 1) * start
        return falls or nearly

    def _narrowed(self, end: End) -> Lbfgs:
        """The next trial, after one that was too short or too long."""
        assert self.current is not None
        assert self.low is not None
        assert self.direction is not None
        low, high = self.low, self.high
        ceiling = self.current.total + NOISE * abs(self.current.total)
        if not np.isfinite(end.total) or not np.isfinite(end.slope) or end.total > ceiling or end.slope >= 0.0:
            high = end
        else:
            low = end
        step = min(low.step * EXPAND, EXPAND_MAX) if high is None else between(low, high)
        at = self.current.w + step * self.direction
        return replace(self, at=at, step=step, low=low, high=high, trials=self.trials + 1, is_accepted=False)


def between(low: End, high: End) -> float:
    """Where the cubic through both ends has its minimum, kept off the ends; half way where it says nothing."""
    width = high.step - low.step
    guess = low.step + 0.5 * width
    if np.isfinite(high.total) and np.isfinite(high.slope):
        d1 = low.slope + high.slope - 3.0 * (high.total - low.total) / width
        square = d1 * d1 - low.slope * high.slope
        if square >= 0.0:
            d2 = float(np.sqrt(square))
            below = high.slope - low.slope + 2.0 * d2
            if below != 0.0:
                guess = high.step - width * (high.slope + d2 - d1) / below
        elif high.slope > low.slope:
            guess = low.step - low.slope * width / (high.slope - low.slope)
    else:
        guess = low.step + 0.1 * width
    return min(max(guess, low.step + 0.05 * width), high.step - 0.05 * width)


def _direction(gradient: Vector, moves: tuple[Vector, ...], changes: tuple[Vector, ...]) -> Vector:
    """``-H gradient`` by the two-loop recursion."""
    q = -gradient
    if not moves:
        return q
    weights = []
    for s, y in zip(reversed(moves), reversed(changes), strict=True):
        rho = 1.0 / float(s @ y)
        alpha = rho * float(s @ q)
        weights.append((rho, alpha))
        q = q - alpha * y
    s, y = moves[-1], changes[-1]
    q = q * (float(s @ y) / float(y @ y))
    for (rho, alpha), s, y in zip(reversed(weights), moves, changes, strict=True):
        q = q + s * (alpha - rho * float(y @ q))
    return q
