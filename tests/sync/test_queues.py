"""Queues: in order, each item to one, back when its taker dies, and nothing twice but what says so."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.sync.conftest import LIMIT_S, Program, program, until
from zkd.errors import LockLost, LockTimeout, OutcomeLost, TooLarge
from zkd.zk.server import EmbeddedServer, Op

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from zkd.zk.recipes.queues import Item, Queue

    Programs = Callable[..., Awaitable[Program]]


async def values(queue: Queue) -> list[object]:
    """Take all that is there."""
    found = []
    while True:
        try:
            async with queue.take(timeout_s=0) as item:
                found.append(item.value)
        except LockTimeout:
            return found


async def test_first_in_first_out_each_to_one(programs: Programs) -> None:
    one, two = await programs(), await programs()
    for number in range(3):
        assert await one.recipes.queue("q").put({"n": number})
    queue = two.recipes.queue("q")
    async with queue.take() as first, queue.take() as second:
        assert (first.value, second.value) == ({"n": 0}, {"n": 1})
        assert (first.deliveries, first.is_sure) == (1, True)
        assert await queue.length() == 3
    assert await values(queue) == [{"n": 2}]
    assert await queue.length() == 0


async def test_who_waits_for_an_item_gets_the_next_one_in_the_order_of_waiting(programs: Programs) -> None:
    one, two = await programs(), await programs()
    got: list[tuple[int, object]] = []

    async def take(number: int) -> None:
        async with two.recipes.queue("q").take(timeout_s=LIMIT_S) as item:
            got.append((number, item.value))

    async with asyncio.TaskGroup() as group:
        for number in range(3):
            group.create_task(take(number))
            await until(lambda n=number: waiting(one, n + 1))
        for number in range(3):
            await one.recipes.queue("q").put(number)
    assert got == [(0, 0), (1, 1), (2, 2)]


async def waiting(one: Program, count: int) -> bool:
    return len(await one.recipes.line("queues", "q", "takers")) == count


async def test_a_block_that_fails_gives_the_item_back_to_its_place(programs: Programs) -> None:
    one = await programs()
    queue = one.recipes.queue("q")
    await queue.put("a")
    await queue.put("b")
    with pytest.raises(KeyError):
        async with queue.take() as item:
            raise KeyError(item.value)
    async with queue.take() as again:
        assert (again.value, again.deliveries) == ("a", 2)
    assert await values(queue) == ["b"]


async def test_an_identity_is_let_in_once_while_it_is_there(programs: Programs) -> None:
    one, two = await programs(), await programs()
    assert await one.recipes.queue("q").put(1, id="x")
    assert not await two.recipes.queue("q").put(2, id="x")
    assert await values(two.recipes.queue("q")) == [1]
    assert await two.recipes.queue("q").put(3, id="x")  # the former one is done
    with pytest.raises(ValueError, match="id: expected"):
        await one.recipes.queue("q").put(1, id="a/b")
    with pytest.raises(TooLarge, match="at most 262144"):
        await one.recipes.queue("q").put("x" * 300_000)


async def test_what_somebody_put_in_by_hand_holds_up_nobody(programs: Programs, zk_root: str) -> None:
    one = await programs()
    queue = one.recipes.queue("q")
    await queue.put(1)
    items = f"{zk_root}/sync/queues/q/items"
    await one.session.create(f"{items}/item-", b'{"value":"by hand"}', sequential=True)
    await one.session.create(f"{items}/item-", b"not \xff JSON", sequential=True)
    await one.session.create(f"{items}/nonsense")
    await queue.put(2)
    assert await values(queue) == [1, "by hand", "not � JSON", 2]


async def test_nothing_to_take_in_time_leaves_nothing(programs: Programs) -> None:
    one = await programs()
    for timeout_s in (0, 0.05):
        with pytest.raises(LockTimeout, match="queue q: nothing to take"):
            await one.recipes.queue("q").take(timeout_s=timeout_s).hold()
    await until(lambda: waiting(one, 0))


async def test_the_item_of_a_taker_that_dies_comes_back(embedded: EmbeddedServer) -> None:
    hosts = embedded.connect_string
    async with program(hosts, "/z") as one, program(hosts, "/z") as two:
        await one.recipes.queue("q").put("a")
        item: asyncio.Future[Item] = asyncio.get_running_loop().create_future()

        async def take_for_ever() -> None:
            async with one.recipes.queue("q").take() as mine:
                item.set_result(mine)
                await asyncio.Event().wait()

        block = asyncio.create_task(take_for_ever())
        mine = await item
        wish = asyncio.create_task(two.recipes.queue("q").take(timeout_s=LIMIT_S).hold())
        await until(lambda: waiting(two, 1))
        embedded.expire(one.session.session_id)
        theirs = await wish
        assert (theirs.value, theirs.deliveries) == ("a", 2)
        with pytest.raises(LockLost):
            await block
        assert not mine.is_sure
        await theirs.release()
        assert await two.recipes.queue("q").length() == 0


async def test_whose_item_went_to_another_cannot_end_it(embedded: EmbeddedServer) -> None:
    hosts = embedded.connect_string
    async with program(hosts, "/z") as one, program(hosts, "/z") as two:
        await one.recipes.queue("q").put("a")
        mine = await one.recipes.queue("q").take().hold()
        one.session.forget("/z/sync/queues/q/taken/" + mine.name, mine._held.saw)  # it does not hear of it
        await two.session.delete("/z/sync/queues/q/taken/" + mine.name, -1)
        theirs = await two.recipes.queue("q").take(timeout_s=LIMIT_S).hold()
        with pytest.raises(LockLost, match="was not ours any more"):
            await mine.release()
        assert await two.recipes.queue("q").length() == 1
        await theirs.release()
        assert await two.recipes.queue("q").length() == 0


@pytest.mark.parametrize("kind", ["before", "after"])
async def test_a_put_whose_answer_is_lost_is_put_once(embedded: EmbeddedServer, kind: str) -> None:
    async with program(embedded.connect_string, "/z") as one:
        queue = one.recipes.queue("q")
        await queue.put(0)
        (embedded.cut_before if kind == "before" else embedded.cut_after)(Op.MULTI, path="/z/sync/queues")
        assert await queue.put(1)
        assert await values(queue) == [0, 1]
        await until(lambda: is_empty(one, "receipts"))


async def is_empty(one: Program, part: str) -> bool:
    return await one.session.children(f"/z/sync/queues/q/{part}") == []


async def test_a_put_that_nobody_can_tell_of_says_so(embedded: EmbeddedServer) -> None:
    async with program(embedded.connect_string, "/z") as one:
        queue = one.recipes.queue("q")
        await queue.put(0)
        embedded.cut_after(Op.MULTI, path="/z/sync/queues")
        putting = asyncio.create_task(queue.put(1, id="x"))
        while embedded.faults.has_cuts:
            await asyncio.sleep(0.001)
        embedded.expire(one.session.session_id)
        with pytest.raises(OutcomeLost, match="give items an id"):
            await putting
        assert not await queue.put(1, id="x")
        assert await values(queue) == [0, 1]


@pytest.mark.parametrize("kind", ["before", "after"])
@pytest.mark.parametrize("op", [Op.CREATE2, Op.GET_CHILDREN2, Op.GET_DATA, Op.MULTI])
async def test_a_cut_while_taking_or_ending_loses_and_doubles_nothing(
    embedded: EmbeddedServer, kind: str, op: Op
) -> None:
    cut = embedded.cut_before if kind == "before" else embedded.cut_after
    async with program(embedded.connect_string, "/z") as one:
        queue = one.recipes.queue("q")
        for number in range(3):
            await queue.put(number)
        cut(op, path="/z/sync/queues/q")
        async with queue.take(timeout_s=LIMIT_S) as item:
            assert item.value == 0
            cut(Op.MULTI, path="/z/sync/queues/q")
        assert await values(queue) == [1, 2]
        await until(lambda: is_empty(one, "taken"))
        await until(lambda: is_empty(one, "takers"))


async def test_who_is_cancelled_at_any_moment_keeps_no_item(programs: Programs) -> None:
    one = await programs()
    queue = one.recipes.queue("q")
    await queue.put("a")
    for turns in range(25):
        wish = asyncio.create_task(queue.take().hold())
        for _ in range(turns):
            await asyncio.sleep(0.0003)
        wish.cancel()
        await asyncio.wait([wish])
        if not wish.cancelled():
            await wish.result().release_quietly()
    async with queue.take(timeout_s=LIMIT_S) as item:
        assert item.value == "a"
