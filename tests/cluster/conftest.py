"""Daemons as processes of their own, over a real ZooKeeper. Their logs are shown when a test fails."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.cluster.processes import DaemonProcess
from tests.node.submitter import Submitter, Witness, submitting, until
from zkd.errors import NoNode
from zkd.zk import Session
from zkd.zk.apache import ApacheServer

TIMEOUT_S = 2.0  # of the daemons' sessions: short, so that loss is found soon


@dataclass
class Grid:
    """A tree of one's own and daemons around it."""

    hosts: str
    root: str
    directory: Path
    user: Submitter
    witness: Witness
    nodes: dict[str, DaemonProcess] = field(default_factory=dict)

    async def start(self, *names: str, slots: int = 2, timeout_s: float = TIMEOUT_S, **environment: str) -> None:
        """Start these, and wait until all of them are members."""
        for name in names:
            self.nodes[name] = DaemonProcess(
                self.hosts, self.root, name, self.directory, slots=slots, timeout_s=timeout_s
            )
            self.nodes[name].environment |= environment
            self.nodes[name].start()
        for name in names:
            await self.joined(name)

    async def joined(self, name: str, within_s: float = 20.0, after: int = 0) -> int:
        """Wait for a node's entry that was made after the transaction `after`; the transaction that made it."""

        async def is_here() -> int | None:
            stat = await self.user.session.exists(self.user.paths.node(name))
            return stat.czxid if stat is not None and stat.czxid > after else None

        return await until(is_here, within_s, f"{name} joined")

    async def leader(self, within_s: float = 20.0, *, other_than: str | None = None) -> str:
        async def who() -> str | None:
            try:
                data = (await self.user.session.get(self.user.paths.leader)).data
            except NoNode:
                return None
            node: str = json.loads(data)["node"]
            return node if node != other_than else None

        return await until(who, within_s, f"a leader other than {other_than}")

    async def running_on(self, name: str, within_s: float = 8.0) -> list[str]:
        """Wait for the node to have been given something; what."""

        async def given() -> list[str] | None:
            data = (await self.user.session.get(self.user.paths.assignment(name))).data
            return [line[0] for line in json.loads(data)["tasks"]] or None

        return await until(given, within_s, f"{name} was given tasks")

    def close(self) -> None:
        for node in self.nodes.values():
            node.kill()
        for name, node in self.nodes.items():
            print(f"--- log of {name}\n{node.log()[-12_000:]}")


Opened = Callable[[str], Awaitable[Grid]]


@asynccontextmanager
async def open_grid(hosts: str, root: str, directory: Path) -> AsyncIterator[Grid]:
    async with submitting(hosts, root) as user, Session(hosts, timeout_s=30.0) as onlooker:
        witness = Witness()
        await onlooker.connected(20.0)
        await witness.watch(onlooker, user.paths)
        grid = Grid(hosts, root, directory, user, witness)
        try:
            yield grid
        finally:
            grid.close()


@pytest.fixture
async def grid(apache: ApacheServer, zk_root: str, tmp_path: Path) -> AsyncIterator[Grid]:
    async with open_grid(apache.connect_string, zk_root, tmp_path) as grid:
        yield grid
