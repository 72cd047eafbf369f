"""What a course tells and asks its counters, as bytes; `answers` has what comes back.

    context     what questions are about: the columns, who is held out, and what is known of the data by now
    question    survey | spread | round | importance, with the parameters it is about

Both are containers of `zkd.arrays.tensors`. A context is sent once, a question each round, so a question only names its
context. Whatever comes in is checked as data from anybody, and raises `BadRecord`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec
import numpy as np
from blake3 import blake3

from zkd.arrays.tensors import Bytes, pack, unpack
from zkd.errors import BadRecord, BadTraining
from zkd.models.messages import ask_in, ask_out
from zkd.models.model import Kind, Model, TargetMean, Vector
from zkd.models.partials import Ask
from zkd.models.rows import Array, Scaler
from zkd.models.survey import Findings

Arrays: TypeAlias = dict[str, Array]

VERSION = 1


class Split(msgspec.Struct, frozen=True):
    """Rows held out by a hash of `key`, or of all features where that is None."""

    share: float
    seed: int
    key: str | None


@dataclass(frozen=True, slots=True)
class Context:
    """What questions are about. `found` is known after the survey, `model` (and `scaler`, if any) after the spread."""

    kind: Kind
    features: tuple[str, ...]  # columns, not single features
    width: int  # single features
    target: str
    weight: str | None
    tells_classes: bool
    split: Split | None
    found: Findings | None = None
    model: Model | None = None
    scaler: Scaler | None = None


class Survey(msgspec.Struct, frozen=True, tag="survey", tag_field="is"):
    """The first look at the data: `zkd.models.survey`."""


class Spreads(msgspec.Struct, frozen=True, tag="spread", tag_field="is"):
    """The second: `zkd.models.spread`. With `straddle`, also of each so manieth hash of rows' features: who has it."""

    straddle: int | None = None


class Rounds(msgspec.Struct, frozen=True, tag="round", tag_field="is"):
    """A round of training, or a Hessian after it."""

    ask: Any


class Shuffles(msgspec.Struct, frozen=True, tag="importance", tag_field="is"):
    """Permutation importance: `zkd.models.importance`."""

    seed: int


About: TypeAlias = Survey | Spreads | Rounds | Shuffles


class _Question(msgspec.Struct, frozen=True):
    context: str
    about: About


class _Context(msgspec.Struct, frozen=True):
    version: int
    kind: Kind
    features: list[str]
    width: int
    target: str
    weight: str | None
    tells_classes: bool
    split: Split | None
    found: tuple[int, int, float, TargetMean] | None
    classes: list[bool | int | float | str]
    model: Model | None


# --- Contexts -----------------------------------------------------------------------------------------


def context_out(context: Context) -> bytes:
    arrays: Arrays = {}
    found, model = context.found, context.model
    if found is not None:
        arrays |= {"mean": found.mean, "least": found.least, "most": found.most}
    if context.scaler is not None:
        arrays |= {"scaler.mean": context.scaler.mean, "scaler.scale": context.scaler.scale}
    plain = _Context(
        VERSION,
        context.kind,
        list(context.features),
        context.width,
        context.target,
        context.weight,
        context.tells_classes,
        context.split,
        None if found is None else (found.rows, found.training_rows, found.weight, found.target),
        [] if found is None else list(found.classes),
        model,
    )
    return pack(arrays, {"context": msgspec.json.encode(plain).decode()})


def context_in(data: Bytes) -> Context:
    """What `context_out` gave. Raises `BadRecord`."""
    arrays, texts = unpack(data)
    plain = text_in(texts, "context", _Context)
    if plain.version != VERSION:
        raise BadRecord("$.context", f"expected version {VERSION}, got {plain.version}: nodes run different zkd's")
    found = scaler = None
    width = (plain.width,)
    if plain.found is not None:
        mean, least, most = (vector_in(arrays, name, width) for name in ("mean", "least", "most"))
        rows, training_rows, weight, target = plain.found
        found = Findings(rows, training_rows, weight, mean, least, most, tuple(plain.classes), target)
    if "scaler.scale" in arrays:
        scaler = Scaler(vector_in(arrays, "scaler.mean", width), vector_in(arrays, "scaler.scale", width))
    return Context(
        plain.kind,
        tuple(plain.features),
        plain.width,
        plain.target,
        plain.weight,
        plain.tells_classes,
        plain.split,
        found,
        plain.model,
        scaler,
    )


def context_id(data: Bytes) -> str:
    return blake3(data).hexdigest()[:32]


# --- Questions ----------------------------------------------------------------------------------------


def question_out(context: str, about: Survey | Spreads | Ask | tuple[Vector, int]) -> bytes:
    """A question in the context of this id. A vector and a seed ask for the importance of features there."""
    arrays: Arrays = {}
    if isinstance(about, Ask):
        plain, arrays = ask_out(about)
        about = Rounds(plain)  # type: ignore[assignment]
    elif isinstance(about, tuple):
        arrays, about = {"w": about[0]}, Shuffles(about[1])  # type: ignore[assignment]
    return pack(arrays, {"question": msgspec.json.encode(_Question(context, about)).decode()})  # type: ignore[arg-type]


def question_in(data: Bytes) -> tuple[str, About, Arrays]:
    """The id of its context, what it is about, and its arrays. Raises `BadRecord`."""
    arrays, texts = unpack(data)
    plain = text_in(texts, "question", _Question)
    if isinstance(plain.about, Spreads) and not 0 < (plain.about.straddle or 1) < 1 << 63:
        raise BadRecord("$.about.straddle", f"expected 1 or more, got {plain.about.straddle}")
    return plain.context, plain.about, arrays


def asked(about: Rounds, arrays: Mapping[str, Array], model: Model) -> Ask:
    """The ask of a round. Its parameters are a copy, so that they lie in memory as in any other process."""
    try:
        return ask_in(about.ask, {name: array.copy() for name, array in arrays.items()}, model)
    except BadTraining as error:
        raise BadRecord("$.about.ask", str(error)) from None


# --- Checks -------------------------------------------------------------------------------------------


def vector_in(arrays: Mapping[str, Array], name: str, shape: tuple[int, ...]) -> Vector:
    vector: Vector = array_in(arrays, name, np.float64, shape)
    return vector


def array_in(arrays: Mapping[str, Array], name: str, dtype: Any, shape: tuple[int, ...]) -> Any:
    array = arrays.get(name)
    if array is None or array.dtype != dtype or array.shape != shape:
        got = "none" if array is None else f"{array.dtype} {array.shape}"
        raise BadRecord(f"$.{name}", f"expected {np.dtype(dtype)} {shape}, got {got}")
    return array


def text_in(texts: Mapping[str, str], name: str, kind: Any) -> Any:
    try:
        return msgspec.json.decode(texts.get(name, ""), type=kind)
    except (msgspec.DecodeError, BadTraining, RecursionError) as error:
        raise BadRecord(f"$.{name}", str(error)[:500]) from None
