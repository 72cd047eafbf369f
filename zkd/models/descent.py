"""Plain gradient descent, with momentum, and Nesterov's, all with l1 by a proximal step.

The length of a step is found on the way: a step of 1/L must lower the smooth part at least as a parabola of curvature
L would; where a round shows that it did not, L was too small, and the step is taken again with the curvature that was
seen. That costs the round, and no other rounds are spent on it.

    gd         w - t g
    momentum   w - t g + 0.9 (w - w_before), forgotten when F rises
    nesterov   FISTA (Beck and Teboulle, SIAM J. Imaging Sci. 2(1), 2009) with adaptive restart by the gradient
               (O'Donoghue and Candes, Found. Comput. Math. 15, 2015)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from zkd.models.model import Model, Vector
from zkd.models.objective import NOISE, Penalty, Point, is_lower, shrunk
from zkd.models.partials import Wants

Style: TypeAlias = Literal["gd", "momentum", "nesterov"]

MOMENTUM = 0.9
GROWTH = 1.02  # of a step that was not too long; L may be smaller here than where it was found
GROWTH_FIRST = 2.0  # until the first that was
TRIALS_MAX = 60


@dataclass(frozen=True, slots=True)
class Descent:
    model: Model
    penalty: Penalty
    style: Style
    at: Vector
    current: Point | None = None
    landed: Vector | None = None  # where the last step proper ended; nesterov looks ahead of it
    before: Vector | None = None  # where the one before ended
    step: float = 0.0
    theta: float = 1.0
    is_step_known: bool = False
    trials: int = 0
    is_accepted: bool = False
    stopped: str = ""

    @property
    def wants(self) -> Wants:
        return "gradient"

    @property
    def error(self) -> float | None:
        return None

    def told(self, point: Point) -> Descent:
        if self.current is None:
            if not np.isfinite(point.total):
                return replace(self, stopped="diverged")
            step = 1.0 / max(float(np.linalg.norm(point.gradient)), 1e-300)
            return replace(self, landed=point.w, before=point.w, step=step)._stepped(point)
        seen = self._curvature(point)
        if seen * self.step > 1.0:
            if self.trials >= TRIALS_MAX:
                return replace(self, is_accepted=False, stopped="precision")
            step = 0.9 / seen if np.isfinite(seen) else 0.1 * self.step
            again = replace(self, step=step, is_step_known=True, trials=self.trials + 1, theta=1.0)
            return replace(again, landed=self.before)._stepped(self.current, is_accepted=False)
        growth = GROWTH if self.is_step_known else GROWTH_FIRST
        state = replace(self, step=self.step * growth, trials=0)
        if self.style == "momentum" and not is_lower(point.total, self.current.total):
            state = replace(state, before=state.landed)  # forget where it came from
        return state._stepped(point)

    def _curvature(self, point: Point) -> float:
        """The curvature that F showed between the current point and this one; infinite where F is."""
        assert self.current is not None
        if not (np.isfinite(point.smooth) and np.all(np.isfinite(point.gradient))):
            return float(np.inf)
        move = point.w - self.current.w
        square = float(move @ move)
        if square == 0.0:
            return 0.0
        rise = point.smooth - self.current.smooth - float(self.current.gradient @ move)
        if abs(rise) > 100 * NOISE * abs(self.current.smooth):
            return 2.0 * rise / square
        return float((point.gradient - self.current.gradient) @ move) / square  # losses differ by noise alone

    def _stepped(self, point: Point, *, is_accepted: bool = True) -> Descent:
        """The next trial from a current point."""
        assert self.landed is not None
        mask = self.model.penalised()
        old = self.landed
        down = shrunk(point.w - self.step * point.gradient, self.step * self.penalty.l1, mask)
        theta, ahead = 1.0, 0.0
        if self.style == "nesterov":
            if float((point.w - down) @ (down - old)) <= 0.0:
                theta = 0.5 * (1.0 + float(np.sqrt(1.0 + 4.0 * self.theta**2)))
                ahead = (self.theta - 1.0) / theta
            at = down + ahead * (down - old)
        elif self.style == "momentum":
            assert self.before is not None
            at = down + MOMENTUM * (old - self.before) if is_accepted else down
            down = at
        else:
            at = down
        return replace(self, at=at, current=point, landed=down, before=old, theta=theta, is_accepted=is_accepted)
