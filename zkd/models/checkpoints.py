"""A run as named arrays and a JSON-able description, and back: what a checkpoint consists of.

Only the classes named here are made, from fields they have: a checkpoint's bytes are data from outside. The plan is not
part of it, since it belongs to the job; a checkpoint of another plan is refused.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from zkd.errors import BadTraining
from zkd.models import descent, lbfgs, model, newton, objective, plan, stochastic, story, training

Arrays: TypeAlias = dict[str, np.ndarray[Any, np.dtype[Any]]]

KNOWN: Mapping[str, type[Any]] = {
    cls.__name__: cls
    for cls in (
        training.Run,
        story.Round,
        story.Best,
        story.Stage,
        story.Counts,
        model.TargetMean,
        model.Model,
        objective.Penalty,
        objective.Point,
        newton.Newton,
        lbfgs.Lbfgs,
        lbfgs.End,
        descent.Descent,
        stochastic.Stochastic,
        stochastic.Average,
    )
}
VERSION = 1


def pack(run: training.Run) -> tuple[dict[str, Any], Arrays]:
    """The description, of plain JSON values, and the arrays that it mentions by name."""
    arrays: Arrays = {}
    fields = {f.name: _out(getattr(run, f.name), f.name, arrays) for f in dataclasses.fields(run) if f.name != "plan"}
    return {"version": VERSION, "plan": fingerprint(run.plan), "run": fields}, arrays


def unpack(described: Mapping[str, Any], arrays: Mapping[str, Any], of: plan.Plan) -> training.Run:
    """The run that `pack` was given, of the same plan. Raises `BadTraining` for anything else."""
    if described.get("version") != VERSION:
        raise BadTraining(f"checkpoint: expected version {VERSION}, got {described.get('version')!r}")
    if described.get("plan") != fingerprint(of):
        raise BadTraining("checkpoint: it is of another plan, and its rounds would not go on from there")
    fields = described.get("run")
    if not isinstance(fields, dict):
        raise BadTraining("checkpoint: it describes no run")
    try:
        known = {name: _in(value, arrays) for name, value in fields.items()}
        run = training.Run(plan=of, **known)
        of.model.layers(run.state.at)
    except (TypeError, KeyError, ValueError, AttributeError) as problem:
        raise BadTraining(f"checkpoint: it is damaged or of another version ({problem!r})") from None
    return run


def fingerprint(of: plan.Plan) -> str:
    """All choices of a plan, in words that differ where a choice does."""
    return repr(dataclasses.replace(of, l2=of.path))


def _out(value: Any, name: str, arrays: Arrays) -> Any:
    if isinstance(value, np.ndarray):
        arrays[name] = value
        return {"array": name}
    if dataclasses.is_dataclass(value):
        kind = type(value).__name__
        assert kind in KNOWN, kind
        fields = {f.name: _out(getattr(value, f.name), f"{name}.{f.name}", arrays) for f in dataclasses.fields(value)}
        return {"is": kind, "fields": fields}
    if isinstance(value, tuple):
        return {"of": [_out(item, f"{name}.{index}", arrays) for index, item in enumerate(value)]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if isinstance(value, np.generic):
        return _out(value.item(), name, arrays)
    assert value is None or isinstance(value, bool | int | float | str), (name, type(value))
    return value


def _in(value: Any, arrays: Mapping[str, Any]) -> Any:
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return arrays[value["array"]]
    if "of" in value:
        return tuple(_in(item, arrays) for item in value["of"])
    if "float" in value:
        return float(value["float"])
    cls = KNOWN[value["is"]]
    return cls(**{name: _in(item, arrays) for name, item in value["fields"].items()})
