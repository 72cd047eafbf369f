"""While this node leads: keeps ``control/ring`` true, the nodes that parts are placed on (`zkd.core.ring` decides).

Watches tell where to look, each thing is read again and counts as it is then; so do all of them once in a while. The
ring is written under the epoch and at the version that was read, so no deposed leader moves data. Before somebody is
taken for lost his entry is asked for once more: a leader that slept may find that it is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Literal

from structlog.typing import FilteringBoundLogger as Log

from zkd import codec
from zkd.core.datasets import read_ring
from zkd.core.ring import Muster, keeper_of
from zkd.errors import BadRecord, BadVersion, MultiFailed, NodeExists, NoNode, Unavailable, ZooKeeperError
from zkd.leading import Deposed, lead
from zkd.manifests import Keeper, Ring
from zkd.paths import NodeId, Paths, leaf
from zkd.records import Node, OperatorState
from zkd.zk import Check, Create, Event, Session, SetData, State, Znode

READ_AT_ONCE = 100  # entries of nodes are a few hundred bytes
RECONCILE_S = 60.0  # for what a watch missed
ABSENT = -1


class Steward:
    def __init__(self, session: Session, paths: Paths, log: Log, grace_s: Callable[[], float]) -> None:
        self._session = session
        self._paths = paths
        self._log = log
        self._grace_s = grace_s
        self._seen: set[NodeId] = set()  # to be looked at again
        self._is_ring_seen = False
        self._wake = asyncio.Event()
        self._muster: Muster | None = None
        self._version = ABSENT  # of the ring in the tree
        self._is_good = False  # whether that is the muster's
        self.changes = 0  # of the ring, by this node

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        yield "zkd_ring_changes_total", {}, self.changes
        if self._muster is not None:  # while this node leads
            ring = self._muster.ring
            yield "zkd_ring_keepers", {"state": "here"}, len(ring.keepers) - len(ring.lost)
            yield "zkd_ring_keepers", {"state": "lost"}, len(ring.lost)

    async def run(self, session_id: int, epoch: int, check: Check) -> None:
        """One reign. Ends when the epoch is over; cancelled when the session is."""
        try:
            await lead(
                lambda: self._serve(session_id, epoch, check),
                self._session,
                self._log,
                "steward",
                watched=[self._paths.nodes, self._paths.node_states],
                saw=self._saw,
                woken=self._wake.set,
                directories=[self._paths.nodes, self._paths.node_states],
            )
        finally:
            self._muster = None

    def _saw(self, event: Event) -> None:
        if event.path == self._paths.ring:
            self._is_ring_seen = True
        else:
            self._seen.add(leaf(event.path))
        self._wake.set()

    async def _serve(self, session_id: int, epoch: int, check: Check) -> None:
        """Keep the ring over one unbroken connection."""
        connection = self._session.epoch
        # A server that we came to may lag behind; it answers a write when it has caught up. So nobody is missed.
        try:
            await self._session.multi([check], within=session_id)
        except MultiFailed:
            raise Deposed from None
        await self._session.add_watch(self._paths.ring, self._saw)
        try:
            reconcile_at = 0.0
            while True:
                self._wake.clear()
                if self._session.epoch != connection or self._session.state is not State.CONNECTED:
                    raise Unavailable(self._paths.ring, "the connection changed")
                if self._now() >= reconcile_at:
                    await self._look_at_all()
                    reconcile_at = self._now() + RECONCILE_S
                muster = await self._look()
                if await self._write(muster, session_id, epoch, check):
                    continue
                timer = muster.next_timer(self._now(), self._grace_s())
                until = reconcile_at if timer is None else min(timer, reconcile_at)
                try:
                    async with asyncio.timeout(max(0.0, until - self._now())):
                        await self._wake.wait()
                except TimeoutError:
                    continue
        finally:
            await self._session.remove_watch(self._paths.ring, self._saw)

    # --- Knowing ----------------------------------------------------------------------------------------

    async def _look_at_all(self) -> None:
        """Everybody, also those that this leader took for here or drained on an earlier connection."""
        self._is_ring_seen = True
        for directory in (self._paths.nodes, self._paths.node_states):
            self._seen.update(await self._session.children(directory))
        if self._muster is not None:
            self._seen |= self._muster.here.keys() | self._muster.drained

    async def _look(self) -> Muster:
        """Read what events named."""
        muster = self._muster or Muster(Ring(0))
        seen, self._seen = sorted(self._seen), set()
        try:
            for node, got in await self._read(self._paths.node, seen):
                keeper = self._keeper(node, got)
                if keeper is False:
                    muster.node_gone(node, self._now())
                else:
                    muster.node_here(node, keeper, self._now())
            for node, got in await self._read(self._paths.node_state, seen):
                self._hear(muster, node, got)
            if self._is_ring_seen or self._muster is None:
                self._is_ring_seen = False
                await self._read_ring(muster)
        except ZooKeeperError:
            self._seen.update(seen)
            raise
        self._muster = muster
        return muster

    async def _read(
        self, path: Callable[[NodeId], str], nodes: list[NodeId]
    ) -> list[tuple[NodeId, Znode | ZooKeeperError]]:
        found: list[tuple[NodeId, Znode | ZooKeeperError]] = []
        for start in range(0, len(nodes), READ_AT_ONCE):
            some = nodes[start : start + READ_AT_ONCE]
            found.extend(zip(some, await self._session.get_many([path(node) for node in some]), strict=True))
        return found

    def _keeper(self, node: NodeId, got: Znode | ZooKeeperError) -> Keeper | Literal[False] | None:
        """What it brings into the ring, None if it keeps nothing; False if it is not here."""
        if isinstance(got, ZooKeeperError):
            return False
        try:
            record = codec.decode(got.data, Node)
            if not got.stat.ephemeral_owner:  # of a restored tree, say: no session, no node
                raise BadRecord("$", "expected an ephemeral znode")
            if record.node != node:
                raise BadRecord("$.node", f"expected {node!r}, got {record.node!r}")
        except BadRecord as error:
            self._log.info("ring.entry_unreadable", of=node, error=str(error))  # the dispatcher warns
            return False
        return keeper_of(record)

    def _hear(self, muster: Muster, node: NodeId, got: Znode | ZooKeeperError) -> None:
        """What an operator says of it; what cannot be read changes nothing."""
        if isinstance(got, NoNode):
            muster.node_state(node, "active", self._now())
        elif not isinstance(got, ZooKeeperError):
            try:
                muster.node_state(node, codec.decode(got.data, OperatorState).state, self._now())
            except BadRecord as error:
                self._log.info("ring.state_unreadable", of=node, error=str(error))

    async def _read_ring(self, muster: Muster) -> None:
        """One that is gone or unreadable is written again as we knew it."""
        ring = muster.ring
        try:
            got = await self._session.get(self._paths.ring)
            self._version, self._is_good = got.stat.version, True
            ring = read_ring(got.data)
        except NoNode:
            self._version, self._is_good = ABSENT, False
        except BadRecord as error:
            self._log.warning("ring.unreadable", error=str(error))
            self._is_good = False
        muster.ring_read(ring, self._now())

    # --- Acting -----------------------------------------------------------------------------------------

    async def _write(self, muster: Muster, session_id: int, epoch: int, check: Check) -> bool:
        """Write what has to stand in the ring; whether there was anything to do."""
        at = datetime.now(UTC).isoformat(timespec="seconds")
        decided = muster.decide(self._now(), self._grace_s(), at)
        if decided is None and not self._is_good and muster.ring.keepers:
            decided = muster.ring.keepers, muster.ring.lost
        if decided is None:
            return False
        keepers, lost = decided
        former = {keeper.node for keeper in muster.ring.keepers}
        staying = {keeper.node for keeper in keepers}
        if await self._is_back(muster, former - staying - muster.here.keys()):
            return True
        ring = Ring(epoch, keepers, lost)
        text = codec.encode(ring)
        is_new = self._version == ABSENT
        write = Create(self._paths.ring, text) if is_new else SetData(self._paths.ring, text, self._version)
        try:
            await self._session.multi([check, write], within=session_id)
        except MultiFailed as refusal:
            if refusal.index == 0:
                raise Deposed from None
            if isinstance(refusal.cause, BadVersion | NodeExists) or (isinstance(refusal.cause, NoNode) and not is_new):
                self._is_ring_seen = True  # somebody wrote it by hand
                return True
            raise refusal.cause from None
        self._version = 0 if is_new else self._version + 1
        self._is_good = True
        self.changes += 1
        self._log.info(
            "ring.written",
            keepers=len(keepers),
            joined=sorted(staying - former),
            left=sorted(former - staying),
            lost=sorted(lost),
        )
        muster.ring_read(ring, self._now())
        return True

    async def _is_back(self, muster: Muster, nodes: set[NodeId]) -> bool:
        """Whether somebody is here whom we are about to give up."""
        is_back = False
        for node, got in await self._read(self._paths.node, sorted(nodes)):
            keeper = self._keeper(node, got)
            if keeper is not False:
                muster.node_here(node, keeper, self._now())
                is_back = True
        return is_back

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
