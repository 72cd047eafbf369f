"""Asks and partials as plain values and named arrays: what coordinators and nodes send each other.

Whatever comes in is checked: it may be from an older zkd, or from nobody that we know. Models, plans and privacy are
dataclasses that msgspec reads and writes as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec
import numpy as np

from zkd.errors import BadTraining
from zkd.models.binned import from_arrays
from zkd.models.model import Model
from zkd.models.partials import Ask, Partial, Wants
from zkd.models.picks import Batch, Local, Sample
from zkd.models.rows import Array

Arrays: TypeAlias = dict[str, Array]

_SUMS = {"counts", "sums.digits", "sums.tops"}
_HESSIAN = {"hessian.digits", "hessian.tops"}


class _Ask(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    wants: Wants
    batch: Batch | None = None
    sample: Sample | None = None
    local: Local | None = None
    clip: float | None = None


def ask_out(ask: Ask) -> tuple[dict[str, Any], Arrays]:
    """The ask as plain JSON values, and its parameters as the array ``w``."""
    plain = msgspec.to_builtins(_Ask(ask.wants, ask.batch, ask.sample, ask.local, ask.clip))
    return plain, {"w": ask.w}


def ask_in(plain: Any, arrays: Mapping[str, Array], model: Model) -> Ask:
    """What `ask_out` gave. Raises `BadTraining` for anything that a run of this model does not ask."""
    try:
        known = msgspec.convert(plain, _Ask)
    except msgspec.ValidationError as error:
        raise BadTraining(f"ask: {error}") from None
    w = arrays.get("w")
    if w is None:
        raise BadTraining("ask: it comes without the parameters w")
    model.layers(w)
    if sum(choice is not None for choice in (known.batch, known.sample, known.local)) > 1:
        raise BadTraining("ask: expected one of batch, sample and local")
    batch, local = known.batch, known.local
    if batch is not None and not (0 <= batch.index < batch.of and min(batch.seed, batch.epoch) >= 0):
        raise BadTraining(f"ask: there is no such batch: {batch}")
    if local is not None and not (local.epochs >= 1 and local.batch_rows >= 1 and min(local.seed, local.round) >= 0):
        raise BadTraining(f"ask: there is no such descent: {local}")
    if known.sample is not None and not (
        0 <= known.sample.rate <= 1 and min(known.sample.seed, known.sample.round) >= 0
    ):
        raise BadTraining(f"ask: there is no such sample: {known.sample}")
    if known.clip is not None and not known.clip > 0:
        raise BadTraining(f"ask: expected a clip above 0, got {known.clip}")
    return Ask(w, known.wants, batch, known.sample, local, known.clip)


def partial_out(partial: Partial) -> Arrays:
    """A partial as named arrays of plain data."""
    arrays: Arrays = {"counts": np.array([partial.rows, partial.parts], np.int64)}
    arrays |= {f"sums.{name}": array for name, array in partial.sums.arrays().items()}
    if partial.hessian is not None:
        arrays |= {f"hessian.{name}": array for name, array in partial.hessian.arrays().items()}
    return arrays


def partial_in(arrays: Mapping[str, Array]) -> Partial:
    """What `partial_out` gave. Raises `BadTraining` for anything that it cannot have been."""
    if set(arrays) not in (_SUMS, _SUMS | _HESSIAN):
        raise BadTraining(f"partial: expected the arrays {', '.join(sorted(_SUMS))}, got {', '.join(sorted(arrays))}")
    counts = arrays["counts"]
    if counts.dtype != np.int64 or counts.shape != (2,) or counts.min() < 0:
        raise BadTraining("partial: expected two counts as int64, none below 0")
    rows, parts = counts.tolist()
    groups = [
        from_arrays({"digits": arrays[f"{group}.digits"], "tops": arrays[f"{group}.tops"]}, parts)
        for group in ("sums", "hessian")
        if f"{group}.tops" in arrays
    ]
    return Partial(rows, groups[0], groups[1] if len(groups) == 2 else None)
