"""Brings the parts of a new version to the nodes they belong to, until each has its quorum of durable copies.

All homes of a part are asked at the same time. A node that refuses, stalls or goes away is left out from then on, and
the next one that would have the part takes its place. When the quorum is there, the slower copies get a little time;
what is missing then nodes fetch from each other. How a copy gets to a node is the caller's affair.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from itertools import chain
from typing import TYPE_CHECKING

from zkd.client import copies
from zkd.client.race import Pace
from zkd.errors import DataUnavailable, ZooKeeperError

if TYPE_CHECKING:
    from zkd.client.copies import Homes, Scene
    from zkd.paths import NodeId

SLOW_S = 5.0  # a copy that takes longer, and longer than others do, is sent to another node, too
LATE_S = 1.0  # after the quorum, and twice the time that the quorum took

Copy = Callable[["NodeId"], Awaitable[str | None]]  # to this node: why it has none, or None when it has one


def quorum(replicas: int) -> int:
    """How many copies have to be durable before a version becomes visible: more than half."""
    return (replicas + 2) // 2


class Quorums:
    def __init__(
        self,
        name: str,
        parts: int,
        replicas: int,
        scene: Scene,
        here: Callable[[], Awaitable[Collection[NodeId]]],
        wanted: int | None = None,
    ) -> None:
        """`here` asks which nodes are here now; `wanted` copies are a quorum, by default more than half."""
        self._name = name
        self._parts = parts
        self._replicas = replicas
        self._wanted = quorum(replicas) if wanted is None else wanted
        self._scene = scene
        self._ask_here = here
        self._pace = Pace()
        self._out: dict[NodeId, str] = {}  # nodes that failed, and how
        self._slow: set[NodeId] = set()  # nodes that are asked last
        self._homes: tuple[tuple[frozenset[NodeId], ...], Homes] | None = None

    async def reach(self, part: int, size: int, copy: Copy) -> bool:
        """Have `copy` bring this part to its homes; whether all whom it was begun for have ended by themselves.

        Raises `DataUnavailable` without a quorum, and what `copy` raises.
        """
        wanted = self._wanted
        now = time.monotonic
        began = now()
        answers: asyncio.Queue[tuple[NodeId, str | None]] = asyncio.Queue()
        asked: set[NodeId] = set()
        good = in_flight = 0
        is_over = True  # for all whom it was sent to: what was cut short may lie in a socket's queue

        async def one(node: NodeId) -> None:
            answers.put_nowait((node, await copy(node)))

        async with asyncio.TaskGroup() as tasks:
            running: dict[NodeId, asyncio.Task[None]] = {}
            more = 0  # copies to try beyond those that should be, for those that are slow
            while True:
                for node in await self._next(part, asked, self._replicas + more - good - in_flight):
                    asked.add(node)
                    running[node] = tasks.create_task(one(node))
                    in_flight += 1
                if not in_flight:
                    break
                took = now() - began
                patience = max(SLOW_S, 4 * self._pace.delay_s(size)) if good < wanted else LATE_S + 2 * took
                try:
                    async with asyncio.timeout(patience):
                        node, fault = await answers.get()
                except TimeoutError:
                    if good >= wanted:
                        break
                    more += 1
                    self._slow |= running.keys()
                    here = await self._here()
                    for gone in running.keys() - set(
                        here
                    ):  # frozen, say: its session is over, and others count on that
                        running.pop(gone).cancel()
                        in_flight -= 1
                        is_over = False
                        self._out[gone] = "it is gone"
                    continue
                if node not in running:
                    continue  # it went while it answered
                in_flight -= 1
                del running[node]
                if fault is None:
                    good += 1
                    self._slow.discard(node)
                    self._pace.took(size, now() - began)
                    if good >= self._replicas:
                        break
                else:
                    self._out[node] = fault
                    is_over = False
            is_over = is_over and not running
            for task in running.values():
                task.cancel()
        if good < wanted:
            told = "; ".join(f"{node}: {fault}" for node, fault in self._out.items()) or "there are no other nodes"
            raise DataUnavailable(
                f"{self._name}: part {part} has {good} durable cop{'y' if good == 1 else 'ies'} of the {wanted} that "
                f"it needs to be seen: {told}"
            )
        return is_over

    async def _here(self) -> Collection[NodeId]:
        try:
            return await self._ask_here()
        except ZooKeeperError:
            return self._scene.nodes  # nobody knows better

    async def _next(self, part: int, asked: set[NodeId], count: int) -> list[NodeId]:
        """The next nodes to have this part, when those that failed are not counted."""
        if count <= 0:
            return []
        without = frozenset(self._out), frozenset(self._slow)
        if self._homes is None or self._homes[0] != without:
            left = [keeper for keeper in self._scene.keepers if keeper.node not in self._out]
            quick = [keeper for keeper in left if keeper.node not in self._slow]
            orders = [
                await copies.homes(self._name, self._parts, replicas, keepers)
                for keepers in (quick, left)
                for replicas in (self._replicas, self._replicas + 1)  # one more, for when one is slow
            ]
            self._homes = (without, [tuple(dict.fromkeys(chain(*each))) for each in zip(*orders, strict=True)])
        return [node for node in self._homes[1][part] if node not in asked][:count]
