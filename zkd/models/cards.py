"""What the registry says of a model, made from the model; and whether it says the truth; and how two models differ."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from zkd.errors import BadModel, BadRecord
from zkd.models.survey import Label
from zkd.models.trained import Trained
from zkd.registry import Feature, Lineage, ModelFile, ModelVersion

UNKNOWN = Lineage()
CHANGES_MAX = 1000  # coefficients that are listed


def card(
    model: Trained,
    file: ModelFile,
    *,
    lineage: Lineage = UNKNOWN,
    metrics: Mapping[str, float] | None = None,
    **fields: Any,
) -> ModelVersion:
    """The record of a version. `fields` are those that no file has: created_ms, by, note."""
    return ModelVersion(
        file=file,
        kind=model.model.kind,
        features=[Feature(name, width) for name, width in model.features],
        outputs=model.model.outputs,
        classes=list(model.classes) or None,
        lineage=lineage if lineage.dataset or not model.dataset else _of_dataset(lineage, model.dataset),
        metrics=metrics_of(model) if metrics is None else dict(metrics),
        **fields,
    )


def metrics_of(model: Trained) -> dict[str, float]:
    """What its training found."""
    summary = model.summary
    known = {"loss": summary.loss, "held_loss": summary.held_loss, "l2": summary.l2, "epsilon": summary.epsilon}
    found = {name: value for name, value in known.items() if value is not None and math.isfinite(value)}
    return found | ({"rows": float(model.rows), "rounds": float(summary.rounds)} if model.rows else {})


def refuse_another(version: ModelVersion, model: Trained) -> None:
    """Raise `BadRecord` where the record says something else than the file that it names."""
    true = card(model, version.file)
    for field in ("kind", "features", "outputs", "classes"):
        said, found = getattr(version, field), getattr(true, field)
        if said != found or (field == "classes" and _types(said) != _types(found)):
            raise BadRecord(f"$.{field}", f"the file {version.file.id[:12]} has {_short(found)}, not {_short(said)}")


def refuse_unsound(model: Trained) -> None:
    """Raise `BadModel` for a model whose answers would not be numbers."""
    numbers = {"parameters": model.w}
    if model.scaler is not None:
        numbers["means"] = model.scaler.mean
    for name, values in numbers.items():
        if not np.all(np.isfinite(values)):
            raise BadModel(f"the model's {name} are not all finite")
    if model.scaler is not None and not np.all(np.abs(model.scaler.scale) > 0):  # infinite where a feature is constant
        raise BadModel("a feature's scale is 0, or no number")


@dataclass(frozen=True)
class Change:
    """A coefficient of two models, in units of the feature as it is stored; None where one of them has none."""

    of: Label | None  # the class whose score it is about
    name: str
    before: float | None
    after: float | None

    @property
    def size(self) -> float:
        return abs((self.after or 0.0) - (self.before or 0.0))


@dataclass(frozen=True)
class Difference:
    """From one model to another. `fields` has what the records say, both times; `coefficients` those that changed, the
    largest changes first; `largest` the largest change of any parameter, None where shapes differ."""

    fields: dict[str, tuple[Any, Any]]
    metrics: dict[str, tuple[float | None, float | None]]
    added: list[str]  # features
    removed: list[str]
    coefficients: list[Change]
    largest: float | None

    @property
    def is_empty(self) -> bool:
        return not (self.fields or self.metrics or self.added or self.removed or self.coefficients or self.largest)


def difference(before: ModelVersion, old: Trained, after: ModelVersion, new: Trained) -> Difference:
    """What is not the same in these two."""
    fields: dict[str, tuple[Any, Any]] = {}
    for name in ("kind", "outputs", "classes", "lineage"):
        pair = getattr(before, name), getattr(after, name)
        if pair[0] != pair[1]:
            fields[name] = pair
    if old.model.hidden != new.model.hidden:
        fields["hidden"] = old.model.hidden, new.model.hidden
    metrics = {
        name: (before.metrics.get(name), after.metrics.get(name))
        for name in sorted(before.metrics.keys() | after.metrics.keys())
        if before.metrics.get(name) != after.metrics.get(name)
    }
    was, now = ({(line.of, line.name): line.raw for line in each.table()} for each in (old, new))
    changes = [
        Change(key[0], key[1], was.get(key), now.get(key))
        for key in dict.fromkeys([*was, *now])
        if was.get(key) != now.get(key) and not _are_nan(was.get(key), now.get(key))
    ]
    changes.sort(key=lambda change: -change.size)
    is_alike = old.model == new.model and old.names == new.names
    return Difference(
        fields,
        metrics,
        [name for name in new.names if name not in old.names],
        [name for name in old.names if name not in new.names],
        changes[:CHANGES_MAX],
        float(np.max(np.abs(old.w - new.w))) if is_alike else None,
    )


def _of_dataset(lineage: Lineage, dataset: str) -> Lineage:
    return Lineage(dataset, lineage.job, lineage.terms, lineage.source)


def _types(labels: list[Any] | None) -> list[bool]:
    return [isinstance(each, bool) for each in labels or ()]


def _are_nan(*values: float | None) -> bool:
    return all(value is not None and math.isnan(value) for value in values)


def _short(value: Any) -> str:
    text = (
        ", ".join(each.name for each in value[:5])
        if value and isinstance(value, list) and isinstance(value[0], Feature)
        else str(value)
    )
    return text[:200]
