"""Counters: every change exactly once, whoever writes in between."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.sync.conftest import LIMIT_S, Program, program
from zkd.errors import BadRecord, LockTimeout, OutcomeLost
from zkd.zk.recipes import counters
from zkd.zk.server import EmbeddedServer, Op

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Programs = Callable[..., Awaitable[Program]]


async def test_all_that_is_added_by_all_is_there_once(programs: Programs) -> None:
    some = [await programs() for _ in range(4)]
    made = await asyncio.gather(*(one.recipes.counter("c").add() for one in some for _ in range(10)))
    assert sorted(made) == list(range(1, 41))  # and each got a number of its own
    assert await some[0].recipes.counter("c").get() == 40
    assert await some[1].recipes.counter("c").add(-50) == -10


async def test_compare_and_set(programs: Programs) -> None:
    one = (await programs()).recipes.counter("c")
    assert await one.get() == 0
    assert await one.compare_and_set(0, 5)
    assert not await one.compare_and_set(0, 6)
    assert await one.get() == 5


async def test_a_number_by_hand_is_a_counter_and_anything_else_is_refused(programs: Programs, zk_root: str) -> None:
    one = await programs()
    counter = one.recipes.counter("c")
    await counter.add()
    path = f"{zk_root}/sync/counters/c"
    await one.session.set(path, b" 41\n", -1)
    assert await counter.add() == 42
    await one.session.set(path, b"many", -1)
    with pytest.raises(BadRecord, match="expected a counter such as"):
        await counter.add()
    with pytest.raises(TypeError, match="expected an int, got '1'"):
        await counter.add("1")  # type: ignore[arg-type]
    await one.session.set(path, b"9223372036854775807", -1)
    with pytest.raises(ValueError, match="does not fit into 64 bits"):
        await counter.add()


@pytest.mark.parametrize("kind", ["before", "after"])
@pytest.mark.parametrize("op", [Op.CREATE2, Op.SET_DATA])
async def test_a_lost_answer_adds_once_whoever_wrote_since(embedded: EmbeddedServer, kind: str, op: Op) -> None:
    hosts = embedded.connect_string
    async with program(hosts, "/z") as one, program(hosts, "/z") as two:
        if op is Op.SET_DATA:
            await two.recipes.counter("c").add()
        before = await two.recipes.counter("c").get()
        await one.recipes.counter("other").add()  # the directory is there
        (embedded.cut_before if kind == "before" else embedded.cut_after)(op, path="/z/sync/counters/c")
        adding = asyncio.create_task(one.recipes.counter("c").add())
        while embedded.faults.has_cuts:
            await asyncio.sleep(0.001)
        for _ in range(3):  # others write before it can read back
            await two.recipes.counter("c").add()
        await adding
        assert await two.recipes.counter("c").get() == before + 4


async def test_a_lost_answer_is_resolved_in_the_next_session_too(embedded: EmbeddedServer) -> None:
    async with program(embedded.connect_string, "/z") as one:
        counter = one.recipes.counter("c")
        await counter.add()
        embedded.cut_after(Op.SET_DATA, path="/z/sync/counters")
        first = one.session.session_id
        adding = asyncio.create_task(counter.add())
        while embedded.faults.has_cuts:
            await asyncio.sleep(0.001)
        embedded.expire(first)
        assert await adding == 2
        assert await counter.get() == 2
        assert one.session.session_id != first


async def test_where_nobody_can_tell_any_more_it_is_said(
    embedded: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counters, "PROGRAMS_MAX", 2)
    hosts = embedded.connect_string
    async with program(hosts, "/z") as one, program(hosts, "/z") as two, program(hosts, "/z") as three:
        await one.recipes.counter("c").add()
        embedded.cut_after(Op.SET_DATA, path="/z/sync/counters")
        embedded_refuses_one = asyncio.create_task(one.recipes.counter("c").add())
        while embedded.faults.has_cuts:
            await asyncio.sleep(0.001)
        await asyncio.gather(two.recipes.counter("c").add(), three.recipes.counter("c").add())
        with pytest.raises(OutcomeLost, match="2 other programs wrote since"):
            await embedded_refuses_one
        assert await two.recipes.counter("c").get() == 4


async def test_an_outage_longer_than_the_deadline_is_told(embedded: EmbeddedServer) -> None:
    async with program(embedded.connect_string, "/z") as one:
        embedded.refuse()
        with pytest.raises(LockTimeout, match=r"counter c: not within 0\.05 s"):
            await one.recipes.counter("c").add(timeout_s=0.05)
        embedded.refuse(False)
        assert await one.recipes.counter("c").add(timeout_s=LIMIT_S) == 1
