"""How features spread, and which of them say too much: the second of two rounds before training, after `survey`.

Squares are summed about the means that the first round found, which loses nothing to cancellation. A feature that by
itself gives the target away is reported: often it is the target, under another name or written down after it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from zkd.models.binned import Binned, add, binned
from zkd.models.model import Vector
from zkd.models.rows import Rows, Scaler, blocks
from zkd.models.survey import Counts, Findings, Label

CONSTANT = 1e-13  # of the largest value: below, a column's spread is rounding
TINY = 1e-306  # a spread whose inverse a float cannot hold is none
BINS = 256  # of a feature's values, for areas under curves: finer near its mean
SUSPICIOUS = 0.99  # correlation with the target, or area under the curve, of one feature by itself
TOLD_APART_MAX = 20  # classes that are each set against all others
CELLS_MAX = 1 << 23  # bins of all features and classes together; 64 MiB
GATHERED = 1 << 16  # values, at least, that are counted in one go


@dataclass(frozen=True, slots=True)
class Spread:
    """The second round's answer: weighted sums of squares about the mean, and counts of values in bins by class.

    Distances x - m are in units of about the largest (`Findings.unit`): squares neither overflow nor vanish.
    """

    sums: Binned  # (2 features + 1,): (x - m)^2, (x - m)(y - n), (y - n)^2
    counts: Counts  # (features, BINS, `told_apart`) of training rows


@dataclass(frozen=True, slots=True)
class Suspicion:
    """A feature that says almost all about the target by itself: a label that leaked into the features, perhaps."""

    feature: int
    measure: str  # "correlation" or "area under the curve"
    value: float
    label: Label | None = None


def spread(rows: Rows, found: Findings) -> Spread:
    """One part's answer. The target of `rows` is numbers or class numbers."""
    features = rows.features
    counts = np.zeros((features, BINS, told_apart(features, len(found.classes))), np.int64)
    places: list[Counts] = []
    sums = np.zeros(2 * features + 1)
    unit, width = found.unit, found.width
    for block in blocks(rows, Scaler(found.mean, np.ones(features)), intercept=False):
        np.divide(block.x, unit, out=block.x)
        off = block.target - found.target.mean
        weighted = block.weight[:, None] * block.x
        sums[:features] += np.einsum("ij,ij->j", weighted, block.x)
        sums[features:-1] += off @ weighted
        sums[-1] += block.weight @ np.square(off)
        if counts.size:
            trained = block.weight > 0
            classes = block.target[trained].astype(np.int64)
            places.append(_places(block.x[trained] * (unit / width), classes, counts.shape[2]))
            if sum(len(some) for some in places) >= max(GATHERED, counts.size):
                _count(counts, places)
    _count(counts, places)
    return Spread(binned(sums), counts)


def told_apart(features: int, classes: int) -> int:
    """How many classes are set against all others; none where it would take too many bins."""
    return classes if classes <= TOLD_APART_MAX and features * BINS * classes <= CELLS_MAX else 0


def merge_spreads(spreads: Iterable[Spread]) -> Spread:
    """At least one. One after the other: they may be large."""
    total: Spread | None = None
    for item in spreads:
        if total is None:
            total = Spread(item.sums, item.counts.copy())
        else:
            counts = total.counts
            counts += item.counts
            total = Spread(add((total.sums, item.sums)), counts)
    assert total is not None
    return total


def scaler_of(seen: Spread, found: Findings) -> tuple[Scaler, tuple[int, ...]]:
    """Population standard deviations of training rows, and which features are constant there.

    The scale of these is infinite, which makes them exactly 0: what rounding leaves of them would pass for a feature,
    or for the intercept.
    """
    features = len(found.mean)
    variance = seen.sums.value()[:features] / found.weight
    deviation = found.unit * np.sqrt(np.maximum(variance, 0.0))
    constant = deviation <= np.maximum(CONSTANT * np.maximum(np.abs(found.least), np.abs(found.most)), TINY)
    return Scaler(found.mean, np.where(constant, np.inf, deviation)), tuple(np.flatnonzero(constant).tolist())


def suspicions(seen: Spread, found: Findings) -> tuple[Suspicion, ...]:
    """Features with |correlation|, or area under the curve of one class (of up to 20) against the rest, above 0.99.

    Of two classes that are not set against each other for lack of room the correlation is looked at.
    """
    features = len(found.mean)
    sums = seen.sums.value()
    told: list[Suspicion] = []
    if not found.classes or (len(found.classes) == 2 and not seen.counts.size):
        below = np.sqrt(sums[:features]) * np.sqrt(sums[-1])
        correlations = np.divide(sums[features:-1], below, out=np.zeros(features), where=below > 0)
        told += [
            Suspicion(index, "correlation", float(correlations[index]))
            for index in np.flatnonzero(np.abs(correlations) > SUSPICIOUS).tolist()
        ]
    for number in range(seen.counts.shape[2]):
        if len(found.classes) == 2 and number == 0:
            continue
        areas = _areas(seen.counts, number)
        told += [
            Suspicion(index, "area under the curve", float(areas[index]), found.classes[number])
            for index in np.flatnonzero(np.maximum(areas, 1.0 - areas) > SUSPICIOUS).tolist()
        ]
    return tuple(told)


def _places(x: Vector, classes: Counts, many: int) -> Counts:
    """The bins of rows' values. They lie by the fourth root of the distance from the mean: many decades fit in."""
    roots = np.sign(x) * np.sqrt(np.sqrt(np.abs(x).clip(max=1.0)))
    bins = ((roots + 1.0) * (0.5 * BINS)).astype(np.int64).clip(max=BINS - 1)
    places: Counts = ((np.arange(x.shape[1]) * BINS + bins) * many + classes[:, None]).ravel()
    return places


def _count(counts: Counts, places: list[Counts]) -> None:
    """Adds one to each place, and forgets them."""
    if places:
        counts += np.bincount(np.concatenate(places), minlength=counts.size).reshape(counts.shape)
        places.clear()


def _areas(counts: Counts, number: int) -> Vector:
    """The chance that a row of the class has a larger value than one of the others, ties counted half; (features,)."""
    own = counts[:, :, number].astype(np.float64)
    others = counts.sum(axis=2) - own
    below = np.cumsum(others, axis=1) - others
    pairs = own.sum(axis=1) * others.sum(axis=1)
    area: Vector = np.divide(
        (own * (below + 0.5 * others)).sum(axis=1), pairs, out=np.full(len(own), 0.5), where=pairs > 0
    )
    return area
