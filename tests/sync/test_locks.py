"""Locks, read-write locks, semaphores: one at a time, in order, by deadline, and nothing left behind."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.sync.conftest import Program, until
from zkd.errors import LockLost, LockReentered, LockTimeout, NoNode, TermsDisagree

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from zkd.zk.recipes import Held

if TYPE_CHECKING:
    Programs = Callable[..., Awaitable[Program]]


async def left(one: Program, kind: str, name: str, root: str) -> list[str]:
    try:
        return await one.session.children(f"{root}/sync/{kind}/{name}")
    except NoNode:
        return []


async def test_a_lock_is_held_by_one_at_a_time_in_the_order_of_asking(programs: Programs) -> None:
    all_of_them = [await programs(f"p{number}") for number in range(4)]
    inside = 0
    order: list[int] = []
    fences: list[int] = []

    async def work(number: int) -> None:
        nonlocal inside
        async with all_of_them[number].recipes.lock("a", timeout_s=30) as held:
            inside += 1
            assert inside == 1
            assert held.is_sure
            order.append(number)
            fences.append(held.fence)
            await asyncio.sleep(0)
            inside -= 1

    async with all_of_them[0].recipes.lock("a") as first, asyncio.TaskGroup() as group:
        for number in (3, 1, 2):
            group.create_task(work(number))
            await until(lambda n=number: is_waiting(all_of_them[0], "a", f"p{n}"))
        await first.release()
    assert order == [3, 1, 2]
    assert fences == sorted({first.fence, *fences} - {first.fence})
    assert first.fence < fences[0]


async def is_waiting(one: Program, name: str, who: str) -> bool:
    return any(s.claimant.who == who and not s.is_held for s in await one.recipes.line("locks", name))


async def test_many_contenders_none_beside_another(programs: Programs) -> None:
    some = [await programs() for _ in range(3)]
    inside, most, total = 0, 0, 0
    fences: list[int] = []

    async def work(one: Program) -> None:
        nonlocal inside, most, total
        for _ in range(10):
            async with one.recipes.lock("busy", timeout_s=30) as held:
                inside += 1
                most = max(most, inside)
                fences.append(held.fence)
                await asyncio.sleep(0)
                total += 1
                inside -= 1

    async with asyncio.TaskGroup() as group:
        for one in some:
            for _ in range(2):
                group.create_task(work(one))
    assert (most, total) == (1, 60)
    assert fences == sorted(set(fences))


async def test_readers_share_and_writers_do_not(programs: Programs) -> None:
    one, two, three = await programs(), await programs(), await programs()
    async with one.recipes.rwlock("rw").read() as first, two.recipes.rwlock("rw").read(timeout_s=30) as second:
        assert first.is_sure
        assert second.is_sure
        with pytest.raises(LockTimeout):
            await three.recipes.rwlock("rw").write(timeout_s=0).hold()
    async with two.recipes.rwlock("rw").write(timeout_s=30) as writer:
        assert writer.fence > max(first.fence, second.fence)
        with pytest.raises(LockTimeout):
            await one.recipes.rwlock("rw").read(timeout_s=0).hold()


async def test_a_semaphore_lets_in_as_many_as_it_has_leases_whoever_leaves_first(programs: Programs) -> None:
    one, two = await programs(), await programs()
    a = await one.recipes.semaphore("s", leases=2).hold()
    b = await one.recipes.semaphore("s", leases=2).hold()
    async with asyncio.TaskGroup() as group:
        third = group.create_task(two.recipes.semaphore("s", leases=2, timeout_s=30).hold())
        await until(lambda: is_line(one, "semaphores", "s", [True, True, False]))
        await b.release()  # the later one: the rule that watched the first only would sleep on
        c = await third
    assert c.fence > b.fence > a.fence
    await a.release()
    await c.release()


async def is_line(one: Program, kind: str, name: str, held: list[bool]) -> bool:
    return [standee.is_held for standee in await one.recipes.line(kind, name)] == held


async def test_leases_that_disagree_are_an_error_that_says_both(programs: Programs, zk_root: str) -> None:
    one, two = await programs(), await programs()
    async with one.recipes.semaphore("s", leases=2):
        with pytest.raises(TermsDisagree, match=r'"leases":3.*"leases":2'):
            async with two.recipes.semaphore("s", leases=3):
                pass
        assert len(await left(one, "semaphores", "s", zk_root)) == 1


@pytest.mark.parametrize("leases", [0, -1, 1001, True, 2.0])
async def test_a_number_of_leases_that_is_none_is_refused(programs: Programs, leases: int) -> None:
    one = await programs()
    with pytest.raises(ValueError, match="expected an int from 1 to 1000"):
        one.recipes.semaphore("s", leases=leases)


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "x" * 129])
async def test_a_name_that_is_no_name_is_refused(programs: Programs, name: str) -> None:
    one = await programs()
    with pytest.raises(ValueError, match="expected a name"):
        one.recipes.lock(name)


async def test_a_deadline_that_passes_leaves_nothing(programs: Programs, zk_root: str) -> None:
    one, two = await programs(), await programs()
    async with one.recipes.lock("a"):
        with pytest.raises(LockTimeout, match=r"lock a: not our turn within 0\.05 s"):
            async with two.recipes.lock("a", timeout_s=0.05):
                raise AssertionError("never here")
        assert len(await left(one, "locks", "a", zk_root)) == 1
    assert await left(one, "locks", "a", zk_root) == []


async def test_who_is_cancelled_while_waiting_leaves_nothing_and_holds_up_nobody(
    programs: Programs, zk_root: str
) -> None:
    one, two, three = await programs(), await programs("two"), await programs("three")
    async with asyncio.TaskGroup() as group:
        async with one.recipes.lock("a"):
            waiting = group.create_task(two.recipes.lock("a").hold())
            await until(lambda: is_waiting(one, "a", "two"))
            after = group.create_task(three.recipes.lock("a", timeout_s=30).hold())
            await until(lambda: is_waiting(one, "a", "three"))
            waiting.cancel()
            await asyncio.wait([waiting])
        held = await after
    await held.release()
    await until(lambda: is_line(one, "locks", "a", []))


async def test_who_is_cancelled_at_any_moment_leaves_nothing(programs: Programs, zk_root: str) -> None:
    one, two = await programs(), await programs()
    for turns in range(25):
        wish = asyncio.create_task(one.recipes.lock("a").hold())
        for _ in range(turns):
            await asyncio.sleep(0.0003)
        wish.cancel()
        await asyncio.wait([wish])
        if not wish.cancelled():
            await wish.result().release()
        async with two.recipes.lock("a", timeout_s=30):
            pass
    await until(lambda: is_line(one, "locks", "a", []))
    assert one.session._link.watches._callbacks[0] == {}  # nor a watch


async def test_who_holds_and_asks_again_is_told_so_at_once(programs: Programs) -> None:
    one = await programs()
    async with one.recipes.lock("a"):
        with pytest.raises(LockReentered, match="not reentrant"):
            async with one.recipes.lock("a", timeout_s=30):
                pass
        with pytest.raises(LockReentered):
            async with one.recipes.rwlock("a").read(timeout_s=30):
                pass
        async with one.recipes.lock("b"):  # another one is another one
            pass
    async with one.recipes.lock("a", timeout_s=0):  # it is forgotten with its end
        pass


async def test_a_holding_is_entered_once(programs: Programs) -> None:
    one = await programs()
    lock = one.recipes.lock("a")
    async with lock:
        pass
    with pytest.raises(RuntimeError, match="make another one"):
        async with lock:
            pass


async def test_a_block_that_fails_releases_and_its_error_is_told(programs: Programs, zk_root: str) -> None:
    one = await programs()
    with pytest.raises(KeyError):
        async with one.recipes.lock("a"):
            raise KeyError("mine")
    assert await left(one, "locks", "a", zk_root) == []


async def hold_for_ever(one: Program, held: asyncio.Future[Held]) -> None:
    async with one.recipes.lock("a") as mine:
        held.set_result(mine)
        await asyncio.Event().wait()


async def test_whose_znode_is_deleted_loses_the_lock_and_the_block_ends(programs: Programs) -> None:
    one, two = await programs(), await programs()
    future: asyncio.Future[Held] = asyncio.get_running_loop().create_future()
    block = asyncio.create_task(hold_for_ever(one, future))
    held = await future
    for number in range(3):  # who writes into it does not blind its holder
        await two.session.set(held.path, b"not json", number)
    assert await two.recipes.line("locks", "a")
    await two.session.delete(held.path, -1)
    with pytest.raises(LockLost, match="its znode is gone"):
        await block
    assert held.is_lost
    assert not held.is_sure
    assert (await held.lost()).startswith("its znode is gone")


async def test_a_waiter_whose_znode_is_deleted_queues_up_again(programs: Programs) -> None:
    one, two = await programs(), await programs("two")
    async with asyncio.TaskGroup() as group:
        async with one.recipes.lock("a"):
            waiting = group.create_task(two.recipes.lock("a", timeout_s=30).hold())
            await until(lambda: is_waiting(one, "a", "two"))
            line = await one.recipes.line("locks", "a")
            await one.session.delete(held_path(one, line[1].znode), -1)
        await (await waiting).release()


def held_path(one: Program, znode: str) -> str:
    return f"{one.recipes._paths.sync}/locks/a/{znode}"


async def test_a_stranger_sees_who_holds_what(programs: Programs, zk_root: str) -> None:
    one, two = await programs("ann@host"), await programs()
    async with one.recipes.lock("a"):
        (name,) = await left(two, "locks", "a", zk_root)
        assert name.startswith("write-")
        assert (await two.session.get(f"{zk_root}/sync/locks/a/{name}")).data == b'{"who":"ann@host","pid":1}'


async def test_a_stranger_may_queue_up_by_hand(programs: Programs, zk_root: str) -> None:
    one, two = await programs(), await programs()
    async with one.recipes.lock("a"):
        theirs = (
            await two.session.create(f"{zk_root}/sync/locks/a/me-", b"by hand", ephemeral=True, sequential=True)
        ).path
    with pytest.raises(LockTimeout):
        async with one.recipes.lock("a", timeout_s=0):
            pass
    (standee,) = await one.recipes.line("locks", "a")
    assert (standee.claimant.who, standee.is_held) == ("by hand", True)
    await two.session.delete(theirs, -1)
    async with one.recipes.lock("a", timeout_s=30):
        pass


async def test_an_election_shows_who_leads_and_resigning_lets_the_next_one_lead(programs: Programs) -> None:
    one, two = await programs("one"), await programs("two")
    seen: list[str] = []
    watching = two.recipes.election("e")

    async def watch() -> None:
        async for leader in watching.leaders():
            seen.append(leader.claimant.who if leader else "")
            if seen[-1] == "two":
                return

    async with asyncio.TaskGroup() as group:
        group.create_task(watch())
        async with one.recipes.election("e").lead() as first:
            await until(lambda: "one" in seen)
            second = group.create_task(watching.lead(timeout_s=30).hold())
            await until(lambda: is_line(one, "elections", "e", [True, False]))
            await first.release()  # resign
            term = await second
            assert term.fence > first.fence
    assert seen[-2:] == ["one", "two"]
    await term.release()
    assert await watching.leader() is None
