"""Who is here, and where their data planes are: the entries below ``nodes/``, followed while somebody needs them.

A cluster without jobs has no use for this, and a thousand nodes that all watch each other would feel it; so the watch
stands only while this node coordinates a job.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from structlog.typing import FilteringBoundLogger as Log

from zkd import codec
from zkd.errors import AuthFailed, BadRecord, SessionClosed, Unavailable, ZooKeeperError
from zkd.paths import NodeId, Paths
from zkd.records import Node
from zkd.zk import Event, EventType, Session

MEND_S = 1.0
RECONCILE_S = 60.0  # for what a watch missed


class Peers:
    """`nodes` is a new mapping after each change. Without a connection it stands as it was."""

    def __init__(self, session: Session, paths: Paths, log: Log) -> None:
        self._session = session
        self._paths = paths
        self._log = log
        self._wake = asyncio.Event()
        self._users = 0
        self._is_read = False
        self._were_read = asyncio.Event()
        self._dirty: dict[NodeId, None] = {}
        self._listeners: list[Callable[[], None]] = []
        self.nodes: dict[NodeId, Node] = {}

    @contextmanager
    def followed(self, listener: Callable[[], None]) -> Iterator[None]:
        """Follow them inside this block, and call back after each change."""
        self._users += 1
        self._listeners.append(listener)
        self._wake.set()
        try:
            yield
        finally:
            self._users -= 1
            self._listeners.remove(listener)
            self._wake.set()

    async def known(self, within_s: float) -> None:
        """Return when they have been read. `TimeoutError` if that takes longer."""
        async with asyncio.timeout(within_s):
            await self._were_read.wait()

    def address(self, node: NodeId) -> str | None:
        entry = self.nodes.get(node)
        return None if entry is None else entry.address

    async def run(self) -> None:
        """Ends only by cancellation, or with the session."""
        is_watching, connection = False, -1
        unsubscribe = self._session.subscribe(lambda _: self._wake.set())
        loop = asyncio.get_running_loop()
        reconcile_at = 0.0
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, reconcile_at - loop.time()) if self._users else None):
                        await self._wake.wait()  # unbounded while nobody needs it
                self._wake.clear()
                try:
                    if not self._users:
                        if is_watching:
                            await self._session.remove_watch(self._paths.nodes, self._saw)
                            is_watching = self._is_read = False
                            self._were_read.clear()
                            self.nodes = {}
                        continue
                    await self._session.connected(self._session.timeout_s)
                    if not is_watching:
                        await self._session.add_watch(self._paths.nodes, self._saw, recursive=True)
                        is_watching = True
                    if not self._is_read or connection != self._session.epoch or loop.time() >= reconcile_at:
                        connection = self._session.epoch
                        await self._read_all()
                        reconcile_at = loop.time() + RECONCILE_S
                    else:
                        await self._read_some()
                except (SessionClosed, AuthFailed):
                    raise
                except ZooKeeperError as error:
                    self._is_read = False
                    self._wake.set()
                    if not isinstance(error, Unavailable):
                        self._log.warning("nodes.not_read", error=str(error))
                    await asyncio.sleep(0.05 if isinstance(error, Unavailable) else MEND_S)
        finally:
            unsubscribe()

    def _saw(self, event: Event) -> None:
        if event.path.startswith(f"{self._paths.nodes}/") and event.type is not EventType.CHILDREN:
            self._dirty[event.path.rpartition("/")[2]] = None
            self._wake.set()

    async def _read_all(self) -> None:
        self._dirty.clear()
        names = await self._session.children(self._paths.nodes)
        found = await self._read(names)
        self._is_read = True
        self._become(found)
        self._were_read.set()

    async def _read_some(self) -> None:
        names = list(self._dirty)
        self._dirty.clear()
        if names:
            found = await self._read(names)
            kept = {name: entry for name, entry in self.nodes.items() if name not in names}
            self._become(kept | found)

    async def _read(self, names: list[NodeId]) -> dict[NodeId, Node]:
        found: dict[NodeId, Node] = {}
        paths = [self._paths.node(name) for name in names]
        for name, got in zip(names, await self._session.get_many(paths), strict=True):
            if not isinstance(got, ZooKeeperError):
                with suppress(BadRecord):
                    found[name] = codec.decode(got.data, Node)
        return found

    def _become(self, nodes: dict[NodeId, Node]) -> None:
        if nodes != self.nodes:
            self.nodes = nodes
            for listener in list(self._listeners):
                listener()
