"""What counters answer a course, as bytes, and which answers together are those of all parts.

    answer      the parts that it counts, and their sums; or why these parts cannot be trained on

Containers of `zkd.arrays.tensors`, checked as data from anybody. What is damaged, or is not what was asked for, raises
`BadAnswers`, and can be asked for again; that parts cannot be trained on is a `BadTraining`, and final.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import msgspec
import numpy as np

from zkd.arrays.tensors import Bytes, pack, unpack
from zkd.errors import BadAnswers, BadRecord, BadTraining
from zkd.models.binned import Binned, from_arrays
from zkd.models.exchange import Arrays, Context, array_in, text_in, vector_in
from zkd.models.messages import partial_in, partial_out
from zkd.models.partials import HEAD, Partial
from zkd.models.rows import Array
from zkd.models.spread import BINS, Spread, told_apart
from zkd.models.survey import Glance

AnswerKind: TypeAlias = Literal["survey", "spread", "round", "importance"]

WORDS_MAX = 2000  # of why a part cannot be trained on


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
    if len(numbers) == parts and np.array_equal(np.sort(numbers), np.arange(parts)):
        return
    times = np.bincount(numbers[(numbers >= 0) & (numbers < parts)], minlength=parts)
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
        counts = array_in(arrays, "counts", kind_of_counts, shape).astype(np.int64)
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
    known = text_in(texts, "labels", list[bool | int | float | str])
    labels = array_in(arrays, "labels", np.int64, (len(known), 2)).tolist()
    rows, training_rows, bad = array_in(arrays, "counts", np.int64, (3,)).tolist()
    target_least, target_most = vector_in(arrays, "target", (2,)).tolist()
    return Glance(
        rows,
        training_rows,
        array_in(arrays, "not_finite", np.int64, (width,)),
        vector_in(arrays, "least", (width,)),
        vector_in(arrays, "most", (width,)),
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
        array_in(arrays, "straddle.trained", np.uint64, (trained.size,)),
        array_in(arrays, "straddle.held", np.uint64, (held.size,)),
        array_in(arrays, "straddle.counts", np.int64, (held.size,)),
    )


def _sums_out(sums: Binned) -> Arrays:
    return {f"sums.{name}": array for name, array in sums.arrays().items()}


def _sums_in(arrays: Mapping[str, Array], count: int, size: int) -> Binned:
    if "sums.digits" not in arrays or "sums.tops" not in arrays:
        raise BadRecord("$.sums", "expected digits and tops")
    array_in(arrays, "sums.tops", np.int16, (size,))
    return from_arrays({"digits": arrays["sums.digits"], "tops": arrays["sums.tops"]}, count)
