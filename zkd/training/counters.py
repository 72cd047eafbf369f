"""A node's counters: the processes that compute what its parts contribute to rounds, started when there is something to
count, ended when there has been nothing for a minute.

    asked (zkd.training.answers) -> files of each part, verified -> a share for each counter -> partials, as they are

Each part sticks to one counter, which keeps its rows ready. A counter that dies is started again and given its shares
anew; one that neither computes nor reads is killed. What was read from files counts only if nobody has touched them
meanwhile. The daemon never looks into a question or a partial.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Final, Protocol

from structlog.typing import FilteringBoundLogger as Log

from zkd.core.dealing import dealt
from zkd.errors import DataDamaged, DataUnavailable
from zkd.holder.parts import Laid, Parts
from zkd.training.counting import Counter, Done, Share
from zkd.training.frames import Buffer

IDLE_S: Final = 60.0
LOOK_S: Final = 1.0
LAID_AT_ONCE: Final = 4  # parts whose files are compared at a time


@dataclass(eq=False)
class Source:
    """Columns of a dataset, and where their files lie. Shared by all that ask for the same."""

    number: int
    dataset: str  # NAME@V
    columns: tuple[str, ...]
    laid: dict[int, Laid] = field(default_factory=dict)
    counters: dict[int, int] = field(default_factory=dict)  # part -> which counter goes over it
    users: int = 0


@dataclass(eq=False)
class Subject:
    """What a coordinator's asks are about: a source, and what counters make of it, which may change."""

    number: int
    source: Source
    context: bytes


class Asker(Protocol):
    """Who hears what came of it; one of both, once."""

    def counted(self, partials: Sequence[Buffer]) -> None: ...
    def failed(self, why: str) -> None: ...


@dataclass(eq=False)
class Work:
    """One ask, on its way through the counters."""

    subject: Subject
    parts: Sequence[int]
    context: bytes
    question: bytes
    asker: Asker
    shares: dict[Counter, Share] = field(default_factory=dict)
    partials: dict[Counter, Buffer] = field(default_factory=dict)
    read: list[int] = field(default_factory=list)  # parts that were read from files for it
    lives: dict[int, Laid] = field(default_factory=dict)  # of its parts, as they were given to counters
    is_over: bool = False


class Counters:
    """`workers`: how many at most; `memory`: bytes of rows that they may keep, all together."""

    def __init__(self, parts: Parts, workers: int, memory: int, log: Log) -> None:
        self._parts = parts
        self._log = log
        self._counters = [Counter(number, memory // workers, log, self._told) for number in range(workers)]
        self._sources: dict[tuple[str, tuple[str, ...]], Source] = {}
        self._numbers = count(1)
        self._works: set[Work] = set()
        self._group: asyncio.TaskGroup | None = None
        self._idle_since: float | None = None
        self._is_closed = False
        self.rows = self.answered = self.refused = 0

    async def run(self) -> None:
        """Look after them. Ends only by cancellation, and then no counter is left."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                while True:
                    await asyncio.sleep(LOOK_S)
                    if not self._works and self._idle_since is not None and loop.time() - self._idle_since >= IDLE_S:
                        self._idle_since = None
                        for counter in self._counters:
                            counter.retire()
                    for counter in self._counters:
                        counter.look(loop.time())
        finally:
            self._group = None
            self.close("the node stops")
            await asyncio.gather(*(counter.gone() for counter in self._counters))  # in a second, or they are killed

    def close(self, why: str) -> None:
        """Nothing more is counted; what is asked for has failed."""
        self._is_closed = True
        for work in list(self._works):
            self._fail(work, why)
        for counter in self._counters:
            counter.retire()

    # --- What is asked about ----------------------------------------------------------------------------

    def subject(self, dataset: str, columns: Sequence[str], context: bytes) -> Subject:
        """To be given back by `let_go`."""
        key = dataset, tuple(columns)
        source = self._sources.setdefault(key, Source(next(self._numbers), *key))
        source.users += 1
        return Subject(next(self._numbers), source, context)

    def let_go(self, subject: Subject) -> None:
        """Nobody asks about it any more."""
        for work in [work for work in self._works if work.subject is subject]:
            self.forget(work)
        source = subject.source
        source.users -= 1
        for counter in self._counters:
            counter.end_subject(subject.number)
        if source.users == 0:
            del self._sources[source.dataset, source.columns]
            for counter in self._counters:
                counter.drop(source.number, None)

    # --- Asks -------------------------------------------------------------------------------------------

    def ask(self, subject: Subject, parts: Sequence[int], question: bytes, asker: Asker) -> Work:
        """Count these parts; the asker hears of it, unless it is forgotten. Never waits."""
        work = Work(subject, parts, subject.context, question, asker)
        if self._is_closed or self._group is None:
            asker.failed("the node stops")
            work.is_over = True
            return work
        self._works.add(work)
        self._idle_since = None
        laid = subject.source.laid
        if all(part in laid and self._parts.is_unchanged(laid[part].lives) for part in parts):
            self._deal(work)
        else:
            self._group.create_task(self._lay(work))
        return work

    def forget(self, work: Work) -> None:
        """Nobody waits for it any more: counters leave it after the part that they are at."""
        if not work.is_over:
            self._end(work)

    async def _lay(self, work: Work) -> None:
        """Find the files of its parts, compare them with their checksums, and go on."""
        source, turns = work.subject.source, asyncio.Semaphore(LAID_AT_ONCE)

        async def lay(part: int) -> None:
            async with turns:
                known = source.laid.get(part)
                if known is not None and self._parts.is_unchanged(known.lives):
                    return
                self._forget_part(source, part)
                manifest = await self._parts.manifest(source.dataset)
                strange = set(source.columns) - {column.name for column in manifest.columns}
                if strange:
                    raise DataUnavailable(f"{source.dataset} has no column {min(strange)!r}")
                source.laid[part] = await self._parts.lay(manifest, part, source.columns, None)

        try:
            async with asyncio.TaskGroup() as group:
                for part in work.parts:
                    group.create_task(lay(part))
        except* (DataUnavailable, DataDamaged, OSError) as errors:
            self._fail(work, str(errors.exceptions[0]))
        if not work.is_over:
            self._deal(work)

    def _deal(self, work: Work) -> None:
        """A share for each counter. All files are known."""
        source = work.subject.source
        missing = [part for part in work.parts if part not in source.laid]
        if missing:  # gone again, while others were looked for
            self._fail(work, f"part {missing[0]} of {source.dataset} is not on this node any more")
            return
        work.lives = {part: source.laid[part] for part in work.parts}
        rows = {part: laid.rows for part, laid in work.lives.items()}
        chosen = dealt(rows, source.counters, len(self._counters))
        for part, number in chosen.items():
            before = source.counters.get(part, number)
            if before != number:
                self._counters[before].drop(source.number, [part])
        source.counters |= chosen
        shares: dict[int, list[int]] = {}
        for part in work.parts:
            shares.setdefault(chosen[part], []).append(part)
        assert self._group is not None
        for number, own in shares.items():
            work.shares[self._counters[number]] = Share(
                next(self._numbers),
                work,
                work.subject.number,
                work.context,
                source.number,
                own,
                {part: work.lives[part] for part in own},
                work.question,
            )
        for counter, share in work.shares.items():
            counter.take(share, self._group)

    def _told(self, counter: Counter, share: Share, done: Done) -> None:
        """A counter has done its share, or cannot."""
        work = share.work
        assert isinstance(work, Work)
        for part in done.lacking:
            self._forget_part(work.subject.source, part)
        if work.is_over:
            return
        if done.partial is None:
            self._fail(work, done.why)
            return
        work.partials[counter] = done.partial
        work.read += done.read
        if len(work.partials) < len(work.shares):
            return
        if work.read:
            assert self._group is not None
            self._group.create_task(self._check_and_answer(work))
        else:
            self._answer(work)

    async def _check_and_answer(self, work: Work) -> None:
        """What was read from files counts if these are what they were before."""
        for part in work.read:
            doubt = await self._parts.doubt(work.lives[part].lives)
            if doubt is not None:
                self._forget_part(work.subject.source, part)
                self._fail(work, doubt)
                return
        self._answer(work)

    def _answer(self, work: Work) -> None:
        if work.is_over:
            return
        for part, laid in work.lives.items():
            if not self._parts.is_unchanged(laid.lives):
                self._forget_part(work.subject.source, part)
                self._fail(work, f"part {part} of {work.subject.source.dataset} is not on this node any more")
                return
        self.answered += 1
        self.rows += sum(laid.rows for laid in work.lives.values())
        self._end(work)
        work.asker.counted([work.partials[counter] for counter in work.shares])

    def _fail(self, work: Work, why: str) -> None:
        if not work.is_over:
            self.refused += 1
            self._log.warning("ask.failed", dataset=work.subject.source.dataset, error=why)
            self._end(work)
            work.asker.failed(why)

    def _end(self, work: Work) -> None:
        work.is_over = True
        self._works.discard(work)
        for counter, share in work.shares.items():
            if counter not in work.partials:
                counter.forget(share)
        if not self._works:
            self._idle_since = asyncio.get_running_loop().time()

    def _forget_part(self, source: Source, part: int) -> None:
        """What counters have of it came from files that are not believed any more, or not here."""
        source.laid.pop(part, None)
        if part in source.counters:
            self._counters[source.counters[part]].drop(source.number, [part])

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        yield "zkd_counters", {}, sum(counter.is_alive for counter in self._counters)
        yield "zkd_counters_died_total", {}, sum(counter.died for counter in self._counters)
        yield "zkd_asks_total", {"outcome": "answered"}, self.answered
        yield "zkd_asks_total", {"outcome": "failed"}, self.refused
        yield "zkd_rows_counted_total", {}, self.rows
