"""Mini-batch descent, sgd and adam, and `average`: local descent and averaging of parameters.

A mini-batch takes its share of rows from every part, so one round is one step, and the path is the same for any nodes.
The step length falls to 0 along half a cosine, which lets sgd come to rest. After each epoch one round over all rows
tells the loss.

`average` is what is often meant by distributed descent: every part is trained on by itself, and the parameters are
averaged by weight. It is approximate: what it tends to is not the optimum of all rows but a mean of the parts' own, and
further from it the fewer and the less alike the rows of each part are (McMahan et al., arXiv 1602.05629).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from zkd.models.model import Model, Vector
from zkd.models.objective import Penalty, Point, shrunk
from zkd.models.partials import Totals, Wants
from zkd.models.picks import Batch, Local, Sample

Rule: TypeAlias = Literal["sgd", "adam"]

MOMENTUM = 0.9
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # Kingma and Ba, arXiv 1412.6980
CURVATURE = {
    "linear": 1.0,
    "logistic": 0.25,
    "softmax": 0.5,
    "poisson": 1.0,
    "svm": 2.0,
}  # at most, a row's in its score


def default_learning_rate(model: Model, optimizer: str) -> float:
    """For standardised features: 1/L where L is bounded by the mean square length of a row.

    For adam and nets twice adam's own 1e-3: the falling rate leaves half of it on the mean, and with 1e-3 digits were
    told apart 0.015 less often than by scikit-learn's net.
    """
    if optimizer == "adam":
        return 2e-3 if model.kind == "mlp" else 1e-2
    if model.kind == "mlp":
        return 1e-2
    return 1.0 / (CURVATURE[model.kind] * (model.features + 1))


@dataclass(frozen=True, slots=True)
class Stochastic:
    """sgd or adam. `weight` is that of all training rows; with `rate`, batches are random samples of that rate."""

    model: Model
    penalty: Penalty
    rule: Rule
    at: Vector
    weight: float
    learning_rate: float
    epochs: int
    batches: int  # an epoch
    seed: int
    rate: float | None = None
    steps: int = 0
    first: Vector | None = None  # sgd: the momentum; adam: the mean of gradients
    second: Vector | None = None  # adam: the mean of their squares
    is_epoch_over: bool = False
    is_accepted: bool = False
    stopped: str = ""

    @property
    def wants(self) -> Wants:
        return "gradient"

    @property
    def error(self) -> float | None:
        return None

    @property
    def choice(self) -> Batch | Sample | None:
        """The rows of the next step; None for all, at the end of an epoch."""
        if self.is_epoch_over:
            return None
        if self.rate is not None:
            return Sample(self.seed, self.steps, self.rate)
        return Batch(self.seed, self.steps // self.batches, self.steps % self.batches, self.batches)

    def stepped(self, totals: Totals) -> Stochastic:
        """One step by the sums over the chosen rows."""
        expected = totals.weight if self.rate is None else self.rate * self.weight
        if not np.all(np.isfinite(totals.gradient)):
            return replace(self, stopped="diverged")
        mask = self.model.penalised()
        steps = self.steps + 1
        first, second, w = self.first, self.second, self.at
        if expected > 0:
            slope = totals.gradient / expected + self.penalty.l2 / self.weight * np.where(mask, w, 0.0)
            share = 0.5 * (1.0 + np.cos(np.pi * self.steps / (self.epochs * self.batches)))
            rate = self.learning_rate * float(share)
            first = np.zeros_like(w) if first is None else first
            if self.rule == "sgd":
                first = MOMENTUM * first - (1.0 - MOMENTUM) * slope
                w = w + rate / (1.0 - MOMENTUM) * first if steps > 1 else w - rate * slope
            else:
                second = np.zeros_like(w) if second is None else second
                first = BETA1 * first + (1.0 - BETA1) * slope
                second = BETA2 * second + (1.0 - BETA2) * np.square(slope)
                w = w - rate * (first / (1.0 - BETA1**steps)) / (np.sqrt(second / (1.0 - BETA2**steps)) + EPSILON)
            w = shrunk(w, rate * self.penalty.l1 / self.weight, mask)
        over = steps % self.batches == 0
        ended = "epochs" if over and self.rate is not None and steps == self.epochs * self.batches else ""
        return replace(
            self,
            at=w,
            steps=steps,
            first=first,
            second=second,
            is_epoch_over=over and self.rate is None,
            is_accepted=False,
            stopped=ended,
        )

    def told(self, point: Point) -> Stochastic:
        """After an epoch: F over all rows."""
        if not np.isfinite(point.total):
            return replace(self, is_accepted=False, stopped="diverged")
        is_last = self.steps >= self.epochs * self.batches
        return replace(self, is_epoch_over=False, is_accepted=True, stopped="epochs" if is_last else "")


@dataclass(frozen=True, slots=True)
class Average:
    """Local descent on each part, then the mean of the parameters: approximate."""

    model: Model
    penalty: Penalty
    at: Vector
    weight: float
    learning_rate: float
    epochs: int  # rounds
    local_epochs: int
    batch_rows: int
    seed: int
    rounds: int = 0
    is_epoch_over: bool = False
    is_accepted: bool = False
    stopped: str = ""

    @property
    def wants(self) -> Wants:
        return "gradient"

    @property
    def error(self) -> float | None:
        return None

    @property
    def local(self) -> Local | None:
        if self.is_epoch_over:
            return None
        rate = self.learning_rate * 0.5 * (1.0 + float(np.cos(np.pi * self.rounds / self.epochs)))
        return Local(self.seed, self.rounds, self.local_epochs, self.batch_rows, rate, self.penalty.l2 / self.weight)

    def stepped(self, totals: Totals) -> Average:
        if not np.all(np.isfinite(totals.gradient)) or totals.weight <= 0:
            return replace(self, stopped="diverged")
        w = self.at + totals.gradient / totals.weight
        return replace(self, at=w, rounds=self.rounds + 1, is_epoch_over=True, is_accepted=False)

    def told(self, point: Point) -> Average:
        if not np.isfinite(point.total):
            return replace(self, is_accepted=False, stopped="diverged")
        stopped = "epochs" if self.rounds >= self.epochs else ""
        return replace(self, is_epoch_over=False, is_accepted=True, stopped=stopped)
