"""What is told of a run: what it starts from, each round, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass

from zkd.models.model import TargetMean, Vector


@dataclass(frozen=True, slots=True)
class Counts:
    """What is known of the training rows before round one (`survey`). `rows` and `weight` are of training rows."""

    rows: int
    weight: float
    target: TargetMean
    names: tuple[str, ...] = ()  # of features, for messages
    held_rows: int = 0


@dataclass(frozen=True, slots=True)
class Round:
    """One round over all rows. `total` is F, `loss` and `held_loss` are means a unit of weight; `held_loss` may be NaN.

    `is_accepted` is False for a trial of a line search that was not taken.
    """

    number: int
    stage: int
    total: float
    slope: float
    loss: float
    held_loss: float
    is_accepted: bool


@dataclass(frozen=True, slots=True)
class Best:
    held_loss: float
    w: Vector
    round: int


@dataclass(frozen=True, slots=True)
class Stage:
    """The end of one penalty of a path. `is_restored`: an earlier round was better on held-out rows, and is kept."""

    l2: float
    w: Vector
    total: float
    slope: float
    loss: float
    held_loss: float
    bound: float | None
    reason: str
    rounds: int
    is_restored: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run. `bound` is of |v - v*|, the weights without intercepts, in standardised units.

    `is_approximate` says that the parameters are not meant to be those of the optimum: means of local ones, noised,
    stopped early, or a net's.
    """

    w: Vector
    l2: float
    total: float
    slope: float
    loss: float
    held_loss: float
    bound: float | None
    reason: str
    rounds: int
    is_approximate: bool
    epsilon: float | None
    notes: tuple[str, ...]
    stages: tuple[Stage, ...]
