"""What a model says of rows, as columns of a dataset; and what of a dataset's columns it needs.

    prediction       (n,)           the label of the likeliest class, or the number that is expected
    probabilities    (n, classes)   in the order of the model's classes; of models that tell some
    score            (n,) or (n, outputs)   before any link

Rows with a missing feature have no score. Either they are refused, by their numbers, or they go through as NaN: then
labels that have none (whole numbers, truth values) become float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np

from zkd.errors import BadTraining
from zkd.manifests import Column
from zkd.models.predict import Predictions
from zkd.models.rows import Array
from zkd.models.trained import Trained

Missing: TypeAlias = Literal["refuse", "propagate"]

PREDICTION, PROBABILITIES, SCORE = "prediction", "probabilities", "score"
ROWS_NAMED_MAX = 10
NUMBERS = {"|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8"}


class MissingFeatures(BadTraining):
    """There are rows without a score."""


def names_of(trained: Trained) -> list[str]:
    """The columns that this model can give."""
    has_none = trained.model.kind in ("linear", "poisson", "svm") or not trained.model.has_classes
    return [PREDICTION, SCORE] if has_none else [PREDICTION, PROBABILITIES, SCORE]


def expect_names(trained: Trained, wanted: Sequence[str] | None) -> list[str]:
    """Those of the columns that are wanted, by default all. Raises `BadTraining`."""
    can = names_of(trained)
    chosen = can if wanted is None else list(dict.fromkeys(wanted))
    unknown = [name for name in chosen if name not in can]
    if unknown or not chosen:
        got = ", ".join(map(repr, unknown)) or "none"
        raise BadTraining(f"columns: a model of kind {trained.model.kind} gives {', '.join(can)}; got {got}")
    return chosen


def expect_columns(trained: Trained, columns: Sequence[Column], of: str) -> list[str]:
    """The names of the feature columns, all of which are there and fit. Raises `BadTraining` that names each fault."""
    there = {column.name: column for column in columns}
    faults = []
    missing = [name for name, _ in trained.features if name not in there]
    if missing:
        faults.append(f"expected the columns {_some(missing)}, too; {of} has {_some(list(there))}")
    for name, width in trained.features:
        column = there.get(name)
        if column is None:
            continue
        if column.dtype not in NUMBERS:
            faults.append(f"expected numbers in {name!r}, got {column.dtype}")
        elif column.shape != ([width] if width else []):
            wanted = f"{width} numbers a row" if width else "one number a row"
            faults.append(f"expected {wanted} in {name!r}, got the shape {column.shape}")
    if faults:
        raise BadTraining(f"features: {'; '.join(faults[:5])}{' ...' if len(faults) > 5 else ''}")
    return [name for name, _ in trained.features]


def outputs_of(
    trained: Trained,
    columns: Mapping[str, Array],
    wanted: Sequence[str],
    *,
    missing: Missing = "refuse",
    numbers: Array | None = None,
) -> dict[str, Array]:
    """The `wanted` columns for these rows, which `numbers` are the numbers of.

    Raises `MissingFeatures` that names rows without a score, `BadTraining` for columns that do not fit.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # of rows without a score, which are found below
        said = trained.predictions(columns)
    unknown = without_score(said)
    if missing == "refuse" and unknown.any():
        raise MissingFeatures(_words(trained, columns, unknown, numbers))
    given: dict[str, Array] = {}
    for name in wanted:
        if name == SCORE:
            given[name] = _blanked(said.scores[:, 0] if trained.model.outputs == 1 else said.scores, unknown)
        elif name == PROBABILITIES:
            assert said.probabilities is not None
            given[name] = _blanked(said.probabilities, unknown)
        elif said.classes is None:
            assert said.means is not None
            given[name] = _blanked(said.means, unknown)
        else:
            given[name] = _labels(trained, said.classes, unknown, missing)
    return given


def without_score(said: Predictions) -> Array:
    """Which rows have none that is a finite number, (n,)."""
    return np.asarray(~np.isfinite(said.scores).all(axis=1))


def _blanked(values: Array, unknown: Array) -> Array:
    if unknown.any():
        values = values.copy()
        values[unknown] = np.nan
    return values


def _labels(trained: Trained, classes: Array, unknown: Array, missing: Missing) -> Array:
    labels = np.array(trained.classes)
    if missing == "refuse":
        return labels[classes]
    if labels.dtype.kind in "US":
        return np.where(unknown, "", labels[classes])
    return np.where(unknown, np.nan, labels.astype(np.float64)[classes])


def _words(trained: Trained, columns: Mapping[str, Array], unknown: Array, numbers: Array | None) -> str:
    which = np.flatnonzero(unknown)
    rows = (which if numbers is None else numbers[which]).tolist()
    named = ", ".join(map(str, rows[:ROWS_NAMED_MAX])) + (", ..." if len(rows) > ROWS_NAMED_MAX else "")
    bad = [name for name, _ in trained.features if not _is_finite(columns[name][which])]
    of = f" in {_some(bad)}" if bad else ""
    return f"{len(rows)} row{'' if len(rows) == 1 else 's'} with a missing or infinite number{of}: {named}"


def _is_finite(values: Array) -> bool:
    return values.dtype.kind != "f" or bool(np.isfinite(values).all())


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
