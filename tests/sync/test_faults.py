"""Connections cut before and after a commit, sessions that expire or fall silent: what is held, and what is left."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.faults.proxy import Proxy
from tests.sync.conftest import LIMIT_S, Program, program, until
from zkd.errors import LockLost, LockTimeout, MultiFailed, NoNode
from zkd.zk import Create, State
from zkd.zk.server import EmbeddedServer, Op

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from zkd.zk.recipes import Held

ROOT = "/z"
LOCKS = f"{ROOT}/sync/locks"


def made(
    server: EmbeddedServer | Proxy, timeout_s: float = 6.0, who: str = "test"
) -> AbstractAsyncContextManager[Program]:
    return program(server.connect_string, ROOT, timeout_s=timeout_s, who=who)


async def names(one: Program, directory: str = f"{LOCKS}/a") -> list[str]:
    await one.session.connected(LIMIT_S)
    try:
        return await one.session.children(directory)
    except NoNode:
        return []


async def is_empty(one: Program) -> bool:
    return await names(one) == []


@pytest.mark.parametrize("kind", ["before", "after"])
@pytest.mark.parametrize("op", [Op.CREATE2, Op.GET_CHILDREN2, Op.GET_DATA, Op.DELETE])
async def test_a_cut_at_any_step_costs_neither_the_lock_nor_an_orphan(
    embedded: EmbeddedServer, kind: str, op: Op
) -> None:
    async with made(embedded) as one, made(embedded) as two:
        async with two.recipes.lock("a"):
            pass  # the directory is there
        cut = embedded.cut_before if kind == "before" else embedded.cut_after
        if op is Op.DELETE:
            held = await one.recipes.lock("a").hold()
            cut(op, path=LOCKS)
        else:
            cut(op, path=LOCKS)
            held = await one.recipes.lock("a", timeout_s=LIMIT_S).hold()
            assert len(await names(two)) == 1
            assert held.is_sure
        await held.release()
        async with two.recipes.lock("a", timeout_s=LIMIT_S) as theirs:
            assert theirs.fence > held.fence
        await until(lambda: is_empty(two))
        assert not embedded.faults.has_cuts


@pytest.mark.parametrize("kind", ["before", "after"])
async def test_who_gives_up_while_the_connection_is_cut_leaves_no_orphan(embedded: EmbeddedServer, kind: str) -> None:
    async with made(embedded) as one, made(embedded) as two, two.recipes.lock("a"):
        (embedded.cut_before if kind == "before" else embedded.cut_after)(Op.CREATE2, path=LOCKS)
        wish = asyncio.create_task(one.recipes.lock("a").hold())
        await until(lambda: not embedded.faults.has_cuts)
        wish.cancel()
        await asyncio.wait([wish])
        await until(lambda: one.recipes._leftovers.count == 0)
        assert len(await names(two)) == 1


async def hold_for_ever(one: Program, future: asyncio.Future[Held], until_: str = "doubt") -> None:
    async with one.recipes.lock("a", timeout_s=LIMIT_S, until=until_) as held:  # type: ignore[arg-type]
        future.set_result(held)
        await asyncio.Event().wait()


async def holding(one: Program, until_: str = "doubt") -> tuple[Held, asyncio.Task[None]]:
    future: asyncio.Future[Held] = asyncio.get_running_loop().create_future()
    block = asyncio.create_task(hold_for_ever(one, future, until_))
    return await future, block


async def test_a_lost_connection_makes_unsure_and_ends_nothing(embedded: EmbeddedServer) -> None:
    async with made(embedded, 20.0) as one:
        held, block = await holding(one)
        embedded.refuse()
        await until(lambda: one.session.state is State.SUSPENDED)
        assert not held.is_sure
        assert not held.is_lost
        assert held.reason == "the session is suspended"
        with pytest.raises(LockLost):
            held.require_sure()
        embedded.refuse(False)
        await until(lambda: held.is_sure)
        assert not block.done()
        block.cancel()
        await asyncio.wait([block])
        assert await names(one) == []


async def test_the_block_ends_in_doubt_before_another_can_hold(embedded: EmbeddedServer) -> None:
    loop = asyncio.get_running_loop()
    async with Proxy(embedded.port) as road, made(road, 2.0) as one, made(embedded) as two:
        held, block = await holding(one)
        next_one = asyncio.create_task(two.recipes.lock("a", timeout_s=LIMIT_S).hold())
        await until(lambda: length_is(two, 2))
        road.black_hole()
        ended_at = loop.create_future()
        block.add_done_callback(lambda _: ended_at.set_result(loop.time()))
        theirs = await next_one
        taken_at = loop.time()
        assert not held.is_sure
        assert await ended_at < taken_at
        with pytest.raises(LockLost, match="the session is unknown"):
            await block
        assert theirs.fence > held.fence
        road.heal()


async def length_is(one: Program, length: int) -> bool:
    return len(await names(one)) == length


async def test_who_fences_may_go_on_in_doubt_and_is_told_of_the_loss(embedded: EmbeddedServer) -> None:
    async with Proxy(embedded.port) as road, made(road, 2.0) as one, made(embedded) as two:
        held, block = await holding(one, "lost")
        road.black_hole()
        theirs = await two.recipes.lock("a", timeout_s=LIMIT_S).hold()
        assert not block.done()  # nobody could tell it
        assert not held.is_sure  # but it knows that it does not know
        road.heal()
        with pytest.raises(LockLost, match="session has expired"):
            await block
        assert theirs.is_sure


async def test_expiry_ends_the_block_and_a_new_lock_is_another_one(embedded: EmbeddedServer) -> None:
    async with made(embedded) as one:
        held, block = await holding(one)
        embedded.expire(one.session.session_id)
        with pytest.raises(LockLost, match="session has expired"):
            await block
        await one.session.connected(LIMIT_S)
        async with one.recipes.lock("a", timeout_s=LIMIT_S) as again:
            assert again.fence > held.fence
            assert again.is_sure
            assert not held.is_sure  # whatever the session is now


async def test_a_block_that_ends_as_the_lock_is_lost_is_told(embedded: EmbeddedServer) -> None:
    async def brief(one: Program) -> None:
        async with one.recipes.lock("a"):
            embedded.expire(one.session.session_id)
            while one.session.state is not State.EXPIRED:
                try:
                    await asyncio.sleep(0)
                except asyncio.CancelledError:
                    return  # a block that keeps the cancellation to itself

    async with made(embedded) as one:
        task = asyncio.create_task(brief(one))
        with pytest.raises(LockLost):
            await task
        assert not task.cancelled()


async def test_a_cancellation_from_outside_stays_one(embedded: EmbeddedServer) -> None:
    async with made(embedded) as one:
        _, block = await holding(one)
        embedded.expire(one.session.session_id)
        block.cancel()
        await asyncio.wait([block])
        assert block.cancelled()
        try:
            async with asyncio.timeout(0.01):
                async with one.recipes.lock("b", timeout_s=LIMIT_S):
                    await asyncio.Event().wait()
        except TimeoutError:
            pass
        else:
            raise AssertionError("the timeout was swallowed")


async def test_a_waiter_goes_on_in_its_next_session(embedded: EmbeddedServer) -> None:
    async with made(embedded) as one, made(embedded) as two:
        async with two.recipes.lock("a"):
            wish = asyncio.create_task(one.recipes.lock("a", timeout_s=LIMIT_S).hold())
            await until(lambda: length_is(two, 2))
            before = sorted(await names(two), key=lambda name: name[-10:])[1]
            embedded.expire(one.session.session_id)
            await until(lambda: is_other(two, before))
        held = await wish
        assert held.session_id == one.session.session_id
        assert held.is_sure


async def is_other(one: Program, before: str) -> bool:
    now = await names(one)
    return len(now) == 2 and before not in now


async def test_a_waiter_whose_deadline_passes_in_an_outage_is_told_in_time(embedded: EmbeddedServer) -> None:
    async with made(embedded) as one:
        embedded.refuse()
        await until(lambda: one.session.state is not State.CONNECTED)
        with pytest.raises(LockTimeout):
            await one.recipes.lock("a", timeout_s=0.05).hold()
        embedded.refuse(False)


async def test_what_is_released_in_an_outage_is_gone_when_it_ends(embedded: EmbeddedServer) -> None:
    async with made(embedded, 20.0) as one, made(embedded) as two:
        async with one.recipes.lock("a"):
            embedded.refuse()
            await until(lambda: one.session.state is State.SUSPENDED)
        embedded.refuse(False)
        async with two.recipes.lock("a", timeout_s=LIMIT_S):
            pass


async def test_a_transaction_with_the_check_is_refused_once_the_lock_is_lost(embedded: EmbeddedServer) -> None:
    async with made(embedded) as one, made(embedded) as two:
        held = await one.recipes.lock("a").hold()
        await two.session.multi([held.check, Create("/first")])  # whoever sends it
        embedded.expire(one.session.session_id)
        with pytest.raises(MultiFailed) as refusal:
            await two.session.multi([held.check, Create("/second")])
        assert isinstance(refusal.value.cause, NoNode)
        assert await two.session.exists("/second") is None


def watches_of(server: EmbeddedServer, kind: str) -> Callable[[], int]:
    return lambda: len(getattr(server.core.watches, kind))


async def test_one_departure_wakes_one_waiter(embedded: EmbeddedServer) -> None:
    async with made(embedded) as one, made(embedded) as two:
        first = await one.recipes.lock("a").hold()
        wishes = []
        for number in range(20):
            wishes.append(asyncio.create_task(hold_once(two)))
            await until(lambda n=number: length_is(one, n + 2))
        reads = 0
        answer = embedded.core.request

        def counted(peer: object, reader: object) -> None:
            nonlocal reads
            reads += 1
            answer(peer, reader)  # type: ignore[arg-type]

        embedded.core.request = counted  # type: ignore[method-assign, assignment]
        await first.release()
        held = await wishes[0]
        assert reads <= 4  # our delete, and the next one's list and look at its own znode
        await held.release()
        for wish in wishes[1:]:
            await (await wish).release()


async def hold_once(one: Program) -> Held:
    return await one.recipes.lock("a", timeout_s=LIMIT_S).hold()
