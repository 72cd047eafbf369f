"""Parties: who is here is seen by all, and comes again after an expiry."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.sync.conftest import LIMIT_S, Program, program, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from zkd.zk.recipes.parties import Guest
    from zkd.zk.server import EmbeddedServer

    Programs = Callable[..., Awaitable[Program]]


async def test_members_are_seen_with_what_they_say_and_go_with_their_block(programs: Programs) -> None:
    one, two = await programs("one"), await programs("two")
    seen: list[list[object]] = []

    async def watch() -> None:
        async for guests in two.recipes.party("p").changes():
            seen.append([guest.value for guest in guests])
            if len(seen) > 1 and not guests:
                return

    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
        group.create_task(watch())
        async with one.recipes.party("p", {"port": 80}) as party:
            (guest,) = await two.recipes.party("p").members()
            assert (guest.znode, guest.claimant.who, guest.value) == (party.znode, "one", {"port": 80})
            async with two.recipes.party("p", 2):
                await until(lambda: [{"port": 80}, 2] in seen)
    assert seen[-1] == []


async def test_a_member_comes_again_after_expiry_and_after_a_slip(embedded: EmbeddedServer) -> None:
    hosts = embedded.connect_string

    async def is_there(party: str) -> bool:
        return party in [guest.znode for guest in await members(two)]

    async def has_one_other_than(znode: str) -> bool:
        return [guest.znode == znode for guest in await members(two)] == [False]

    async with program(hosts, "/z") as one, program(hosts, "/z") as two, one.recipes.party("p") as party:
        first = party.znode
        embedded.expire(one.session.session_id)
        await until(lambda: has_one_other_than(first))
        second = party.znode
        await two.session.delete(f"/z/sync/parties/p/{second}", -1)
        await until(lambda: has_one_other_than(second))
        await two.session.delete(f"/z/sync/parties/p/{party.znode}", -1)
        await two.session.delete("/z/sync/parties/p", -1)
        await until(lambda: has_one_other_than(""))


async def members(one: Program) -> list[Guest]:
    return await one.recipes.party("p").members()
