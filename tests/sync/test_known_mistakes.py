"""Mistakes that the recipes of other clients are known for, each once more against ours.

Names say whose: aiozk 0.32's own recipes, kazoo's LockingQueue and its kin, Curator's, and those who built on them.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.faults.proxy import Proxy
from tests.sync.conftest import LIMIT_S, Program, program, until
from zkd.errors import LockLost, LockTimeout, NoNode
from zkd.zk import State
from zkd.zk.server import EmbeddedServer, Op

if TYPE_CHECKING:
    from zkd.zk.recipes import Held

ROOT = "/z"


async def line_is(one: Program, kind: str, name: str, length: int) -> bool:
    return len(await one.recipes.line(kind, name)) == length


async def test_aiozk_a_waiter_that_reconnected_never_got_the_lock(embedded: EmbeddedServer) -> None:
    async with (
        Proxy(embedded.port) as road,
        program(road.connect_string, ROOT) as one,
        program(embedded.connect_string, ROOT) as two,
    ):
        async with two.recipes.lock("a"):
            wish = asyncio.create_task(one.recipes.lock("a", timeout_s=LIMIT_S).hold())
            await until(lambda: line_is(two, "locks", "a", 2))
            await road.refuse()
            road.cut_all()
            await until(lambda: one.session.state is State.SUSPENDED)
        await road.accept()  # the lock was released meanwhile
        assert (await wish).is_sure


async def test_aiozk_a_create_sent_again_waited_for_itself(embedded: EmbeddedServer) -> None:
    async with program(embedded.connect_string, ROOT) as one:
        async with one.recipes.lock("a"):
            pass
        embedded.cut_after(Op.CREATE2, path=f"{ROOT}/sync/locks")
        async with one.recipes.lock("a", timeout_s=LIMIT_S):
            assert await line_is(one, "locks", "a", 1)


async def test_aiozk_acquire_with_timeout_0_returned_without_the_lock(embedded: EmbeddedServer) -> None:
    async with program(embedded.connect_string, ROOT) as one, program(embedded.connect_string, ROOT) as two:
        async with one.recipes.lock("a"):
            with pytest.raises(LockTimeout):
                await two.recipes.lock("a", timeout_s=0).hold()
        held = await two.recipes.lock("a", timeout_s=0).hold()  # and it is no trap: a free one is got
        await held.release()


async def test_aiozk_after_expiry_it_was_still_locked_and_release_succeeded(embedded: EmbeddedServer) -> None:
    async with program(embedded.connect_string, ROOT) as one, program(embedded.connect_string, ROOT) as two:
        mine = await one.recipes.lock("a").hold()
        embedded.expire(one.session.session_id)
        theirs = await two.recipes.lock("a", timeout_s=LIMIT_S).hold()
        await until(lambda: one.session.state is State.CONNECTED and mine.is_lost)
        assert not mine.is_sure
        with pytest.raises(LockLost):
            await mine.release()
        assert theirs.is_sure  # and what was released was not theirs


async def test_aiozk_an_old_leader_still_had_the_lead_after_expiry(embedded: EmbeddedServer) -> None:
    async with program(embedded.connect_string, ROOT) as one, program(embedded.connect_string, ROOT) as two:
        term: asyncio.Future[Held] = asyncio.get_running_loop().create_future()

        async def lead() -> None:
            async with one.recipes.election("e").lead() as mine:
                term.set_result(mine)
                await asyncio.Event().wait()

        leading = asyncio.create_task(lead())
        mine = await term
        embedded.expire(one.session.session_id)
        async with two.recipes.election("e").lead(timeout_s=LIMIT_S) as theirs:
            with pytest.raises(LockLost):
                await leading
            assert theirs.fence > mine.fence


async def test_aiozk_five_of_five_obtained_a_lease_with_a_limit_of_one(embedded: EmbeddedServer) -> None:
    async with program(embedded.connect_string, ROOT) as one:
        wishes = [one.recipes.semaphore("s", leases=1, timeout_s=0).hold() for _ in range(5)]
        got = list(await asyncio.gather(*wishes, return_exceptions=True))
        assert sum(not isinstance(held, BaseException) for held in got) == 1
        assert sum(isinstance(held, LockTimeout) for held in got) == 4


async def test_aiozk_a_barrier_without_its_parent_was_not_made_and_said_nothing(embedded: EmbeddedServer) -> None:
    async with program(embedded.connect_string, ROOT) as one:
        await one.recipes.barrier("b").close()
        assert await one.session.exists(f"{ROOT}/sync/barriers/b") is not None


async def test_aiozk_who_reconnected_was_never_let_through_the_barrier(embedded: EmbeddedServer) -> None:
    async with (
        Proxy(embedded.port) as road,
        program(road.connect_string, ROOT) as one,
        program(embedded.connect_string, ROOT) as two,
    ):
        await two.recipes.barrier("b").close()
        waiting = asyncio.create_task(one.recipes.barrier("b").wait(timeout_s=LIMIT_S))
        await until(lambda: has_watch(one, f"{ROOT}/sync/barriers/b"))
        await road.refuse()
        road.cut_all()
        await two.recipes.barrier("b").open()
        await road.accept()
        await waiting


def has_watch(one: Program, path: str) -> bool:
    return any(path in paths for paths in one.session._link.watches._callbacks.values())


async def test_aiozk_one_increment_with_a_lost_reply_added_two(embedded: EmbeddedServer) -> None:
    async with program(embedded.connect_string, ROOT) as one:
        await one.recipes.counter("c").add()
        embedded.cut_after(Op.SET_DATA, path=f"{ROOT}/sync/counters")
        assert await one.recipes.counter("c").add() == 2
        assert await one.recipes.counter("c").get() == 2


async def test_kazoo_a_queue_leaked_the_locks_of_takers_that_were_gone(embedded: EmbeddedServer) -> None:
    async with program(embedded.connect_string, ROOT) as one, program(embedded.connect_string, ROOT) as two:
        await two.recipes.queue("q").put(1)
        await one.recipes.queue("q").take().hold()
        one.session._link._connection.abort("gone")  # type: ignore[union-attr]
        embedded.expire(one.session.session_id)
        async with two.recipes.queue("q").take(timeout_s=LIMIT_S) as item:
            assert item.value == 1
        assert await two.session.children(f"{ROOT}/sync/queues/q/taken") == []


async def test_kazoo_a_ghost_of_our_former_session_was_taken_for_ourselves(embedded: EmbeddedServer) -> None:
    async with program(embedded.connect_string, ROOT) as ghost:
        held = await ghost.recipes.lock("a").hold()
        async with program(embedded.connect_string, ROOT) as again:  # the same program, started anew
            with pytest.raises(LockTimeout):
                await again.recipes.lock("a", timeout_s=0).hold()
            embedded.expire(held.session_id)
            async with again.recipes.lock("a", timeout_s=LIMIT_S) as mine:
                assert mine.is_sure


async def test_curator_a_lock_could_not_be_checked_at_commit(embedded: EmbeddedServer) -> None:
    async with program(embedded.connect_string, ROOT) as one, program(embedded.connect_string, ROOT) as two:
        held = await one.recipes.lock("a").hold()
        await two.session.delete(held.path, -1)
        with pytest.raises(Exception, match="rolled back") as refusal:
            await one.session.multi([held.check])
        assert isinstance(refusal.value.cause, NoNode)  # type: ignore[attr-defined]


async def test_curator_a_connection_lost_during_create_left_an_orphan_that_held_for_ever(
    embedded: EmbeddedServer,
) -> None:
    async with program(embedded.connect_string, ROOT) as one, program(embedded.connect_string, ROOT) as two:
        async with one.recipes.lock("a"):
            pass
        embedded.cut_after(Op.CREATE2, path=f"{ROOT}/sync/locks")
        with pytest.raises(LockTimeout):
            async with two.recipes.lock("a", timeout_s=LIMIT_S):
                await one.recipes.lock("a", timeout_s=0).hold()
        async with two.recipes.lock("a", timeout_s=LIMIT_S):
            assert await line_is(two, "locks", "a", 1)


async def test_iris_a_member_did_not_come_again_after_expiry(embedded: EmbeddedServer) -> None:
    async with (
        program(embedded.connect_string, ROOT) as one,
        program(embedded.connect_string, ROOT) as two,
        one.recipes.party("p"),
    ):
        before = one.session.session_id
        embedded.expire(before)

        async def is_back() -> bool:
            return [guest.session_id != before for guest in await two.recipes.party("p").members()] == [True]

        await until(is_back)
