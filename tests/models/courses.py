"""Whole training jobs without nodes: courses answered by desks, over real data sets kept as datasets' parts are."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from tests.models.data import loaded
from zkd.jobs import Job
from zkd.manifests import Column, Manifest
from zkd.models.answering import Desk
from zkd.models.course import Course, begin
from zkd.models.fit import RawPart


@dataclass(frozen=True)
class Table:
    """A dataset: its manifest, and the columns of each part."""

    manifest: Manifest
    parts: tuple[dict[str, Any], ...]


def table(columns: dict[str, Any], *, parts: int = 8, key: str | None = None, label: str | None = "y") -> Table:
    """Rows dealt out to parts one by one; the last part stays empty, as parts by hash sometimes do."""
    described = [Column(name, array.dtype.str, list(array.shape[1:])) for name, array in columns.items()]
    rows = len(next(iter(columns.values())))
    manifest = Manifest(
        name="d",
        version=3,
        parts=parts,
        replicas=1,
        columns=described,
        rows=rows,
        size=0,
        chunks=[],
        key=key,
        label=label,
    )
    full = max(parts - 1, 1)
    dealt = [
        {
            name: np.ascontiguousarray(array[number::full] if number < full else array[:0])
            for name, array in columns.items()
        }
        for number in range(parts)
    ]
    return Table(manifest, tuple(dealt))


def real(name: str, *, parts: int = 8, labels: Sequence[Any] | None = None) -> Table:
    """A real data set: a column for each of its first features, one for all others together, a key, the target."""
    x, y, _, _ = loaded(name)
    narrow = {f"x{place}": np.ascontiguousarray(x[:, place]) for place in range(3)}
    target = y if labels is None else np.array(labels)[y]
    return table({"id": np.arange(len(x)) * 7, **narrow, "rest": x[:, 3:], "y": target}, parts=parts, key="id")


def numbers(rows: int = 60, seed: int = 0) -> dict[str, Any]:
    """Columns that say nothing about their labels."""
    rng = np.random.default_rng(seed)
    return {"a": rng.standard_normal(rows), "b": rng.standard_normal(rows), "y": rng.integers(0, 2, rows)}


def job(model: str, **terms: Any) -> Job:
    """As it is read from a znode."""
    return msgspec.convert({"model": model, "dataset": "d", **terms}, Job)


class Counters:
    """Desks that share the parts of a table out at random, anew for each question, and cut their answers at random."""

    def __init__(self, kept: Table, count: int = 3, seed: int = 0, memory: int = 1 << 20) -> None:
        self.kept = kept
        self.desks = [Desk(memory if number % 2 else 0) for number in range(count)]
        self.rng = random.Random(seed)
        self.questions = 0

    def answers(self, course: Course) -> list[bytes]:
        self.questions += 1
        numbers = list(range(len(self.kept.parts)))
        self.rng.shuffle(numbers)
        cuts = sorted(self.rng.sample(range(1, len(numbers)), min(len(numbers) - 1, self.rng.randint(0, 4))))
        answers = []
        for start, stop in zip([0, *cuts], [*cuts, len(numbers)], strict=True):
            desk = self.rng.choice(self.desks)
            desk.told(course.context)
            for number in numbers[start:stop]:
                if number not in desk:
                    desk.take(number, {name: self.kept.parts[number][name] for name in desk.columns})
            answers.append(desk.answer(course.question, numbers[start:stop]))
        return answers

    def run(self, course: Course) -> Course:
        while not course.is_over:
            course = course.told(self.answers(course))
        return course


def done(kept: Table, **terms: Any) -> Course:
    """A whole job, by three counters."""
    return Counters(kept).run(begin(job(**terms), kept.manifest))


def raw_parts(kept: Table, features: Sequence[str], masks: Sequence[Any] | None = None) -> list[RawPart]:
    """The same parts for `zkd.models.fit`."""
    return [
        RawPart([part[name] for name in features], part["y"], held_out=None if masks is None else masks[number])
        for number, part in enumerate(kept.parts)
    ]
