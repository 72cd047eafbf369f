"""Many nodes in one process, each light: what a node says to ZooKeeper, without workers.

    python -m benchmarks.standins HOSTS COUNT KERNELS_FILE

Each has a session over a socket of its own, and in it the daemon's own membership, candidacy and heartbeat. It
follows its assign/ as a node does: reads the list when told, reads the tasks, and ends them in one transaction; only
the run in between is left out. Commands come by stdin, a line each, and are answered on stdout: `restart` ends all
sessions at once and opens them anew; the end of stdin ends everything.
"""

from __future__ import annotations

import asyncio
import resource
import sys
import time
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.cluster import PATHS, TIMEOUT_S
from zkd import codec, log
from zkd.core.clock import ServerClock
from zkd.errors import MultiFailed, ZooKeeperError
from zkd.node.election import Election, Reign
from zkd.node.heartbeat import Heartbeat
from zkd.node.membership import Membership
from zkd.paths import NodeId
from zkd.records import Assigned, Assignment, Node, NodeStatus, Result
from zkd.zk import Create, Delete, Event, Session

AT_ONCE = 50
JOIN_S = 120.0


class StandIn:
    """One node."""

    def __init__(self, hosts: str, name: NodeId, kernels: list[str]) -> None:
        self.name = name
        self.kernels = kernels
        self.session = Session(hosts, timeout_s=TIMEOUT_S)
        self._seen: dict[str, Assigned] = {}
        self._wake = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self.joined = asyncio.Event()

    def start(self) -> None:
        self._running = asyncio.create_task(self._run())

    async def stop(self) -> None:
        assert self._running is not None
        self._running.cancel()
        with suppress(asyncio.CancelledError):
            await self._running

    async def _run(self) -> None:
        clock, quiet = ServerClock(), log.get(node=self.name)
        async with self.session, asyncio.TaskGroup() as group:
            await self.session.connected(JOIN_S)
            membership = Membership(self.session, PATHS, self._record, "standin", quiet)
            election = Election(self.session, PATHS, self.name, clock, quiet)
            heartbeat = Heartbeat(self.session, PATHS, self.name, clock, quiet, lambda: self._status(membership))
            path = PATHS.assignment(self.name)
            work: list[Coroutine[Any, Any, None]] = [
                membership.run(lambda *_: self.joined.set()),
                election.run(lambda: membership.incarnation, self._lead),
                heartbeat.run(),
                self._follow(path),
            ]
            for one in work:
                group.create_task(one)
            await self.session.add_watch(path, self._saw)
            await self.session.exists(PATHS.node_state(self.name), watch=lambda _: None)

    async def _lead(self, _: Reign) -> None:
        raise AssertionError(f"{self.name} was elected: the real leader is gone")

    def _record(self, incarnation: str) -> Node:
        return Node(self.name, incarnation, 1, kernels=self.kernels, host="standin", version="0")

    def _status(self, membership: Membership) -> NodeStatus | None:
        if membership.incarnation is None:
            return None
        return NodeStatus(self.name, membership.incarnation, "active", 1, 0, 0, [], 0, 0, 0, 0.0, 0.0)

    def _saw(self, _: Event) -> None:
        self._wake.set()

    async def _follow(self, path: str) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            assignment = codec.decode((await self.session.get(path)).data, Assignment)
            wanted = {line.id: line for line in assignment.tasks}
            new = [line for line in assignment.tasks if self._seen.get(line.id) != line]
            self._seen = wanted
            for start in range(0, len(new), AT_ONCE):
                await self._end(new[start : start + AT_ONCE])

    async def _end(self, lines: list[Assigned]) -> None:
        found = await self.session.get_many([PATHS.task(line.id) for line in lines])
        ops: list[Delete | Create] = []
        for line, got in zip(lines, found, strict=True):
            if not isinstance(got, ZooKeeperError):
                result = codec.encode(Result("done", self.name, line.attempt, kernel="identity", czxid=line.czxid))
                ops += [Delete(PATHS.task(line.id), line.version), Create(PATHS.result(line.id), result)]
        with suppress(MultiFailed):  # cancelled meanwhile
            await self.session.multi(ops)


async def serve(hosts: str, count: int, kernels: list[str]) -> None:
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    nodes: list[StandIn] = []
    while True:
        began = time.monotonic()
        await asyncio.gather(*(node.stop() for node in nodes))
        nodes = [StandIn(hosts, f"node-{number:04}", kernels) for number in range(count)]
        for node in nodes:
            node.start()
        for node in nodes:
            await asyncio.wait_for(node.joined.wait(), JOIN_S)
        print(f"{time.monotonic() - began:.3f}", flush=True)
        if await commands.readline() != b"restart\n":
            return


def main() -> None:
    hosts, count, kernels = sys.argv[1:]
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    log.configure("error", "json")
    uvloop.run(serve(hosts, int(count), Path(kernels).read_text().split()))


if __name__ == "__main__":
    main()
