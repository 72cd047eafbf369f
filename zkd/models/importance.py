"""How much worse a model gets when a feature is shuffled: permutation importance, over parts.

Each part shuffles a feature among its own rows, by a seed of its own, and sums the losses before and after; parts hold
rows by hash, so each is a sample of all. Of features that carry the same thing, each by itself looks unimportant.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from zkd.errors import BadTraining
from zkd.models import mlp
from zkd.models.binned import Binned, add, binned
from zkd.models.losses import ONE_OUTPUT, linear, softmax
from zkd.models.model import Matrix, Model, Vector
from zkd.models.predict import refuse_other_features
from zkd.models.rows import Rows, Scaler, blocks

REPEATS = 5


class Importance(NamedTuple):
    """The rise of the mean loss with each feature shuffled, (features,), and the loss as it is."""

    rise: Vector
    loss: float


def permuted_losses(model: Model, w: Vector, rows: Rows, scaler: Scaler | None, *, part: int, seed: int = 0) -> Binned:
    """One part's sums: weight, weighted loss, then that with each feature shuffled, mean of 5 shuffles.

    Of held-out rows where there are any in the part, else of training rows. Raises `BadTraining`.
    """
    refuse_other_features(model, rows.features)
    layers = model.layers(w)
    sums = np.zeros(2 + model.features)
    all_blocks = [
        (b.x.copy(), b.target, b.weight if b.held_weight is None else b.held_weight)
        for b in blocks(rows, scaler, intercept=model.intercept)
    ]
    if not all_blocks:
        return binned(sums)
    x, target, weight = (np.concatenate(arrays) for arrays in zip(*all_blocks, strict=True))
    chosen = weight > 0
    x, target, weight = x[chosen], target[chosen], weight[chosen]
    first = x @ layers[0]  # a shuffled feature moves it by an outer product, which spares all but that
    sums[0], sums[1] = weight.sum(), weight @ losses_of(model, _scores(layers, first), target)
    for feature in range(model.features):
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([3, seed, feature, part])))
        own = x[:, feature]
        for _ in range(REPEATS):
            changed = first + np.outer(rng.permutation(own) - own, layers[0][feature])
            sums[2 + feature] += (weight @ losses_of(model, _scores(layers, changed), target)) / REPEATS
    return binned(sums)


def _scores(layers: list[Matrix], first: Matrix) -> Matrix:
    """Scores from what comes out of the first layer; the only one of a linear model."""
    if len(layers) == 1:
        return first
    hidden = np.ones((len(first), first.shape[1] + 1))
    np.maximum(first, 0.0, out=hidden[:, :-1])
    return mlp.scores(layers[1:], hidden)


def importance(parts: Iterable[Binned]) -> Importance:
    """What all parts' sums say. Raises `BadTraining` where no row counted."""
    sums = add(parts).value()
    if not sums[0] > 0:
        raise BadTraining("importance: expected rows of some weight, got none")
    means = sums[1:] / sums[0]
    return Importance(means[1:] - means[0], float(means[0]))


def losses_of(model: Model, z: Matrix, target: Vector) -> Vector:
    """The loss of each row, (n,), from its scores."""
    if model.kind in ONE_OUTPUT:
        return ONE_OUTPUT[model.kind](z[:, 0], target, curvature=False).loss
    return softmax(z, target)[0] if model.has_classes else linear(z[:, 0], target, curvature=False).loss
