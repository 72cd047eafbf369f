"""Who can be asked for predictions, as the tree says it: followed over one watch, known also while ZooKeeper is away.

A request never waits for ZooKeeper: it is made with the nodes and the token that were known last.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from zkd.client.outstanding import NO_ANSWER
from zkd.errors import DataDamaged, ModelNotFound, NoNode, ZooKeeperError

if TYPE_CHECKING:
    from zkd.client.client import Client
    from zkd.core.registry import ModelRef
    from zkd.paths import NodeId

LOOK_S = 15.0  # without news; the token is read again, too
AGAIN_S = 0.5  # after a look that failed


class ServingView:
    """`nodes` and their addresses; `version` is what a model means now, None if that may be one or another."""

    def __init__(self, client: Client, ref: ModelRef | None, on_change: Callable[[], None]) -> None:
        self.nodes: dict[NodeId, str] = {}
        self.token = ""
        self.version: int | None = None
        self._client = client
        self._ref = ref  # to be followed, too
        self._on_change = on_change
        self._changed = asyncio.Event()

    def look_again(self) -> None:
        """There is a reason to believe that something is another than known."""
        self._changed.set()

    @asynccontextmanager
    async def following(self) -> AsyncIterator[ServingView]:
        """Known when the block begins, and kept up to date within it. Raises `ZooKeeperError`."""
        session, paths = self._client.session, self._client.paths
        watched = [paths.nodes] if self._ref is None else [paths.nodes, paths.model(self._ref.name)]
        unsubscribe = session.subscribe(self._hear)
        try:
            for path in watched:
                await session.add_watch(path, self._hear, recursive=True)
            await self._look()
            async with asyncio.TaskGroup() as tasks:
                keeper = tasks.create_task(self._keep(), name="zkd predictor view")
                yield self
                keeper.cancel()
        finally:
            unsubscribe()
            for path in watched:
                with suppress(ZooKeeperError):
                    await session.remove_watch(path, self._hear)

    def _hear(self, _: object) -> None:
        self.version = None  # until it was read again
        self._changed.set()

    async def _keep(self) -> None:
        while True:
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._changed.wait()
            except TimeoutError:
                pass
            self._changed.clear()
            try:
                await self._look()
            except NO_ANSWER:
                await asyncio.sleep(AGAIN_S)
                self._changed.set()

    async def _look(self) -> None:
        nodes = await self._client.nodes()
        ready = {name: node.address for name, node in nodes.items() if node.address is not None and not node.draining}
        leaving = {name: node.address for name, node in nodes.items() if node.address is not None}
        self.nodes = ready or leaving
        with suppress(NoNode):
            self.token = (await self._client.read(self._client.paths.token)).data.decode()
        if self._ref is not None:
            self.version = await self._meant(self._ref)
        self._on_change()

    async def _meant(self, ref: ModelRef) -> int | None:
        if ref.version is not None:
            return ref.version
        try:
            found = await self._client.models.describe(ref.name)
            alias = None if ref.alias is None else found.aliases.get(ref.alias)
            number = found.number(ref)
        except (ModelNotFound, DataDamaged):
            return None
        is_one = alias is None or alias.canary is None
        return number if is_one and not self._changed.is_set() else None
