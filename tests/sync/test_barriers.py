"""Barriers: nobody passes a closed one, everybody passes an open one, and who meets goes in and out together."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.sync.conftest import LIMIT_S, Program, program, until
from zkd.errors import LockLost, LockTimeout, TermsDisagree
from zkd.zk.server import EmbeddedServer, Op

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Programs = Callable[..., Awaitable[Program]]


async def test_a_gate_holds_up_all_until_it_is_opened(programs: Programs) -> None:
    one, two = await programs(), await programs()
    await two.recipes.barrier("b").wait(timeout_s=LIMIT_S)  # nobody closed it
    await one.recipes.barrier("b").close()
    await two.recipes.barrier("b").close()  # twice is once
    with pytest.raises(LockTimeout):
        await two.recipes.barrier("b").wait(timeout_s=0.02)
    waiting = [asyncio.create_task(two.recipes.barrier("b").wait(timeout_s=LIMIT_S)) for _ in range(5)]
    await asyncio.sleep(0)
    await one.recipes.barrier("b").open()
    await one.recipes.barrier("b").open()
    await asyncio.gather(*waiting)


async def meet(one: Program, count: int, log: list[str], name: str) -> None:
    async with one.recipes.double_barrier("d", count=count, timeout_s=LIMIT_S):
        log.append(f"in {name}")
    log.append(f"out {name}")


async def test_all_go_in_and_out_together_again_and_again(programs: Programs) -> None:
    some = [await programs() for _ in range(3)]
    for _ in range(3):
        log: list[str] = []
        await asyncio.gather(*(meet(one, 3, log, str(number)) for number, one in enumerate(some)))
        assert sorted(log[:3]) == ["in 0", "in 1", "in 2"]
        assert sorted(log[3:]) == ["out 0", "out 1", "out 2"]
    assert await has_members(some[0], 0)


async def test_those_beyond_the_number_meet_next(programs: Programs) -> None:
    some = [await programs() for _ in range(2)]
    entered: list[int] = []
    ended: list[int] = []

    async def meet_once(one: Program) -> None:
        async with one.recipes.double_barrier("d", count=2, timeout_s=LIMIT_S) as barrier:
            assert ended.count(barrier.round - 1) == (2 if barrier.round > 1 else 0)  # none before the former is over
            entered.append(barrier.round)
            await asyncio.sleep(0)
            ended.append(barrier.round)

    async with asyncio.TaskGroup() as group:
        for number in range(6):
            group.create_task(meet_once(some[number % 2]))
    assert sorted(entered) == [1, 1, 2, 2, 3, 3]


async def test_who_comes_alone_is_told_in_time_and_does_not_count_any_more(programs: Programs) -> None:
    one, two = await programs(), await programs()
    with pytest.raises(LockTimeout):
        await one.recipes.double_barrier("d", count=2, timeout_s=0.05).enter()
    with pytest.raises(LockTimeout):
        await two.recipes.double_barrier("d", count=2, timeout_s=0.05).enter()


async def test_numbers_that_disagree_are_an_error_that_says_both(programs: Programs) -> None:
    one, two = await programs(), await programs()
    waiting = asyncio.create_task(one.recipes.double_barrier("d", count=2).enter())
    await until(lambda: has_members(two, 1))
    with pytest.raises(TermsDisagree, match=r"count of 3 as we were told to, .* says 2"):
        await two.recipes.double_barrier("d", count=3).enter()
    assert await has_members(two, 1)
    waiting.cancel()
    await until(lambda: has_members(two, 0))
    with pytest.raises(ValueError, match="expected an int from 1 to 1000, got 0"):
        one.recipes.double_barrier("d", count=0)


async def has_members(one: Program, count: int) -> bool:
    return len(await one.recipes.line("double-barriers", "d")) == count


async def test_who_dies_inside_has_left_and_is_told_so(embedded: EmbeddedServer) -> None:
    hosts = embedded.connect_string
    async with program(hosts, "/z") as one, program(hosts, "/z") as two:
        first, second = (p.recipes.double_barrier("d", count=2, timeout_s=LIMIT_S) for p in (one, two))
        await asyncio.gather(first.enter(), second.enter())
        leaving = asyncio.create_task(first.leave())
        await until(lambda: has_members(one, 1))
        embedded.expire(two.session.session_id)
        await leaving
        await two.session.connected(LIMIT_S)
        with pytest.raises(LockLost, match="the others took us for gone"):
            await second.leave()


@pytest.mark.parametrize("op", [Op.CREATE2, Op.SET_DATA, Op.GET_DATA, Op.GET_CHILDREN2])
@pytest.mark.parametrize("kind", ["before", "after"])
async def test_a_cut_at_any_step_changes_nothing(embedded: EmbeddedServer, op: Op, kind: str) -> None:
    hosts = embedded.connect_string
    async with program(hosts, "/z") as one, program(hosts, "/z") as two:
        first, second = (p.recipes.double_barrier("d", count=2, timeout_s=LIMIT_S) for p in (one, two))
        entering = asyncio.create_task(first.enter())
        await until(lambda: has_members(one, 1))
        (embedded.cut_before if kind == "before" else embedded.cut_after)(op, path="/z/sync/double-barriers/d")
        await asyncio.gather(entering, second.enter())
        assert first.round == second.round == 1
        await asyncio.gather(first.leave(), second.leave())
        await until(lambda: has_members(one, 0))
