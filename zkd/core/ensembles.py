"""Several models asked as one: whose votes there are, and what they say together.

    mean        numbers: their mean; classes: the class with the highest mean probability
    weighted    the same with a weight a member, of those that voted
    vote        classes: the label with the most votes (or weight); equal ones go to the member that was named first

Whoever did not answer in time has no weight. So an answer can differ from the one that all members would have given;
it always says who voted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Raw, Struct

from zkd.core.registry import split_ref
from zkd.errors import BadRecord
from zkd.registry import ClassLabel

MEMBERS_MAX = 16
CELLS_MAX = 200_000  # numbers that are put together for one request: some 40 ms of the daemon's time

Combine: TypeAlias = Literal["mean", "weighted", "vote"]


class EnsembleRequest(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The body of ``POST /v1/ensembles/predict``."""

    members: Annotated[list[str], Meta(min_length=1, max_length=MEMBERS_MAX)]
    rows: Raw
    combine: Combine = "mean"
    weights: list[Annotated[float, Meta(ge=0)]] | None = None
    quorum: Annotated[int, Meta(ge=1)] | None = None  # None: more than half
    missing: Literal["refuse", "propagate"] = "refuse"
    deadline_ms: Annotated[float, Meta(gt=0)] | None = None
    key: Annotated[str, Meta(max_length=256)] | None = None

    @property
    def votes_needed(self) -> int:
        return len(self.members) // 2 + 1 if self.quorum is None else self.quorum


class Vote(Struct, frozen=True):
    """What a member answered: a prediction a row, and probabilities in the order of `classes` if it has some."""

    prediction: Sequence[Any]
    probabilities: Sequence[Sequence[float]] | None = None
    classes: Sequence[ClassLabel] | None = None


class Combined(Struct, frozen=True, omit_defaults=True):
    prediction: list[Any]
    probabilities: list[list[float]] | None = None
    classes: list[ClassLabel] | None = None


def expect_sound(request: EnsembleRequest) -> None:
    """Raises `BadRecord` for what cannot be asked."""
    for member in request.members:
        split_ref(member)
    count = len(request.members)
    if len(set(request.members)) < count:
        raise BadRecord("$.members", "expected each member once")
    if request.votes_needed > count:
        raise BadRecord("$.quorum", f"expected at most the number of members, {count}, got {request.quorum}")
    if (request.weights is None) == (request.combine == "weighted"):
        said = "weights go with it" if request.weights is None else "expected none"
        if request.combine != "vote":
            raise BadRecord("$.weights", f"combine is {request.combine}: {said}")
    if request.weights is not None:
        if len(request.weights) != count:
            raise BadRecord("$.weights", f"expected one a member, {count}, got {len(request.weights)}")
        if not (all(map(math.isfinite, request.weights)) and sum(request.weights) > 0):
            raise BadRecord("$.weights", "expected finite numbers, and one of them above 0")


def combined(votes: Mapping[str, Vote], request: EnsembleRequest) -> Combined:
    """What those that voted say together. Raises `BadRecord` if what they say cannot be put together."""
    given = request.weights or [1.0] * len(request.members)
    weights = {member: weight for member, weight in zip(request.members, given, strict=True) if member in votes}
    total = sum(weights.values())
    if not total > 0:
        raise BadRecord("$.weights", f"expected a weight above 0 for one of those that voted: {', '.join(weights)}")
    rows = {member: len(votes[member].prediction) for member in weights}
    if len(set(rows.values())) > 1:
        raise BadRecord("$.rows", f"expected as many answers of each member, got {rows}")
    cells = sum(
        len(vote.prediction) * len(vote.probabilities[0] if vote.probabilities else (0,)) for vote in votes.values()
    )
    if cells > CELLS_MAX:
        raise BadRecord("$.rows", f"expected at most {CELLS_MAX} numbers to put together, got {cells}; send fewer rows")
    has_classes = {member: votes[member].classes is not None for member in weights}
    if len(set(has_classes.values())) > 1:
        odd = ", ".join(member for member, has in has_classes.items() if not has)
        raise BadRecord("$.members", f"expected models of classes, or of numbers: {odd} predicts numbers")
    if request.combine == "vote":
        return _voted(votes, weights)
    return _mean_class(votes, weights, total) if all(has_classes.values()) else _mean(votes, weights, total)


def _mean(votes: Mapping[str, Vote], weights: Mapping[str, float], total: float) -> Combined:
    columns = [(votes[member].prediction, weight) for member, weight in weights.items() if weight > 0]
    return Combined(
        [
            math.fsum(weight * values[row] for values, weight in columns) / total
            if all(values[row] is not None for values, _ in columns)
            else None  # propagated: a missing feature
            for row in range(len(columns[0][0]))
        ]
    )


def _mean_class(votes: Mapping[str, Vote], weights: Mapping[str, float], total: float) -> Combined:
    first = next(iter(weights))
    classes = list(votes[first].classes or ())
    tables: list[tuple[Sequence[Sequence[float | None]], list[int], float]] = []
    for member, weight in weights.items():
        vote = votes[member]
        if vote.probabilities is None:
            raise BadRecord("$.combine", f"{member} tells no probabilities: expected vote")
        theirs = [_typed(label) for label in vote.classes or ()]
        if sorted(theirs) != sorted(map(_typed, classes)):
            raise BadRecord("$.members", f"expected the same classes of {member} as of {first}")
        tables.append((vote.probabilities, [theirs.index(_typed(label)) for label in classes], weight))
    prediction: list[Any] = []
    means: list[list[float]] = []
    for row in range(len(votes[first].prediction)):
        terms = [
            [weight * _number(table[row][place]) for place in order] for table, order, weight in tables if weight > 0
        ]
        mean = [math.fsum(column) / total for column in zip(*terms, strict=True)]
        means.append(mean)
        prediction.append(None if math.isnan(mean[0]) else classes[mean.index(max(mean))])
    return Combined(prediction, means, classes)


def _voted(votes: Mapping[str, Vote], weights: Mapping[str, float]) -> Combined:
    first = next(iter(weights))
    if votes[first].classes is None:
        raise BadRecord("$.combine", "vote is for models of classes: expected mean or weighted")
    prediction: list[Any] = []
    for row in range(len(votes[first].prediction)):
        counts: dict[tuple[str, str], float] = {}
        labels: dict[tuple[str, str], ClassLabel | None] = {}
        for member, weight in weights.items():
            label = votes[member].prediction[row]
            counts[_typed(label)] = counts.get(_typed(label), 0.0) + weight
            labels.setdefault(_typed(label), label)
        most = max(counts.values())
        prediction.append(next(labels[each] for each, count in counts.items() if count >= most - 1e-12))
    return Combined(prediction)


def _typed(label: object) -> tuple[str, str]:
    """A label with its type: true is not 1."""
    return type(label).__name__, str(label)


def _number(value: float | None) -> float:
    return math.nan if value is None else value
