"""Training in one process over parts in memory: the same rounds that a coordinator drives over nodes.

For data that fits, for comparisons, and as the shortest telling of how the pieces fit together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from zkd.models.model import Kind, Model
from zkd.models.partials import partial_of
from zkd.models.plan import Plan
from zkd.models.rows import Array, Mask, Rows, Scaler, rows_of
from zkd.models.spread import Suspicion, merge_spreads, scaler_of, spread, suspicions
from zkd.models.story import Counts
from zkd.models.survey import Findings, conclude, encode, glance, merge_glances
from zkd.models.training import Run, start

CLASS_KINDS = ("logistic", "softmax", "svm")


@dataclass(frozen=True, slots=True)
class RawPart:
    """One part as it was stored: feature columns, the target (labels or numbers), weights, held-out rows."""

    columns: Sequence[Array]
    target: Array
    weight: Array | None = None
    held_out: Mask | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """Parts made ready, and what was found on the way."""

    model: Model
    parts: tuple[Rows, ...]
    scaler: Scaler | None
    found: Findings
    constant: tuple[int, ...]
    suspicions: tuple[Suspicion, ...]
    names: tuple[str, ...] = ()

    @property
    def counts(self) -> Counts:
        return Counts(
            self.found.training_rows,
            self.found.weight,
            self.found.target,
            self.names,
            self.found.rows - self.found.training_rows,
        )


def prepare(
    kind: Kind,
    parts: Sequence[RawPart],
    *,
    hidden: Sequence[int] = (),
    intercept: bool = True,
    standardise: bool = True,
    tells_classes: bool | None = None,
    names: Sequence[str] = (),
) -> Prepared:
    """Both rounds of the survey. `tells_classes` is for nets, which do either. Raises `BadTraining`."""
    classes = kind in CLASS_KINDS if tells_classes is None else tells_classes
    seen = merge_glances(
        glance(part.columns, part.target, tells_classes=classes, weight=part.weight, held_out=part.held_out)
        for part in parts
    )
    found = conclude(kind, seen, names)
    model = found.model(kind, hidden=hidden, intercept=intercept)
    ready = tuple(
        rows_of(
            part.columns,
            encode(part.target, found.classes) if found.classes else part.target,
            weight=part.weight,
            held_out=part.held_out,
        )
        for part in parts
    )
    spreads = merge_spreads(spread(rows, found) for rows in ready)
    scaler, constant = scaler_of(spreads, found)
    return Prepared(
        model, ready, scaler if standardise else None, found, constant, suspicions(spreads, found), tuple(names)
    )


def fit(prepared: Prepared, plan: Plan, *, w: Any = None, each: Callable[[Run], None] = lambda run: None) -> Run:
    """The run to its end; `each` sees it after every round. Raises `BadTraining`, `NoOptimum`."""
    run = start(plan, prepared.counts, w)
    while (ask := run.ask) is not None:
        run = run.told(partial_of(prepared.model, ask, enumerate(prepared.parts), prepared.scaler))
        each(run)
    return run


def split_rows(raw: RawPart, into: int) -> list[RawPart]:
    """A part's rows dealt out to several parts, one by one."""

    def dealt(array: Any, number: int) -> Any:
        return None if array is None else np.ascontiguousarray(array[number::into])

    return [
        replace(
            raw,
            columns=[dealt(column, number) for column in raw.columns],
            target=dealt(raw.target, number),
            weight=dealt(raw.weight, number),
            held_out=dealt(raw.held_out, number),
        )
        for number in range(into)
    ]
