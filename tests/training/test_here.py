"""Promises of a coordinator's link to its own node: the same as over a wire, with real counters behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.training.shelf import Problem, counting, shelved
from tests.training.test_counters import parts_of
from zkd.net.round_frames import Overtaken, Term
from zkd.training.answers import Answers
from zkd.training.counters import Counters
from zkd.training.here import HereLink

PARTS = parts_of(3)


class Coordinator:
    """What comes over its links."""

    def __init__(self) -> None:
        self.came: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue()

    def link(self, answers: Answers, fence: int = 1) -> HereLink:
        put = self.came.put_nowait
        return HereLink(
            answers,
            Term("j", 7, fence),
            "n1",
            answered=lambda *said: put(("answered", *said)),
            failed=lambda *said: put(("failed", *said)),
            lost=lambda *said: put(("lost", *said)),
        )

    async def next(self) -> tuple[Any, ...]:
        async with asyncio.timeout(20):
            return await self.came.get()


@asynccontextmanager
async def node(directory: Path) -> AsyncIterator[tuple[Counters, Answers, Problem]]:
    async with shelved(directory) as shelf, counting(shelf) as (counters, answers):
        await shelf.put("d", PARTS)
        yield counters, answers, Problem(PARTS)


async def test_what_is_asked_here_is_answered_as_over_a_wire(tmp_path: Path) -> None:
    async with node(tmp_path) as (counters, answers, problem), asyncio.TaskGroup() as group:
        coordinator = Coordinator()
        link = coordinator.link(answers)
        await link.connect(*problem.said())
        running = group.create_task(link.run())
        link.ask(3, 4, [0, 2], problem.question(1))
        link.ask(3, 5, [1], b"no question")
        link.ask(3, 6, [1], problem.question(1))
        first, bad, last = sorted([await coordinator.next() for _ in range(3)], key=lambda said: said[3])
        assert first[:5] == ("answered", "n1", 3, 4, [0, 2])
        assert bad[:4] == ("failed", "n1", 3, 5)
        problem.check([*map(bytes, first[5]), *map(bytes, last[5])], range(3), 1)
        running.cancel()
        await asyncio.wait({running})
        assert coordinator.came.empty(), "who leaves has lost nobody"
        assert not counters._sources, "and is waited for by no counter"


async def test_a_later_coordinator_puts_this_one_out_and_nothing_more_is_answered(tmp_path: Path) -> None:
    async with node(tmp_path) as (_, answers, problem), asyncio.TaskGroup() as group:
        old, new = Coordinator(), Coordinator()
        deposed = old.link(answers, fence=3)
        await deposed.connect(*problem.said())
        running = group.create_task(deposed.run())
        deposed.ask(1, 0, [0, 1, 2], problem.question(0))
        link = new.link(answers, fence=4)
        await link.connect(*problem.said())
        assert await old.next() == ("lost", "n1", "a later coordinator has come, or the same anew")
        await asyncio.wait({running})
        deposed.ask(1, 1, [0], problem.question(0))
        link.ask(1, 0, [0, 1, 2], problem.question(0))
        assert (await new.next())[0] == "answered"
        assert old.came.empty()
        with pytest.raises(Overtaken, match="fence 4"):
            await old.link(answers, fence=3).connect(*problem.said())


async def test_a_node_that_stops_hangs_up_here_too(tmp_path: Path) -> None:
    async with node(tmp_path) as (_, answers, problem), asyncio.TaskGroup() as group:
        coordinator = Coordinator()
        link = coordinator.link(answers)
        await link.connect(*problem.said())
        group.create_task(link.run())
        answers.close("the node stops")
        assert await coordinator.next() == ("lost", "n1", "the node stops")
        late = coordinator.link(answers)
        await late.connect(*problem.said())
        await late.run()
        assert await coordinator.next() == ("lost", "n1", "the node stops")
