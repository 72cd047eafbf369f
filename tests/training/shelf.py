"""A node's half of a training job without a cluster: datasets in a real segment store, counters as real processes.

The coordinator is the test.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.store.made import Made, put
from zkd import log as zkd_log
from zkd.core.atlas import Atlas, Dataset
from zkd.core.datasets import Edition
from zkd.holder.parts import Parts
from zkd.manifests import Column, Manifest, SegmentRef
from zkd.models import exchange
from zkd.models.answers import answers_in
from zkd.models.exchange import Survey
from zkd.models.model import Model
from zkd.models.partials import Ask as AskOfParts
from zkd.models.partials import Partial, merge, partial_of
from zkd.models.rows import Scaler, rows_of
from zkd.models.survey import conclude, encode, glance, merge_glances
from zkd.net.round_frames import Ask, Context, Term
from zkd.store import SegmentCache, SegmentStore, segment_files
from zkd.training.answers import Answers, Visit
from zkd.training.counters import Counters

Columns = Mapping[str, Any]


@dataclass
class Shelf:
    """Datasets on this node. `parts[n]` are the columns of part n, one dict a segment."""

    directory: Path
    store: SegmentStore
    atlas: Atlas
    files: Parts
    made: dict[int, list[Made]] = field(default_factory=dict)

    async def put(self, name: str, parts: Sequence[Sequence[Columns]], version: int = 1, **fields: Any) -> None:
        sample = next(segment for part in parts for segment in part)
        described = [
            Column(each, str(np.asarray(values).dtype.str), list(np.shape(values)[1:]))
            for each, values in sample.items()
        ]
        refs: list[tuple[SegmentRef, ...]] = []
        for number, part in enumerate(parts):
            self.made[number] = [await self._segment(described, segment) for segment in part]
            refs.append(tuple(made.ref for made in self.made[number]))
        flat = [ref for part in refs for ref in part]
        manifest = Manifest(
            name=name,
            version=version,
            parts=len(parts),
            replicas=1,
            columns=described,
            rows=sum(ref.rows for ref in flat),
            size=sum(ref.size for ref in flat),
            chunks=[],
            **fields,
        )
        dataset = self.atlas.datasets.setdefault(name, Dataset())
        dataset.current = version
        dataset.editions[version] = Edition(manifest, tuple(refs))

    async def _segment(self, described: list[Column], columns: Columns) -> Made:
        arrays = [np.asarray(columns[column.name], column.dtype) for column in described]
        rows = len(arrays[0])
        directory = self.directory / f"made-{os.urandom(6).hex()}"
        values = [np.arange(rows, dtype="<i8"), *arrays]
        ref = segment_files.write(directory, rows, described, [[array.tobytes()] for array in values])
        names = ["segment.json", "rows.npy", *(f"{number}.npy" for number in range(len(described)))]
        made = Made(ref, directory, {each: (directory / each).read_bytes() for each in names})
        await put(self.store, made)
        return made

    def file(self, part: int, column: int, segment: int = 0) -> Path:
        return self.store.path(self.made[part][segment].id) / f"{column}.npy"


@asynccontextmanager
async def shelved(directory: Path) -> AsyncIterator[Shelf]:
    store, atlas = SegmentStore(directory / "node"), Atlas()

    async def look_up(name: str) -> None:
        """There is no tree to look into."""

    files = Parts(atlas, store, look_up, SegmentCache(directory / "node"), lambda: ())
    yield Shelf(directory, store, atlas, files)


class Caller:
    """The other end of the link, as `zkd.net.round_routes.Caller`: what was said, by round and ask."""

    def __init__(self) -> None:
        self.said: dict[tuple[int, int], list[bytes] | str] = {}
        self.why = ""
        self._came = asyncio.Event()

    def answer(self, number: int, ask: int, parts: Sequence[int], partials: Sequence[Any]) -> None:
        assert (number, ask) not in self.said
        self.said[number, ask] = [bytes(partial) for partial in partials]
        self._came.set()

    def failed(self, number: int, ask: int, why: str) -> None:
        assert (number, ask) not in self.said
        self.said[number, ask] = why
        self._came.set()

    def hang_up(self, why: str) -> None:
        self.why = self.why or why

    async def heard(self, number: int, ask: int = 0, within_s: float = 20.0) -> list[bytes] | str:
        async with asyncio.timeout(within_s):
            while (number, ask) not in self.said:
                self._came.clear()
                await self._came.wait()
        return self.said[number, ask]

    async def partials(self, number: int, ask: int = 0) -> list[bytes]:
        heard = await self.heard(number, ask)
        assert not isinstance(heard, str), heard
        return heard

    async def words(self, number: int, ask: int = 0, within_s: float = 20.0) -> str:
        heard = await self.heard(number, ask, within_s)
        assert isinstance(heard, str), "it was answered"
        return heard


@asynccontextmanager
async def counting(shelf: Shelf, workers: int = 1, memory: int = 1 << 28) -> AsyncIterator[tuple[Counters, Answers]]:
    counters = Counters(shelf.files, workers, memory, zkd_log.get())
    async with asyncio.TaskGroup() as group:
        running = group.create_task(counters.run())
        await asyncio.sleep(0)
        yield counters, Answers(counters)
        running.cancel()


@dataclass
class Problem:
    """A model over a dataset's parts, and what its partials have to be."""

    parts: Sequence[Sequence[Columns]]
    features: Sequence[str] = ("x",)
    kind: Any = "logistic"
    dataset: str = "d@1"
    split: exchange.Split | None = None

    def __post_init__(self) -> None:
        whole = [{name: np.concatenate([part[name] for part in each]) for name in each[0]} for each in self.parts]
        self.columns = [*self.features, "y", *([self.split.key] if self.split and self.split.key else [])]
        classes = self.kind in ("logistic", "softmax", "svm")
        features = [[np.asarray(part[name]) for name in self.features] for part in whole]
        seen = merge_glances(
            glance(x, part["y"], tells_classes=classes, weight=None, held_out=None)
            for x, part in zip(features, whole, strict=True)
        )
        found = conclude(self.kind, seen)
        width = len(found.mean)
        self.model: Model = found.model(self.kind)
        self.scaler = Scaler(found.mean, np.full(width, 2.0))
        base = exchange.Context(
            self.kind, tuple(self.features), width, "y", None, classes, self.split, None, None, None
        )
        self.early = exchange.context_out(base)
        self.context = exchange.context_out(
            exchange.Context(
                self.kind, tuple(self.features), width, "y", None, classes, self.split, found, self.model, self.scaler
            )
        )
        self.rows = [
            rows_of(x, encode(part["y"], found.classes) if classes else part["y"])
            for x, part in zip(features, whole, strict=True)
        ]

    def said(self, context: bytes | None = None) -> tuple[Context, bytes]:
        return Context(self.dataset, list(self.columns)), self.context if context is None else context

    def survey(self) -> bytes:
        return exchange.question_out(exchange.context_id(self.early), Survey())

    def question(self, seed: int = 0, **ask: Any) -> bytes:
        return exchange.question_out(exchange.context_id(self.context), self.ask(seed, **ask))

    def ask(self, seed: int = 0, **ask: Any) -> AskOfParts:
        return AskOfParts(np.random.default_rng(seed).normal(size=self.model.size), **ask)

    def expected(self, parts: Sequence[int], seed: int = 0, **ask: Any) -> Partial:
        numbered = [(part, self.rows[part]) for part in parts]
        return partial_of(self.model, self.ask(seed, **ask), numbered, self.scaler)

    def check(self, partials: Sequence[bytes], parts: Sequence[int], seed: int = 0, **ask: Any) -> None:
        """That these are the partials of exactly these parts, to the last bit."""
        answers = answers_in(partials, "round", len(parts), _known(self.context))
        assert sorted(part for answer in answers for part in answer.parts.tolist()) == sorted(parts)
        got = merge(answer.partial for answer in answers if answer.partial is not None)
        wanted = self.expected(sorted(parts), seed, **ask)
        assert got.rows == wanted.rows
        assert np.array_equal(got.sums.value(), wanted.sums.value())


def _known(context: bytes) -> exchange.Context:
    return exchange.context_in(context)


def visit(answers: Answers, problem: Problem, fence: int = 1, life: int = 1) -> tuple[Visit, Caller]:
    caller = Caller()
    visit = answers.receive(Term("j", life, fence), caller)  # type: ignore[arg-type]
    visit.context(*problem.said())
    return visit, caller


def ask(visit: Visit, number: int, parts: Sequence[int], question: bytes, ask: int = 0) -> None:
    visit.ask(Ask(number, ask, list(parts)), question)
