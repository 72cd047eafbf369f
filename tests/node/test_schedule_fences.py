"""Schedulers that should not be: two at once, and one whose epoch is over. No daemon around them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import pytest

from zkd import log
from zkd.core.clock import ServerClock
from zkd.node.scheduler import Scheduler
from zkd.paths import Paths, leaf
from zkd.zk import Check, Event, Session, ensure_path
from zkd.zk.server import EmbeddedServer

EVERY_SECOND = b'{"every_s": 1, "task": {"kernel": "k"}}'


@dataclass
class Bench:
    """A tree, sessions on it, and somebody who takes away each task as soon as it is dropped."""

    server: EmbeddedServer
    stack: AsyncExitStack
    group: asyncio.TaskGroup
    paths: Paths = field(default_factory=lambda: Paths("/zkd"))
    dropped: Counter[str] = field(default_factory=Counter)
    seen: asyncio.Event = field(default_factory=asyncio.Event)

    async def session(self) -> Session:
        session = await self.stack.enter_async_context(Session(self.server.connect_string, timeout_s=10.0))
        await session.connected(10.0)
        return session

    async def consume(self) -> None:
        session = await self.session()
        for path in self.paths.skeleton():
            await ensure_path(session, path)
        await session.create(self.paths.epoch)

        def saw(event: Event) -> None:
            if event.type.name == "CREATED" and event.path.startswith(f"{self.paths.tasks}/"):
                self.dropped[leaf(event.path)] += 1
                self.seen.set()
                self.group.create_task(session.delete(event.path, -1))

        await session.add_watch(self.paths.tasks, saw, recursive=True)
        await session.create(self.paths.schedule("s"), EVERY_SECOND)

    async def scheduler(self, epoch: int = 0, late_ms: int = 0) -> asyncio.Task[None]:
        """One that believes in this epoch, running, with a clock that is so late."""
        session, clock = await self.session(), ServerClock()
        stat = await session.set(self.paths.results, b"", -1)
        clock.observe(stat.mtime - late_ms, asyncio.get_running_loop().time(), stat.mzxid)
        work = Scheduler(session, self.paths, clock, log.get(node="x"))
        return self.group.create_task(work.run(session.session_id, Check(self.paths.epoch, epoch)))

    async def until_dropped(self, count: int) -> None:
        async with asyncio.timeout(20.0):
            while len(self.dropped) < count:
                self.seen.clear()
                await self.seen.wait()


@pytest.fixture
async def bench(embedded: EmbeddedServer) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        bench = Bench(embedded, stack, group)
        await bench.consume()
        yield bench


async def test_two_that_fire_at_once_drop_each_slot_once(bench: Bench) -> None:
    """Neither knows of the other. When the second comes the task is gone: only the version of the state says so."""
    both = [await bench.scheduler(), await bench.scheduler(late_ms=300)]
    await bench.until_dropped(4)
    for work in both:
        work.cancel()
    assert set(bench.dropped.values()) == {1}


async def test_one_whose_epoch_is_over_drops_nothing_and_ends(bench: Bench) -> None:
    old = await bench.scheduler()
    await bench.until_dropped(1)
    session = await bench.session()
    await session.set(bench.paths.epoch, b"", 0)
    before = set(bench.dropped)
    async with asyncio.timeout(5.0):
        await old
    assert set(bench.dropped) == before
    new = await bench.scheduler(epoch=1)
    await bench.until_dropped(len(before) + 1)
    new.cancel()
    assert set(bench.dropped.values()) == {1}
