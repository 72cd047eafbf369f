"""Recipes on sessions of one's own, on the embedded server and on a real one."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from zkd.paths import Paths
from zkd.records import Claimant
from zkd.zk import Session
from zkd.zk.recipes import Recipes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

LIMIT_S = 30.0


class Program:
    """What one program has: a session, and recipes on it."""

    def __init__(self, session: Session, recipes: Recipes) -> None:
        self.session = session
        self.recipes = recipes


@asynccontextmanager
async def program(hosts: str, root: str, *, timeout_s: float = 6.0, who: str = "test") -> AsyncIterator[Program]:
    async with Session(hosts, timeout_s=timeout_s) as session:
        await session.connected(LIMIT_S)
        async with asyncio.TaskGroup() as tasks:
            recipes = Recipes(session, Paths(root), tasks, Claimant(who, 1))
            try:
                yield Program(session, recipes)
            finally:
                recipes.close()


@pytest.fixture
async def programs(zookeeper: str, zk_root: str) -> AsyncIterator[Callable[..., Awaitable[Program]]]:
    """Make another program on the test's server, in the test's own tree."""
    async with AsyncExitStack() as stack:

        async def another(who: str = "test", timeout_s: float = 6.0) -> Program:
            return await stack.enter_async_context(program(zookeeper, zk_root, who=who, timeout_s=timeout_s))

        yield another


async def until(true: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait for a condition that has no event."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            found = true()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.01)
