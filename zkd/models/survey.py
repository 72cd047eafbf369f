"""What is in the data: the first of two rounds before training (`spread` is the second).

Everything is a sum, a count or an extreme, so the parts' answers merge in any order to the same bits. Means and scales
are those of training rows alone; faults are looked for in all rows. Whatever cannot be trained on is refused here,
before round one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from zkd.errors import BadTraining
from zkd.models.binned import WIDTH, Binned, add, binned
from zkd.models.model import Kind, Model, TargetMean, Vector
from zkd.models.rows import Array, Mask, Rows, blocks, rows_of

Label: TypeAlias = int | float | str | bool
Counts: TypeAlias = npt.NDArray[np.int64]

CLASSES_MAX = 1000
EXTREME = 1e100  # of weights and of a target's spread: squares and sums of them are far from the ends of floats


@dataclass(frozen=True, slots=True)
class Glance:
    """The first round's answer. `sums`: training weight, then weighted sums of features and of a numeric target."""

    rows: int
    training_rows: int
    not_finite: Counts  # (features,), of all rows
    least: Vector  # (features,), of all rows
    most: Vector
    sums: Binned
    labels: tuple[tuple[Label, int, int], ...]  # label, rows, training rows; sorted. Only where classes are told
    target_bad: int
    target_least: float
    target_most: float


@dataclass(frozen=True, slots=True)
class Findings:
    """What the first round says. `classes` are the labels in order; empty where numbers are fitted."""

    rows: int
    training_rows: int
    weight: float
    mean: Vector
    least: Vector
    most: Vector
    classes: tuple[Label, ...]
    target: TargetMean

    @property
    def width(self) -> Vector:
        """The largest distance of a value from the mean, (features,); 1 where there is none."""
        width = np.maximum(self.most - self.mean, self.mean - self.least)
        return np.where(width > 0, width, 1.0)

    @property
    def unit(self) -> Vector:
        """About the width, as a power of 2^26: dividing by it changes no digit, so held-out rows do not matter."""
        _, exponents = np.frexp(self.width)
        unit: Vector = np.ldexp(1.0, WIDTH * np.clip(np.rint(exponents / WIDTH), -38, 38).astype(np.int32))
        return unit

    def model(self, kind: Kind, *, hidden: Sequence[int] = (), intercept: bool = True) -> Model:
        """The model of this kind for these features and classes."""
        outputs = len(self.classes) if kind == "softmax" or (kind == "mlp" and self.classes) else 1
        return Model(kind, len(self.mean), outputs, tuple(hidden), intercept)


def glance(
    columns: Sequence[Array], target: Array, *, tells_classes: bool, weight: Any, held_out: Mask | None
) -> Glance:
    """One part's answer to the first round. `target` holds labels of any plain kind, or numbers."""
    labels: tuple[tuple[Label, int, int], ...] = ()
    values = np.zeros(len(target))
    target_bad = 0
    training = np.ones(len(target), bool) if held_out is None else ~held_out
    if not tells_classes:
        values = _numbers(target)
        target_bad = int(np.count_nonzero(~np.isfinite(values)))
    rows = _rows(columns, values, weight, held_out)
    if tells_classes:
        labels, target_bad = _labels(target, training if rows.weight is None else training & (rows.weight > 0))
    features = rows.features
    not_finite = np.zeros(features, np.int64)
    least, most = np.full(features, np.inf), np.full(features, -np.inf)
    sums = np.zeros(2 + features)
    for block in blocks(rows, None, intercept=False):
        not_finite += np.count_nonzero(~np.isfinite(block.x), axis=0)
        least, most = np.fmin(least, np.fmin.reduce(block.x)), np.fmax(most, np.fmax.reduce(block.x))
        with np.errstate(over="ignore", invalid="ignore"):  # `conclude` says what was not finite
            sums[0] += block.weight.sum()
            sums[1] += block.weight @ block.target
            sums[2:] += block.weight @ block.x
    extremes = (float(np.fmin.reduce(values)), float(np.fmax.reduce(values))) if len(values) else (np.inf, -np.inf)
    count = int(np.count_nonzero(training))
    return Glance(len(rows), count, not_finite, least, most, binned(sums), labels, target_bad, *extremes)


def merge_glances(glances: Iterable[Glance]) -> Glance:
    items = list(glances)
    widths = {len(item.least) for item in items}
    if len(widths) != 1:
        raise BadTraining(f"features: expected the same number in all parts, got {sorted(widths)}")
    labels: dict[Label, tuple[int, int]] = {}
    for item in items:
        for label, rows, training in item.labels:
            known = labels.get(label, (0, 0))
            labels[label] = (known[0] + rows, known[1] + training)
    if len({type(label) for label in labels}) > 1:
        raise BadTraining(f"target: expected labels of one kind, got {_some(sorted(labels, key=str))}")
    return Glance(
        sum(item.rows for item in items),
        sum(item.training_rows for item in items),
        np.sum([item.not_finite for item in items], axis=0),
        np.minimum.reduce([item.least for item in items]),
        np.maximum.reduce([item.most for item in items]),
        add(item.sums for item in items),
        tuple((label, *labels[label]) for label in sorted(labels)),
        sum(item.target_bad for item in items),
        min(item.target_least for item in items),
        max(item.target_most for item in items),
    )


def conclude(kind: Kind, seen: Glance, names: Sequence[str] = ()) -> Findings:
    """What all parts' glances say. Raises `BadTraining` for data that this kind of model cannot be trained on."""
    if seen.rows == 0:
        raise BadTraining("rows: there are none in any part")
    if seen.training_rows == 0:
        raise BadTraining(f"rows: all {seen.rows} are held out, none is left to train on")
    bad = np.flatnonzero(seen.not_finite)
    if len(bad):
        shown = _some([f"{_name(names, index)} ({seen.not_finite[index]} rows)" for index in bad.tolist()])
        raise BadTraining(f"features: NaN or infinite in {shown}; fill or drop these rows first")
    if seen.target_bad:
        raise BadTraining(f"target: NaN, infinite or missing in {seen.target_bad} of {seen.rows} rows")
    sums = seen.sums.value()
    with np.errstate(over="ignore"):
        widths = seen.most - seen.least
    if not (np.all(np.isfinite(sums)) and np.all(np.isfinite(widths))):
        raise BadTraining("features: sums of values exceed what a float can hold; scale them down first")
    weight = float(sums[0])
    if not weight > 0:
        raise BadTraining(f"weight: expected some above 0 among {seen.training_rows} training rows")
    if not 1.0 / EXTREME <= weight <= EXTREME:
        raise BadTraining(
            f"weight: expected a sum from {1 / EXTREME:g} to {EXTREME:g}, got {weight:g}; scale them first"
        )
    mean = sums[2:] / weight
    if seen.labels:
        classes, target = _classes(kind, seen)
    else:
        classes, target = (), TargetMean(float(sums[1]) / weight)
        _check_numbers(kind, seen, target.mean)
    return Findings(seen.rows, seen.training_rows, weight, mean, seen.least, seen.most, classes, target)


def encode(target: Array, classes: Sequence[Label]) -> Vector:
    """The class number of each label. Raises `BadTraining` for a label that is no class."""
    known = np.array(classes)
    if known.dtype.kind != target.dtype.kind and not (known.dtype.kind in "iufb" and target.dtype.kind in "iufb"):
        raise BadTraining(f"target: expected labels such as {classes[0]!r}, got {target.dtype}")
    places = np.searchsorted(known, target).clip(max=len(known) - 1)
    wrong = np.flatnonzero(known[places] != target)
    if len(wrong):
        raise BadTraining(f"target: row {wrong[0]} has {target[wrong[0]].item()!r}, which is none of {_some(classes)}")
    return places.astype(np.float64)


def _classes(kind: Kind, seen: Glance) -> tuple[tuple[Label, ...], TargetMean]:
    classes = tuple(label for label, _, _ in seen.labels)
    if len(classes) > CLASSES_MAX:
        raise BadTraining(f"target: more than {CLASSES_MAX} different labels; to fit numbers, train a linear model")
    if len(classes) < 2:
        raise BadTraining(
            f"target: all {seen.rows} rows have the one label {classes[0]!r}; there is nothing to tell apart"
        )
    if kind in ("logistic", "svm") and len(classes) != 2:
        raise BadTraining(f"target: {kind} tells 2 classes, got {len(classes)}: {_some(classes)}; train softmax")
    missing = [label for label, _, training in seen.labels if training == 0]
    if missing:
        raise BadTraining(
            f"target: no training row has {_some(missing)}, only held-out rows or rows of weight 0; change the split's "
            "seed, or leave that label out"
        )
    trained = sum(training for _, _, training in seen.labels)
    shares = tuple(training / trained for _, _, training in seen.labels)
    return classes, TargetMean(shares[1] if len(shares) == 2 else 0.0, shares)


def _check_numbers(kind: Kind, seen: Glance, mean: float) -> None:
    if kind == "poisson" and seen.target_least < 0:
        raise BadTraining(
            f"target: expected counts or rates, 0 or more, for poisson; the least is {seen.target_least:g}"
        )
    if kind == "poisson" and not mean > 0:
        raise BadTraining("target: all counts are 0; the rate has no finite logarithm")
    if seen.target_least == seen.target_most:
        raise BadTraining(f"target: all {seen.rows} rows have the one value {seen.target_least:g}; nothing to learn")
    largest = max(abs(seen.target_least), abs(seen.target_most))
    if not 1.0 / EXTREME <= largest <= EXTREME:
        raise BadTraining(
            f"target: expected the largest value to be from {1 / EXTREME:g} to {EXTREME:g}, got {largest:g}; scale it"
        )


def _labels(target: Array, training: Mask) -> tuple[tuple[tuple[Label, int, int], ...], int]:
    if target.dtype.kind not in "iufbU":
        raise BadTraining(f"target: expected labels that are whole numbers, text or booleans, got {target.dtype}")
    if target.dtype.kind == "f":
        finite = np.isfinite(target)
        if np.any(target[finite] != np.rint(target[finite])):
            raise BadTraining("target: expected labels, got fractions; to fit numbers, train a linear model")
        bad = int(np.count_nonzero(~finite))
        target, training = target[finite], training[finite]
    else:
        bad = 0
    values, places = np.unique(target, return_inverse=True)
    if len(values) > CLASSES_MAX:
        raise BadTraining(f"target: more than {CLASSES_MAX} different labels; to fit numbers, train a linear model")
    rows = np.bincount(places, minlength=len(values))
    trained = np.bincount(places[training], minlength=len(values))
    return tuple(zip(values.tolist(), rows.tolist(), trained.tolist(), strict=True)), bad


def _numbers(target: Array) -> Vector:
    if target.dtype.kind not in "iufb":
        raise BadTraining(f"target: expected numbers, got {target.dtype}; to tell classes, train softmax or logistic")
    return target.astype(np.float64)


def _rows(columns: Sequence[Array], values: Vector, weight: Any, held_out: Mask | None) -> Rows:
    return rows_of(columns, values, weight=weight, held_out=held_out)


def _name(names: Sequence[str], index: int) -> str:
    return names[index] if names else f"feature {index}"


def _some(items: Iterable[Any]) -> str:
    known = [str(item) for item in items]
    return ", ".join(known[:5]) + (f" and {len(known) - 5} more" if len(known) > 5 else "")
