"""Keeps this node's entry at ``nodes/<node>`` for as long as it has a session.

The entry is ephemeral, so the ensemble says that we are gone when we cannot. Every session makes it anew, and
so do we when somebody deleted it, each time with a new incarnation; whoever acts on an older one is acting on
a ghost. If somebody else's entry stands in our place, it is either our own former life, which the ensemble will
clear within its session timeout, or another daemon of the same name, a mistake that only people can mend.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

import msgspec
from structlog.typing import FilteringBoundLogger as Log

from zkd import codec
from zkd.errors import (
    AuthFailed,
    BadSettings,
    NodeExists,
    NoNode,
    OutcomeUnknown,
    SessionClosed,
    SessionExpired,
    Unavailable,
    ZooKeeperError,
)
from zkd.paths import PROTOCOL_VERSION, Paths
from zkd.records import Assignment, Node
from zkd.zk import Event, EventType, Session, State, StateChange, ensure_path

# A former life's session ends within its timeout; a server rounds that up to its tick.
PREDECESSOR_GRACE_S = 5.0
REFUSED_S = 1.0  # before the next try when ZooKeeper forbids our entry


class Membership:
    """This node's place in the cluster. `incarnation` is None while there is none."""

    def __init__(self, session: Session, paths: Paths, record: Callable[[str], Node], boot: str, log: Log) -> None:
        self._session = session
        self._paths = paths
        self._record = record  # incarnation -> our entry, as it should be now
        self._boot = boot
        self._log = log
        self._wake = asyncio.Event()
        self.incarnation: str | None = None
        self.token: str | None = None
        self.session_id = 0
        self.joined = asyncio.Event()
        self._joins = 0
        self._is_doubtful = False  # our entry may have been deleted by somebody else

    def refresh(self) -> None:
        """Our entry should say something else now."""
        self._wake.set()

    async def run(self, on_joined: Callable[[str, int], None]) -> None:
        """Join, stay, join again after each lost session. Ends only by an error or by cancellation."""
        unsubscribe = self._session.subscribe(self._changed)
        published: Node | None = None
        is_watching = False
        path = self._paths.node(self._record("").node)
        try:
            while True:
                self._wake.clear()
                if self._session.state is not State.CONNECTED:
                    await self._wake.wait()  # a state change ends it
                    continue
                try:
                    if not is_watching:
                        await self._session.add_watch(path, self._saw)
                        is_watching = True
                    if self._is_doubtful:
                        self._is_doubtful = False
                        stat = await self._session.exists(path)
                        if stat is None or stat.ephemeral_owner != self.session_id:
                            self._leave()
                    if self.incarnation is None or self.session_id != self._session.session_id:
                        await self._prepare()
                        published = await self._join()
                        on_joined(published.incarnation, self.session_id)
                        self.joined.set()
                        self._log.info("node.joined", incarnation=published.incarnation)
                    record = self._record(self.incarnation or "")
                    if record != published:
                        await self._session.set(path, codec.encode(record), -1, within=self.session_id)
                        published = record
                except (Unavailable, OutcomeUnknown, SessionExpired, NoNode) as error:
                    # While the session lives we stay what we are: a new incarnation would end what runs.
                    self._log.info("node.entry_delayed", error=str(error))
                    published = None
                    self._is_doubtful = True
                    await asyncio.sleep(0.05)
                    continue
                except ZooKeeperError as error:
                    if self.session_id == 0 or isinstance(error, (SessionClosed, AuthFailed)):
                        raise  # who has just started us should know; later a cluster must not fall with its ACLs
                    self._log.error("node.entry_refused", error=str(error))
                    published = None
                    self._is_doubtful = True
                    await asyncio.sleep(REFUSED_S)
                    continue
                await self._wake.wait()
        finally:
            unsubscribe()

    def _changed(self, change: StateChange) -> None:
        if change.state in (State.EXPIRED, State.CLOSED) or change.session_id != self.session_id:
            self._leave()
        self._wake.set()

    def _saw(self, event: Event) -> None:
        if event.type is EventType.DELETED:
            self._is_doubtful = True
            self._wake.set()

    def _leave(self) -> None:
        self.incarnation = None
        self.joined.clear()

    async def _prepare(self) -> None:
        # Looked at first: a create that finds its znode there is a synced transaction all the same, and when a
        # thousand nodes restart these were two thirds of what the ensemble had to write.
        paths = self._paths.skeleton()
        for path, stat in zip(paths, await asyncio.gather(*map(self._session.exists, paths)), strict=True):
            if stat is None:
                await ensure_path(self._session, path)
        await self._keep(self._paths.protocol, str(PROTOCOL_VERSION).encode())
        await self._keep(self._paths.token, secrets.token_hex(32).encode())
        self.token = (await self._session.get(self._paths.token)).data.decode()

    async def _keep(self, path: str, data: bytes) -> None:
        if await self._session.exists(path) is not None:
            return
        try:
            await self._session.create(path, data)
        except NodeExists:
            return

    async def _join(self) -> Node:
        session_id = self._session.session_id
        self._joins += 1
        incarnation = f"{session_id & 0xFFFFFFFFFFFFFFFF:x}.{self._boot}.{self._joins}"
        record = self._record(incarnation)
        path = self._paths.node(record.node)
        empty = Assignment(0, incarnation, [])
        await self._keep(self._paths.assignment(record.node), codec.encode(empty))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._session.timeout_s + PREDECESSOR_GRACE_S
        while True:
            gone = asyncio.Event()
            stat = await self._session.exists(path, watch=lambda _, gone=gone: gone.set())  # type: ignore[misc]
            if stat is None:
                try:
                    await self._session.create(path, codec.encode(record), ephemeral=True, within=session_id)
                except NodeExists:
                    continue
                break
            if stat.ephemeral_owner == session_id:  # made by a request whose answer was lost
                await self._session.set(path, codec.encode(record), -1, within=session_id)
                break
            left_s = deadline - loop.time()
            if left_s <= 0:
                raise BadSettings(
                    f"node.name: {record.node!r} is in use by another daemon: "
                    f"{await self._describe(path)}; give each node a name of its own"
                )
            self._log.warning("node.name_taken", owner=f"{stat.ephemeral_owner:#x}", waits_s=round(left_s, 1))
            try:
                async with asyncio.timeout(min(left_s, 1.0)):  # not wait_for: it may lose a cancellation
                    await gone.wait()
            except TimeoutError:
                continue
        self.incarnation = incarnation
        self.session_id = session_id
        return record

    async def _describe(self, path: str) -> str:
        try:
            other = msgspec.json.decode((await self._session.get(path)).data)
            return f"host {other.get('host')}, process {other.get('pid')}"
        except (NoNode, msgspec.DecodeError, AttributeError):
            return "its entry is gone just now"
