"""What a course and its counters send each other, as bytes: contexts, questions, answers.

    context     what questions are about: the columns, who is held out, and what is known of the data by now
    question    survey | spread | round | importance, with the parameters it is about
    answer      the parts that it counts, and their sums; or why these parts cannot be trained on

All are containers of `zkd.arrays.tensors`. A context is sent once, a question each round, so a question only names its
context. Whatever comes in is checked as data from anybody: questions raise `BadRecord`, answers `BadAnswers`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np
from blake3 import blake3

from zkd.arrays.tensors import Bytes, pack, unpack
from zkd.errors import BadAnswers, BadRecord, BadTraining
from zkd.models.binned import Binned, from_arrays
from zkd.models.messages import ask_in, ask_out, partial_in, partial_out
from zkd.models.model import Kind, Model, TargetMean, Vector
from zkd.models.partials import HEAD, Ask, Partial
from zkd.models.rows import Array, Scaler
from zkd.models.spread import BINS, Spread, told_apart
from zkd.models.survey import Findings, Glance

Arrays: TypeAlias = dict[str, Array]

VERSION = 1
WORDS_MAX = 2000  # of why a part cannot be trained on


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
AnswerKind: TypeAlias = Literal["survey", "spread", "round", "importance"]


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


@dataclass(frozen=True, slots=True)
class Straddle:
    """Hashes of features, a sample of them, ascending: those of training rows, those of held-out rows and how many."""

    trained: Array  # uint64
    held: Array  # uint64
    counts: Array  # int64


@dataclass(frozen=True, slots=True)
class Answer:
    """`parts` ascending. One of the others is there, according to the question."""

    parts: Array
    glance: Glance | None = None
    spread: Spread | None = None
    straddle: Straddle | None = None
    partial: Partial | None = None
    losses: Binned | None = None


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
    plain = _decoded(texts, "context", _Context)
    if plain.version != VERSION:
        raise BadRecord("$.context", f"expected version {VERSION}, got {plain.version}: nodes run different zkd's")
    found = scaler = None
    width = (plain.width,)
    if plain.found is not None:
        mean, least, most = (_vector(arrays, name, width) for name in ("mean", "least", "most"))
        rows, training_rows, weight, target = plain.found
        found = Findings(rows, training_rows, weight, mean, least, most, tuple(plain.classes), target)
    if "scaler.scale" in arrays:
        scaler = Scaler(_vector(arrays, "scaler.mean", width), _vector(arrays, "scaler.scale", width))
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
    plain = _decoded(texts, "question", _Question)
    if isinstance(plain.about, Spreads) and not 0 < (plain.about.straddle or 1) < 1 << 63:
        raise BadRecord("$.about.straddle", f"expected 1 or more, got {plain.about.straddle}")
    return plain.context, plain.about, arrays


def asked(about: Rounds, arrays: Mapping[str, Array], model: Model) -> Ask:
    """The ask of a round. Its parameters are a copy, so that they lie in memory as in any other process."""
    try:
        return ask_in(about.ask, {name: array.copy() for name, array in arrays.items()}, model)
    except BadTraining as error:
        raise BadRecord("$.about.ask", str(error)) from None


# --- Answers ------------------------------------------------------------------------------------------


def refusal_out(part: int, why: str) -> bytes:
    """That a part cannot be trained on: this ends the job, with these words."""
    return pack({"parts": np.array([part], np.int64)}, {"answer": "refused", "why": why[:WORDS_MAX]})


def answer_out(answer: Answer) -> bytes:
    arrays: Arrays = {"parts": answer.parts}
    texts: dict[str, str] = {}
    kind: AnswerKind
    if answer.glance is not None:
        kind, glance = "survey", answer.glance
        arrays |= {
            "counts": np.array([glance.rows, glance.training_rows, glance.target_bad], np.int64),
            "not_finite": glance.not_finite,
            "least": glance.least,
            "most": glance.most,
            "target": np.array([glance.target_least, glance.target_most]),
            "labels": np.array([label[1:] for label in glance.labels], np.int64).reshape(-1, 2),
        } | _sums_out(glance.sums)
        texts["labels"] = msgspec.json.encode([label for label, _, _ in glance.labels]).decode()
    elif answer.spread is not None:
        kind = "spread"
        counts = answer.spread.counts
        arrays["counts"] = counts.astype(np.uint32) if counts.max(initial=0) < 1 << 32 else counts
        arrays |= _sums_out(answer.spread.sums)
        if answer.straddle is not None:
            own = answer.straddle
            arrays |= {"straddle.trained": own.trained, "straddle.held": own.held, "straddle.counts": own.counts}
    elif answer.partial is not None:
        kind = "round"
        arrays |= partial_out(answer.partial)
    else:
        assert answer.losses is not None
        kind = "importance"
        arrays |= _sums_out(answer.losses)
    return pack(arrays, {"answer": kind} | texts)


def answers_in(answers: Sequence[Bytes], kind: AnswerKind, parts: int, context: Context) -> list[Answer]:
    """Answers that together count the parts from 0 up to `parts`, each exactly once.

    Raises `BadAnswers` for any others; `BadTraining` with the words of a counter that found parts it cannot go on with.
    """
    read, refused = [], list[tuple[int, str]]()
    for data in answers:
        try:
            arrays, texts = unpack(data)
            numbers = _counted(arrays)
            if texts.get("answer") == "refused":
                refused.append((int(numbers[0]), texts.get("why", "no reason was given")))
                continue
            if texts.get("answer") != kind:
                raise BadAnswers(f"expected an answer to a {kind}, got {texts.get('answer', 'nothing')[:40]!r}")
            read.append(_answer(kind, numbers, arrays, texts, context))
        except (BadRecord, BadTraining) as error:
            raise BadAnswers(f"an answer to a {kind} is damaged, or of another zkd: {error}") from None
    if refused:
        part, why = min(refused)
        raise BadTraining(f"{why} (part {part})")
    _refuse_other_parts([answer.parts for answer in read], parts)
    return read


def _refuse_other_parts(counted: Iterable[Array], parts: int) -> None:
    numbers = np.concatenate([np.zeros(0, np.int64), *counted])
    times = np.bincount(numbers[(numbers >= 0) & (numbers < parts)], minlength=parts)
    if len(numbers) == parts and np.all(times == 1):
        return
    missing, twice = np.flatnonzero(times == 0).tolist(), np.flatnonzero(times > 1).tolist()
    raise BadAnswers(
        f"expected {parts} parts, each once; got {len(numbers)}, without {missing[:8]}, several times {twice[:8]}"
    )


def _counted(arrays: Mapping[str, Array]) -> Array:
    numbers = arrays.get("parts")
    if numbers is None or numbers.dtype != np.int64 or numbers.ndim != 1 or not numbers.size:
        raise BadRecord("$.parts", "expected the numbers of one part or more")
    return numbers


def _answer(
    kind: AnswerKind, numbers: Array, arrays: Mapping[str, Array], texts: Mapping[str, str], context: Context
) -> Answer:
    count, width = len(numbers), context.width
    if kind == "survey":
        return Answer(numbers, glance=_glance(arrays, texts, count, width))
    if kind == "spread":
        assert context.found is not None
        kind_of_counts = np.int64 if arrays.get("counts", numbers).dtype == np.int64 else np.uint32
        shape = (width, BINS, told_apart(width, len(context.found.classes)))
        counts = _array(arrays, "counts", kind_of_counts, shape).astype(np.int64)
        seen = Spread(_sums_in(arrays, count, 2 * width + 1), counts)
        return Answer(numbers, spread=seen, straddle=_straddle(arrays))
    assert context.model is not None
    if kind == "importance":
        return Answer(numbers, losses=_sums_in(arrays, count, 2 + width))
    partial = partial_in({name: array for name, array in arrays.items() if name != "parts"})
    if partial.parts != count:
        raise BadRecord("$.counts", f"expected sums over {count} parts, got {partial.parts}")
    size = context.model.size
    if partial.sums.tops.size not in (HEAD, HEAD + size):
        raise BadRecord("$.sums", f"expected {HEAD} sums, or {size} more, got {partial.sums.tops.size}")
    if partial.hessian is not None and partial.hessian.tops.size != size * (size + 1) // 2:
        raise BadRecord("$.hessian", f"expected the upper half of {size} x {size}, got {partial.hessian.tops.size}")
    return Answer(numbers, partial=partial)


def _glance(arrays: Mapping[str, Array], texts: Mapping[str, str], count: int, width: int) -> Glance:
    known = _decoded(texts, "labels", list[bool | int | float | str])
    labels = _array(arrays, "labels", np.int64, (len(known), 2)).tolist()
    rows, training_rows, bad = _array(arrays, "counts", np.int64, (3,)).tolist()
    target_least, target_most = _vector(arrays, "target", (2,)).tolist()
    return Glance(
        rows,
        training_rows,
        _array(arrays, "not_finite", np.int64, (width,)),
        _vector(arrays, "least", (width,)),
        _vector(arrays, "most", (width,)),
        _sums_in(arrays, count, 2 + width),
        tuple((label, *counts) for label, counts in zip(known, labels, strict=True)),
        bad,
        target_least,
        target_most,
    )


def _straddle(arrays: Mapping[str, Array]) -> Straddle | None:
    if "straddle.held" not in arrays:
        return None
    trained, held = arrays.get("straddle.trained", np.empty(0)), arrays["straddle.held"]
    return Straddle(
        _array(arrays, "straddle.trained", np.uint64, (trained.size,)),
        _array(arrays, "straddle.held", np.uint64, (held.size,)),
        _array(arrays, "straddle.counts", np.int64, (held.size,)),
    )


def _sums_out(sums: Binned) -> Arrays:
    return {f"sums.{name}": array for name, array in sums.arrays().items()}


def _sums_in(arrays: Mapping[str, Array], count: int, size: int) -> Binned:
    if "sums.digits" not in arrays or "sums.tops" not in arrays:
        raise BadRecord("$.sums", "expected digits and tops")
    _array(arrays, "sums.tops", np.int16, (size,))
    return from_arrays({"digits": arrays["sums.digits"], "tops": arrays["sums.tops"]}, count)


def _vector(arrays: Mapping[str, Array], name: str, shape: tuple[int, ...]) -> Vector:
    vector: Vector = _array(arrays, name, np.float64, shape)
    return vector


def _array(arrays: Mapping[str, Array], name: str, dtype: Any, shape: tuple[int, ...]) -> Any:
    array = arrays.get(name)
    if array is None or array.dtype != dtype or array.shape != shape:
        got = "none" if array is None else f"{array.dtype} {array.shape}"
        raise BadRecord(f"$.{name}", f"expected {np.dtype(dtype)} {shape}, got {got}")
    return array


def _decoded(texts: Mapping[str, str], name: str, kind: Any) -> Any:
    try:
        return msgspec.json.decode(texts.get(name, ""), type=kind)
    except (msgspec.DecodeError, BadTraining, RecursionError) as error:
        raise BadRecord(f"$.{name}", str(error)[:500]) from None
