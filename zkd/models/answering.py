"""A counter's side of one job: it is told contexts, is given parts, and answers questions about them.

    desk = Desk(memory=1 << 30)
    desk.told(context)                            raises BadRecord
    for part in parts:
        if part not in desk:
            desk.take(part, columns)              name -> array, for all of `desk.columns`; raises for no values in them
    answer = desk.answer(question, parts)         raises BadRecord for a question that does not fit

No I/O: whoever owns the desk finds the parts' files, and drops parts that are asked of others. Arrays may be memory
maps; they are gone over in blocks. The same parts give the same bits wherever they are counted and however they are
shared out, as long as a part's rows come in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from zkd.arrays.tensors import Bytes
from zkd.errors import BadRecord, BadRows, BadTraining
from zkd.models.answers import Answer, Straddle, answer_out, refusal_out
from zkd.models.binned import Binned, add
from zkd.models.exchange import (
    Context,
    Rounds,
    Shuffles,
    Split,
    Spreads,
    Survey,
    asked,
    context_id,
    context_in,
    question_in,
)
from zkd.models.fit import RawPart
from zkd.models.folding import is_foldable
from zkd.models.importance import permuted_losses
from zkd.models.model import Vector
from zkd.models.partials import partial_of
from zkd.models.rows import Array, Mask, Rows, rows_of, stacked
from zkd.models.split import content_hashes, held_out, splitmix64
from zkd.models.spread import merge_spreads, spread
from zkd.models.survey import Glance, Label, encode, glance, merge_glances
from zkd.tables.hashing import hash_column, is_utf8

MEMORY: Final = 0  # bytes for rows made ready; without any, each round converts them anew


@dataclass
class _Part:
    """A part as it was stored, why it cannot be trained on, if so, and its rows made ready for these classes."""

    raw: RawPart
    fault: str = ""
    classes: tuple[Label, ...] | None = None
    rows: Rows | None = None
    is_own: bool = False  # whether `rows` has nothing of the arrays in `raw`
    is_tried: bool = False  # whether there was memory for that is known
    kept: int = field(default=0)  # bytes, at most, of `rows` that are not those of `raw`


class Desk:
    """What a counter keeps of one job. `memory` bounds the bytes of features that are copied to be quicker."""

    def __init__(self, memory: int = MEMORY) -> None:
        self.memory = memory
        self._context: Context | None = None
        self._context_id = ""
        self._parts: dict[int, _Part] = {}
        self._at = 0  # the part that is gone over now
        self.went_over: set[int] = set()  # parts of the last question whose arrays were read, as they were taken

    # --- what it is told ------------------------------------------------------------------------------

    def told(self, context: Bytes) -> None:
        """What the next questions are about. Parts stay, where their columns do. Raises `BadRecord`."""
        name = context_id(context)
        if name == self._context_id:
            return
        new, old = context_in(context), self._context
        if old is not None and (new.features, new.target, new.weight, new.split, new.tells_classes) != (
            old.features,
            old.target,
            old.weight,
            old.split,
            old.tells_classes,
        ):
            self._parts.clear()
        for part in self._parts.values():
            part.is_tried = False
        self._context, self._context_id = new, name

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a part has to come with."""
        context = self._known()
        key = None if context.split is None else context.split.key
        more = (context.target, context.weight, key)
        return tuple(dict.fromkeys([*context.features, *(name for name in more if name is not None)]))

    def __contains__(self, part: object) -> bool:
        return part in self._parts

    @property
    def parts(self) -> tuple[int, ...]:
        return tuple(self._parts)

    @property
    def kept(self) -> int:
        """Bytes of what was made of parts, beside their own arrays."""
        return sum(part.kept for part in self._parts.values())

    def take(self, part: int, columns: Mapping[str, Array]) -> None:
        """A part's columns, all rows in the order stored. What is wrong with the values is told by its answers."""
        context = self._known()
        features = [columns[name] for name in context.features]
        raw = RawPart(features, columns[context.target], None if context.weight is None else columns[context.weight])
        taken = _Part(raw)
        if context.split is not None:
            try:
                taken.raw = replace(raw, held_out=_held_out(context.split, features, columns))
            except (BadTraining, BadRows) as error:
                taken.fault = str(error)
        self._parts[part] = taken

    def drop(self, part: int) -> None:
        self._parts.pop(part, None)

    # --- what it is asked -----------------------------------------------------------------------------

    def answer(self, question: Bytes, parts: Sequence[int], before: Callable[[int], None] = lambda part: None) -> bytes:
        """The sums over these parts, none twice. `before` is called with each part before it is gone over, in ascending
        order, and may be again: it may take that part, and drop others, so that not all have to be here at once.

        That a part cannot be trained on is an answer, too, which ends the job. Raises `BadRecord` for a question that
        is none, or is about another context than the last one told; and whatever `before` raises.
        """
        context = self._known()
        name, about, arrays = question_in(question)
        if name != self._context_id:
            raise BadRecord("$.context", f"this was told {self._context_id}, and is asked about {name}")
        numbers = sorted(parts)
        counted = Answer(np.array(numbers, np.int64))
        self._at = numbers[0]
        self.went_over.clear()
        try:
            if isinstance(about, Survey):
                glances = merge_glances(_glance(context, part.raw) for part in self._each(numbers, before))
                return answer_out(replace(counted, glance=glances))
            found = context.found
            if found is None:
                raise BadRecord("$.about", "expected a survey, as long as nothing is known of the data")

            def ready() -> Iterator[tuple[int, Rows]]:
                for part in self._each(numbers, before):
                    yield self._at, self._ready(part, found.classes)

            if isinstance(about, Spreads):
                told = replace(counted, spread=merge_spreads(spread(rows, found) for _, rows in ready()))
                if about.straddle is not None:
                    told = replace(told, straddle=_straddle(about.straddle, (rows for _, rows in ready())))
                return answer_out(told)
            if context.model is None:
                raise BadRecord("$.about", "expected a survey or a spread, as long as there is no model")
            if isinstance(about, Rounds):
                ask = asked(about, arrays, context.model)
                return answer_out(replace(counted, partial=partial_of(context.model, ask, ready(), context.scaler)))
            return answer_out(replace(counted, losses=add(_shuffled(context, about, arrays, ready()))))
        except BadTraining as error:
            return refusal_out(self._at, str(error))

    def _each(self, numbers: Sequence[int], before: Callable[[int], None]) -> Iterator[_Part]:
        for self._at in numbers:
            before(self._at)
            part = self._parts[self._at]
            if part.fault:
                raise BadTraining(part.fault)
            self.went_over.add(self._at)
            yield part

    def _known(self) -> Context:
        if self._context is None:
            raise BadRecord("$.context", "nothing was told yet")
        return self._context

    def _ready(self, part: _Part, classes: tuple[Label, ...]) -> Rows:
        if part.rows is None or part.classes != classes:
            raw = part.raw
            target = encode(raw.target, classes) if classes else raw.target
            part.rows = rows_of(raw.columns, target, weight=raw.weight, held_out=raw.held_out)
            vectors = 17 if raw.weight is None else 25  # bytes a row: target, twice, held out; weight
            part.classes, part.is_own, part.is_tried, part.kept = classes, False, False, vectors * len(part.rows)
        if part.is_own:
            self.went_over.discard(self._at)
        elif not part.is_tried and self._gains(part.rows):
            part.is_tried = True
            size = 8 * len(part.rows) * (part.rows.features + 1)
            if self.kept + size <= self.memory:
                part.rows, part.is_own, part.kept = _own(stacked(part.rows)), True, part.kept + size
        return part.rows

    def _gains(self, rows: Rows) -> bool:
        """Whether blocks are cut more quickly from one matrix than from these columns."""
        context = self._known()
        model, scaler = context.model, context.scaler
        is_uncopied = model is not None and model.intercept and (scaler is None or is_foldable(model, scaler))
        return is_uncopied or len(rows.columns) > 1 or rows.columns[0].dtype != np.float64


def _own(rows: Rows) -> Rows:
    """The rows without anything of the arrays that they were taken from: a vector more, beside a matrix."""
    return replace(rows, target=rows.target.copy(), weight=None if rows.weight is None else rows.weight.copy())


def _held_out(split: Split, features: Sequence[Array], columns: Mapping[str, Array]) -> Mask:
    hashes = content_hashes(features) if split.key is None else hash_column(columns[split.key])
    return held_out(hashes, split.share, seed=split.seed)


def _glance(context: Context, raw: RawPart) -> Glance:
    seen = glance(
        raw.columns, raw.target, tells_classes=context.tells_classes, weight=raw.weight, held_out=raw.held_out
    )
    for label, _, _ in seen.labels:
        if isinstance(label, str) and not is_utf8(label):
            raise BadTraining(f"target: {label!a} is no text, it has half a letter; write it anew")
    return seen


def _straddle(each: int, parts: Iterable[Rows]) -> Straddle:
    """Of each so manieth hash of features: those of training rows, and those of held-out rows with their numbers."""
    trained, held = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
    for rows in parts:
        if rows.held_out is not None and len(rows):
            hashes = content_hashes(rows.columns)
            chosen = splitmix64(hashes) % np.uint64(each) == 0
            trained.append(hashes[chosen & ~rows.held_out])
            held.append(hashes[chosen & rows.held_out])
    values, counts = np.unique(np.concatenate(held), return_counts=True)
    return Straddle(np.unique(np.concatenate(trained)), values, counts.astype(np.int64))


def _shuffled(
    context: Context, about: Shuffles, arrays: Mapping[str, Array], ready: Iterable[tuple[int, Rows]]
) -> list[Binned]:
    assert context.model is not None
    w = arrays.get("w")
    if w is None or about.seed < 0:
        raise BadRecord("$.about", "expected the parameters w, and a seed of 0 or more")
    try:
        context.model.layers(w)
    except BadTraining as error:
        raise BadRecord("$.w", str(error)) from None
    at: Vector = w.copy()
    return [
        permuted_losses(context.model, at, rows, context.scaler, part=part, seed=about.seed) for part, rows in ready
    ]
