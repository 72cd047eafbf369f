"""The files of registered models, as a program sends and fetches them: to their nodes, from whoever has them.

A file is sent to the nodes that are first in its order, all at once. One that refuses, or is slow when more than half
of the copies are durable, is passed over for the next one, and gets its own later: nodes fetch what they lack.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from zkd.client.quorums import quorum
from zkd.core.datasets import read_ring
from zkd.core.registry import REPLICAS, live, order
from zkd.errors import BadRecord, DataUnavailable, NoNode
from zkd.manifests import Keeper
from zkd.registry import FILE_BYTES_MAX, FILES_URL, ModelFile

if TYPE_CHECKING:
    from zkd.client.client import Client
    from zkd.client.plane import Plane
    from zkd.paths import NodeId

LATE_S = 2.0  # for the other copies, when there are enough to be seen
PUSH_S = 300.0  # for all of it: nodes keep a file that no version needs twice as long


class ModelFiles:
    def __init__(self, client: Client, plane: Plane) -> None:
        self._client = client
        self._plane = plane

    async def _order(self, file_id: str) -> list[tuple[NodeId, str]]:
        """The nodes that are here, in the order in which they would have the file, and their addresses."""
        nodes = await self._client.nodes()
        try:
            keepers = live(read_ring((await self._client.read(self._client.paths.ring)).data))
        except (NoNode, BadRecord):  # nobody has led yet; the leader will mend it
            keepers = [Keeper(name, node.weight, node.zone) for name, node in nodes.items() if node.weight > 0]
        addresses = {name: node.address for name, node in nodes.items()}
        return [
            (name, address)
            for name in order(file_id, [keeper for keeper in keepers if keeper.node in nodes])
            if (address := addresses[name]) is not None
        ]

    async def send(self, file: ModelFile, data: bytes) -> None:
        """Have these bytes durable on their nodes, more than half of them at least. Raises `DataUnavailable`."""
        from zkd.net.files import send

        if file.size > FILE_BYTES_MAX:
            raise DataUnavailable(f"expected a file of at most {FILE_BYTES_MAX} bytes, got {file.size}")
        nodes = await self._order(file.id)
        replicas = min(REPLICAS, len(nodes))
        token = await self._plane.token()
        waiting = iter(nodes)
        answers: asyncio.Queue[tuple[NodeId, str | None]] = asyncio.Queue()
        faults: dict[NodeId, str] = {}
        good = in_flight = 0

        async def one(node: NodeId, address: str) -> None:
            try:
                await send(self._plane.http, f"{address}{FILES_URL}/{file.id}", token, data)
            except DataUnavailable as error:
                answers.put_nowait((node, str(error)))
            else:
                answers.put_nowait((node, None))

        running: list[asyncio.Task[None]] = []
        try:
            async with asyncio.timeout(PUSH_S), asyncio.TaskGroup() as tasks:
                more = 0  # nodes to try beyond those that should have it, for those that are slow
                while good < replicas:
                    while in_flight + good < replicas + more and (each := next(waiting, None)) is not None:
                        running.append(tasks.create_task(one(*each)))
                        in_flight += 1
                    if not in_flight:
                        break
                    try:
                        async with asyncio.timeout(LATE_S if good >= quorum(replicas) else None):
                            node, fault = await answers.get()
                    except TimeoutError:
                        if more or asyncio.current_task().cancelling():  # type: ignore[union-attr]
                            break
                        more = 1
                        continue
                    in_flight -= 1
                    if fault is None:
                        good += 1
                    else:
                        faults[node] = fault
                for task in running:
                    task.cancel()
        except TimeoutError:
            pass
        if not nodes or good < quorum(replicas):
            told = "; ".join(f"{node}: {fault}" for node, fault in faults.items()) or "there are no other nodes"
            raise DataUnavailable(
                f"the model has {good} durable cop{'y' if good == 1 else 'ies'} of the {quorum(max(1, replicas))} "
                f"that it needs to be seen: {told}"
            )

    async def fetch(self, file: ModelFile) -> bytes:
        """The bytes, compared with their digest. Raises `DataUnavailable` with what each node says."""
        from zkd.net.files import fetch

        first = await self._order(file.id)
        homes, others = first[:REPLICAS], first[REPLICAS:]
        random.shuffle(homes)  # so that readers spread
        known = {name for name, _ in first}
        nodes = await self._client.nodes()
        rest = [(name, node.address) for name, node in nodes.items() if name not in known and node.address is not None]
        urls = [f"{address}{FILES_URL}/{file.id}" for _, address in [*homes, *others, *rest]]
        return await fetch(self._plane.http, urls, await self._plane.token(), file.id, file.size)

    async def holders(self, file: ModelFile) -> dict[NodeId, bool]:
        """Whether each node that is here has the file; one that does not say has not."""
        from zkd.net.files import has

        token = await self._plane.token()
        nodes = {name: node.address for name, node in (await self._client.nodes()).items() if node.address is not None}

        async def one(address: str) -> bool:
            try:
                return await has(self._plane.http, f"{address}{FILES_URL}/{file.id}", token, file.size)
            except DataUnavailable:
                return False

        async with asyncio.TaskGroup() as tasks:
            asked = {name: tasks.create_task(one(address)) for name, address in nodes.items()}
        return {name: task.result() for name, task in sorted(asked.items())}
