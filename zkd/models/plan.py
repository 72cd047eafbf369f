"""What a training run was asked to do, checked as a whole before its first round."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal, TypeAlias

from zkd.errors import BadTraining
from zkd.models.model import Model
from zkd.models.objective import Penalty
from zkd.models.partials import HESSIAN_MAX
from zkd.models.stochastic import default_learning_rate

Optimizer: TypeAlias = Literal["newton", "lbfgs", "gd", "momentum", "nesterov", "sgd", "adam", "average"]

OPTIMIZERS: tuple[Optimizer, ...] = ("newton", "lbfgs", "gd", "momentum", "nesterov", "sgd", "adam", "average")
WITH_L1 = ("newton", "gd", "nesterov", "sgd")
EXTREME_NOISE = 1e12  # less than its inverse is none, and the accountant's squares end somewhere
EXTREME_CLIP = 1e100
STOCHASTIC = ("sgd", "adam", "average")
LOCAL_EPOCHS_MAX = 100  # in a round, which nothing interrupts on a part, and which others wait for


@dataclass(frozen=True, slots=True)
class Privacy:
    """Each row's gradient is clipped to `clip`; noise of standard deviation `noise` x `clip` is added a round.

    Rows are sampled at rate 1 / batches an epoch. The run ends before its epsilon at `delta` would exceed `epsilon`.
    """

    clip: float
    noise: float
    delta: float
    epsilon: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """All of a run's choices.

    `l2` may be several, largest first: a path with warm starts, of which the best by held-out loss is kept.
    `tol` bounds the distance of the weights from the optimum where one can be given (l2 > 0), see `training`.
    `max_rounds` is for each penalty of a path; without a penalty there may be one more, to see whether it was needed.
    `patience` is the number of rounds (of sgd, adam, average: epochs) without a better held-out loss.
    `jitter`, for unpenalised problems without a single optimum: the l2 a unit of weight to go on with, reported;
    None refuses. `learning_rate`, `epochs`, `batch_rows` and `seed` matter to sgd, adam and average alone.
    """

    model: Model
    optimizer: Optimizer = "lbfgs"
    l2: float | tuple[float, ...] = 1.0
    l1: float = 0.0
    tol: float = 1e-8
    max_rounds: int = 1000
    patience: int | None = None
    jitter: float | None = None
    learning_rate: float | None = None
    epochs: int = 60
    local_epochs: int = 1
    batch_rows: int = 128
    seed: int = 0
    privacy: Privacy | None = None

    def __post_init__(self) -> None:
        _check(self)

    @property
    def path(self) -> tuple[float, ...]:
        return (float(self.l2),) if isinstance(self.l2, int | float) else tuple(map(float, self.l2))

    def penalty(self, stage: int) -> Penalty:
        return _penalty(self.path[stage], self.l1)

    @property
    def rate(self) -> float:
        return default_learning_rate(self.model, self.optimizer) if self.learning_rate is None else self.learning_rate


_penalty = lru_cache(maxsize=64)(Penalty)  # asked for several times a round


def default_optimizer(model: Model) -> Optimizer:
    """Exact Newton where the Hessian is small, L-BFGS beyond, adam for nets."""
    if model.kind == "mlp":
        return "adam"
    return "newton" if model.size <= HESSIAN_MAX else "lbfgs"


def penalty_path(first: float, last: float, steps: int = 10) -> tuple[float, ...]:
    """`steps` penalties from `first` down to `last`, each the same fraction of the one before."""
    if not (first >= last > 0 and steps >= 1):
        raise BadTraining(f"path: expected first >= last > 0 and a step or more, got {first}, {last}, {steps}")
    ratio = (last / first) ** (1.0 / max(steps - 1, 1))
    return tuple(first * ratio**step for step in range(steps))


def _check(plan: Plan) -> None:
    model, optimizer = plan.model, plan.optimizer
    if optimizer not in OPTIMIZERS:
        raise BadTraining(f"optimizer: expected one of {', '.join(OPTIMIZERS)}, got {optimizer!r}")
    path = plan.path
    if not path:
        raise BadTraining("l2: expected a number, or several")
    for l2 in path:
        Penalty(l2, plan.l1)
    if any(later >= earlier for earlier, later in pairwise(path)):
        raise BadTraining(f"l2: expected a path from the largest to the smallest, got {list(path)}")
    _check_numbers(plan)
    if plan.l1 > 0 and optimizer not in WITH_L1:
        raise BadTraining(f"l1: {optimizer} has no proximal step; use {', '.join(WITH_L1)}")
    if optimizer == "newton" and not (model.is_convex and model.size <= HESSIAN_MAX):
        raise BadTraining(
            f"optimizer: newton is for linear models of at most {HESSIAN_MAX} parameters, got {model.kind} of "
            f"{model.size}; use {'adam' if model.kind == 'mlp' else 'lbfgs'}"
        )
    if model.is_convex and min(path) == 0 and plan.l1 == 0 and model.size > HESSIAN_MAX:
        raise BadTraining(
            f"l2: with {model.size} parameters (more than {HESSIAN_MAX}) it cannot be checked that there is an optimum "
            "without a penalty; set l2 > 0"
        )
    if plan.privacy is not None:
        _check_privacy(plan, plan.privacy)


def _check_numbers(plan: Plan) -> None:
    positive = {"tol": plan.tol, "learning_rate": plan.rate}
    if plan.jitter is not None:
        positive["jitter"] = plan.jitter
    for name, value in positive.items():
        if not (math.isfinite(value) and value > 0):
            raise BadTraining(f"{name}: expected a finite number above 0, got {value}")
    whole = {
        "max_rounds": plan.max_rounds,
        "epochs": plan.epochs,
        "local_epochs": plan.local_epochs,
        "batch_rows": plan.batch_rows,
        "patience": 1 if plan.patience is None else plan.patience,
    }
    for name, count in whole.items():
        if count < 1:
            raise BadTraining(f"{name}: expected 1 or more, got {count}")
    if plan.local_epochs > LOCAL_EPOCHS_MAX:
        raise BadTraining(f"local_epochs: expected at most {LOCAL_EPOCHS_MAX}, got {plan.local_epochs}")
    if plan.seed < 0:
        raise BadTraining(f"seed: expected 0 or more, got {plan.seed}")


def _check_privacy(plan: Plan, privacy: Privacy) -> None:
    if plan.optimizer not in ("sgd", "adam"):
        raise BadTraining(f"privacy: rounds are private with sgd and adam, not with {plan.optimizer}")
    if len(plan.path) > 1 or plan.patience is not None:
        raise BadTraining("privacy: a path and early stopping look at the data again and again; leave them out")
    if not (privacy.clip > 0 and privacy.noise > 0 and 0 < privacy.delta < 1 and (privacy.epsilon or 1) > 0):
        raise BadTraining(f"privacy: expected clip, noise and epsilon above 0 and delta between 0 and 1, got {privacy}")
    if not (1.0 / EXTREME_NOISE <= privacy.noise <= EXTREME_NOISE and privacy.clip <= EXTREME_CLIP):
        raise BadTraining(
            f"privacy: expected noise from {1 / EXTREME_NOISE:g} to {EXTREME_NOISE:g} and clip up to {EXTREME_CLIP:g}, "
            f"got {privacy.noise:g} and {privacy.clip:g}"
        )
