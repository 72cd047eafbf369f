"""Nodes that keep data and do nothing else: real stores behind real HTTP servers, said to be here in a real tree.

What a daemon's keeper would say of them, the test says: `report` writes holdings of what lies in the stores.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from aiohttp import web

from zkd.client import Client
from zkd.codec import encode
from zkd.core.datasets import bits, holding
from zkd.manifests import Keeper, Ring
from zkd.net.segment_routes import segment_routes
from zkd.records import Node
from zkd.store import SegmentStore
from zkd.zk import Session, ensure_path

TOKEN = "secret"


class KeeperNode:
    """One of them. `delay_s` holds back every answer, `refuses` makes it answer 507 to what it is sent."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory
        self.store = SegmentStore(directory)
        self.delay_s = 0.0
        self.refuses = False
        self.asked: list[str] = []  # method and path of every request
        self.address = ""
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        def expect_token(request: web.Request) -> None:
            if request.headers.get("Authorization") != f"Bearer {TOKEN}":
                raise web.HTTPUnauthorized

        @web.middleware
        async def meddle(request: web.Request, handler):  # type: ignore[no-untyped-def]
            self.asked.append(f"{request.method} {request.path}")
            await asyncio.sleep(self.delay_s)
            if self.refuses and request.method == "PUT":
                raise web.HTTPInsufficientStorage(text="the node cannot write it: No space left on device\n")
            return await handler(request)

        app = web.Application(client_max_size=0, middlewares=[meddle])
        app.add_routes(segment_routes(self.store, expect_token))
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.address = f"http://127.0.0.1:{runner.addresses[0][1]}"

    async def stop(self) -> None:
        await self._stack.aclose()


class Keepers:
    """A cluster of keepers below `/zkd`, as the leader would describe it."""

    def __init__(self, hosts: str, directory: Path, client: Client) -> None:
        self.session = Session(hosts)
        self.client = client
        self.paths = client.paths
        self.directory = directory
        self.nodes: dict[str, KeeperNode] = {}
        self.is_local = False  # whether nodes say that they are on this machine

    async def add(self, *names: str) -> None:
        for name in names:
            node = KeeperNode(name, self.directory / name)
            await node.start()
            self.nodes[name] = node
            entry = Node(
                name,
                f"{name}-1",
                1,
                address=node.address,
                host=platform.node() if self.is_local else f"far-{name}",
                data=str(node.directory / "segments"),
            )
            await self.session.create(self.paths.node(name), encode(entry), ephemeral=True)
        await self.ring()

    async def ring(self, lost: dict[str, str] | None = None) -> None:
        """The ring of all nodes that ever were."""
        text = encode(Ring(1, [Keeper(name) for name in self.nodes], lost or {}))
        await ensure_path(self.session, self.paths.ring)
        await self.session.set(self.paths.ring, text, -1)

    async def remove(self, name: str) -> None:
        """A node dies; the ring has it for a while."""
        await self.session.delete(self.paths.node(name), -1)
        await self.nodes[name].stop()

    async def report(self, dataset: str) -> None:
        """Say in holdings/ what lies in the stores, as every node would."""
        versions = await self.client.datasets.versions(dataset)
        opened = {number: await self.client.datasets.open(dataset, number) for number in versions}
        for node in self.nodes.values():
            held = {
                number: bits([all(node.store.has(ref.id) for ref in refs) for refs in version.segments])
                for number, version in opened.items()
            }
            path = self.paths.holding(dataset, node.name)
            await ensure_path(self.session, path)
            await self.session.set(path, encode(holding(f"{node.name}-1", held)), -1)


@asynccontextmanager
async def keepers(hosts: str, directory: Path, client: Client) -> AsyncIterator[Keepers]:
    cluster = Keepers(hosts, directory, client)
    async with cluster.session:
        await cluster.session.connected(10)
        for path in cluster.paths.skeleton():
            await ensure_path(cluster.session, path)
        await cluster.session.create(cluster.paths.token, TOKEN.encode())
        try:
            yield cluster
        finally:
            for node in cluster.nodes.values():
                await node.stop()
