"""L-BFGS: the client's half of the training. Each round asks for one loss and one gradient, whoever computes them.

Two-loop recursion: Nocedal and Wright, Numerical Optimization (2006), algorithm 7.4, with backtracking, which
suffices for a strictly convex loss: the curvature of every step is positive by itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Evaluate: TypeAlias = Callable[[Array], tuple[float, Array]]

MEMORY = 20
ENOUGH = 1e-4  # of the decrease that the slope promises (Armijo)
ROUNDING = 1e-13  # of the loss: near the optimum differences drown in it


@dataclass(frozen=True)
class Round:
    loss: float
    gradient_norm: float


@dataclass(frozen=True)
class Found:
    weights: Array
    rounds: list[Round]
    converged: bool


def minimise(evaluate: Evaluate, start: Array, *, tolerance: float, rounds_max: int) -> Found:
    """The weights where the norm of the gradient is at most `tolerance`, and the rounds that led there."""
    rounds: list[Round] = []

    def at(weights: Array) -> tuple[float, Array]:
        loss, gradient = evaluate(weights)
        rounds.append(Round(loss, float(np.linalg.norm(gradient))))
        return loss, gradient

    weights = start
    loss, gradient = at(weights)
    pairs: deque[tuple[Array, Array]] = deque(maxlen=MEMORY)
    while np.linalg.norm(gradient) > tolerance and len(rounds) < rounds_max:
        direction = -_curved(gradient, pairs)
        slope = float(np.vdot(gradient, direction))
        step = 1.0 if pairs else 1.0 / float(np.linalg.norm(gradient))
        while True:
            there = weights + step * direction
            new_loss, new_gradient = at(there)
            if new_loss <= loss + ENOUGH * step * slope + ROUNDING * abs(loss) or len(rounds) >= rounds_max:
                break
            step /= 2
        pairs.append((there - weights, new_gradient - gradient))
        weights, loss, gradient = there, new_loss, new_gradient
    return Found(weights, rounds, bool(np.linalg.norm(gradient) <= tolerance))


def _curved(gradient: Array, pairs: deque[tuple[Array, Array]]) -> Array:
    """The gradient times the inverse Hessian, as far as the last steps tell it."""
    direction = gradient.copy()
    shares = []
    for step, change in reversed(pairs):
        share = np.vdot(step, direction) / np.vdot(step, change)
        direction -= share * change
        shares.append(share)
    if pairs:
        step, change = pairs[-1]
        direction *= np.vdot(step, change) / np.vdot(change, change)
    for (step, change), share in zip(pairs, reversed(shares), strict=True):
        direction += (share - np.vdot(change, direction) / np.vdot(step, change)) * step
    return direction
