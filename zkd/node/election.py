"""Lets this node stand for leader, and runs the leader's work while it reigns.

Candidates queue up as sequential ephemerals; each watches the one before it. The first takes office in one
transaction that also moves the version of ``control/epoch`` on. That version is the epoch: every write of a
leader checks it, so a deposed leader that does not know it yet cannot change anything. Leadership is for
efficiency only; no guarantee rests on there being one leader.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass

import msgspec
from structlog.typing import FilteringBoundLogger as Log

from zkd import codec
from zkd.core.clock import ServerClock
from zkd.core.queueing import standing
from zkd.errors import (
    AuthFailed,
    BadVersion,
    MultiFailed,
    NodeExists,
    OutcomeUnknown,
    SessionClosed,
    SessionExpired,
    Unavailable,
    ZooKeeperError,
)
from zkd.paths import NodeId, Paths
from zkd.records import Leader
from zkd.zk import Check, Create, Event, Session, SetData, Stat, State, ensure_path

RETRY_S = 1.0  # when something is wrong that another try may not change


@dataclass(frozen=True, slots=True)
class Reign:
    """One time in office. `check` belongs at the head of every transaction a leader makes."""

    epoch: int
    session_id: int
    check: Check


class Election:
    def __init__(
        self,
        session: Session,
        paths: Paths,
        node: NodeId,
        clock: ServerClock,
        log: Log,
        queue_max: Callable[[], int] = lambda: 0,
    ) -> None:
        self._session = session
        self._paths = paths
        self._node = node
        self._clock = clock
        self._log = log
        self._queue_max = queue_max
        self._candidate: str | None = None
        self._is_standing = True
        self._wake = asyncio.Event()
        self._said = Leader(node, "", 0)  # what stands at control/leader while we reign
        self.reign: Reign | None = None

    async def run(
        self, incarnation: Callable[[], str | None], lead: Callable[[Reign], Coroutine[None, None, None]]
    ) -> None:
        """Stand for election in every session; run `lead` while elected. `lead` is cancelled at the end of a reign."""
        unsubscribe = self._session.subscribe(lambda _: self._wake.set())
        try:
            while True:
                self._wake.clear()
                me = incarnation()
                if not self._is_standing and self._candidate is not None:
                    await self._withdraw()  # we queued up in the very moment of the resignation
                if self._session.state is not State.CONNECTED or me is None or not self._is_standing:
                    await self._pause(0.05 if self._session.state is State.CONNECTED else None)
                    continue
                try:
                    if await self._is_first():
                        reign = await self._take_office(me)
                        await self._reign(reign, lead)
                except (Unavailable, OutcomeUnknown, SessionExpired) as error:
                    self._log.info("election.interrupted", error=str(error))
                    await asyncio.sleep(0.02)
                except (SessionClosed, AuthFailed):
                    raise
                except ZooKeeperError as error:  # deleted, forbidden, over quota: people may mend it, or we
                    self._log.error("election.failed", error=str(error))
                    with suppress(ZooKeeperError):
                        await ensure_path(self._session, self._paths.candidates)
                    await self._pause(RETRY_S)
        finally:
            unsubscribe()

    def look(self) -> None:
        """What a leader says of itself may have changed."""
        self._wake.set()

    async def resign(self) -> None:
        """Step down and stand no more, so that the next leader need not wait for our session to end."""
        self._is_standing = False
        self._wake.set()
        await self._withdraw()

    async def _withdraw(self) -> None:
        if self._candidate is not None and self._session.state is State.CONNECTED:
            candidate, self._candidate = self._candidate, None
            for path in (self._paths.leader, f"{self._paths.candidates}/{candidate}"):
                try:
                    stat = await self._session.exists(path)
                    if stat is not None and stat.ephemeral_owner == self._session.session_id:
                        await self._session.delete(path, -1)
                except ZooKeeperError as error:
                    self._log.info("election.not_resigned", error=str(error))

    async def _pause(self, at_most_s: float | None) -> None:
        try:
            async with asyncio.timeout(at_most_s):  # not wait_for: it loses a cancellation that comes with the event
                await self._wake.wait()
        except TimeoutError:
            return

    async def _is_first(self) -> bool:
        """Queue up if we are not queued, and wait until it is our turn."""
        session_id = self._session.session_id
        children = await self._session.children(self._paths.candidates)
        mine = await self._mine(children)
        if mine is None:
            created = await self._session.create(
                self._paths.candidate(self._node), b"", ephemeral=True, sequential=True, within=session_id
            )
            mine = created.path.rpartition("/")[2]
            children = await self._session.children(self._paths.candidates)
        self._candidate = mine
        place = standing(children, mine)
        if place is None:
            return False
        if not place.is_held:
            (before,) = place.watch
            path = f"{self._paths.candidates}/{before}"
            stat = await self._session.exists(path, watch=self._saw)
            if stat is not None and not await self._is_relic(path, stat):
                await self._wake.wait()  # it leaves, or the state of our session changes
            return False
        return True

    async def _mine(self, children: list[str]) -> str | None:
        """Our candidate znode of this session, also one whose creation was never answered."""
        prefix = self._paths.candidate(self._node).rpartition("/")[2]
        for child in sorted(children):
            if child.startswith(prefix) and len(child) == len(prefix) + 10:
                stat = await self._session.exists(f"{self._paths.candidates}/{child}")
                if stat is not None and stat.ephemeral_owner == self._session.session_id:
                    return child
        return None

    async def _is_relic(self, path: str, stat: Stat) -> bool:
        """Whether this belongs to no session, as after a restored copy of the tree, or a slip. It is removed."""
        if stat.ephemeral_owner:
            return False
        self._log.warning("election.relic_removed", path=path)
        await self._session.delete(path, stat.version)
        return True

    def _saw(self, _: Event) -> None:
        self._wake.set()

    async def _take_office(self, incarnation: str) -> Reign:
        session_id = self._session.session_id
        while True:
            stat = await self._session.exists(self._paths.epoch)
            if stat is None:
                with suppress(NodeExists):
                    await self._session.create(self._paths.epoch, b"")
                continue
            self._said = Leader(self._node, incarnation, stat.version + 1, self._queue_max())
            record = codec.encode(self._said)
            try:
                done = await self._session.multi(
                    [
                        SetData(self._paths.epoch, record, stat.version),
                        Create(self._paths.leader, record, ephemeral=True),
                    ],
                    within=session_id,
                )
            except MultiFailed as refusal:
                if isinstance(refusal.cause, NodeExists):
                    await self._wait_for_old_leader(session_id)
                elif not isinstance(refusal.cause, BadVersion):
                    raise refusal.cause from None
                continue
            moved = done[0]
            assert isinstance(moved, Stat)
            self._clock.observe(moved.mtime, asyncio.get_running_loop().time(), moved.mzxid)
            return Reign(moved.version, session_id, Check(self._paths.epoch, moved.version))

    async def _wait_for_old_leader(self, session_id: int) -> None:
        """A leader's entry stands although it is our turn: our own of an earlier try, or one about to go."""
        self._wake.clear()
        stat = await self._session.exists(self._paths.leader, watch=self._saw)
        if stat is None or await self._is_relic(self._paths.leader, stat):
            return
        if stat.ephemeral_owner == session_id:
            await self._session.delete(self._paths.leader, stat.version)
            return
        await self._pause(1.0)
        if self._session.state is not State.CONNECTED:
            raise Unavailable(self._paths.leader)

    async def _reign(self, reign: Reign, lead: Callable[[Reign], Coroutine[None, None, None]]) -> None:
        self._log.info("leader.elected", epoch=reign.epoch)
        self.reign = reign
        try:
            async with asyncio.TaskGroup() as group:
                work = group.create_task(lead(reign))
                end = group.create_task(self._until_over(reign))
                work.add_done_callback(lambda _: end.cancel())
                end.add_done_callback(lambda _: work.cancel())
        finally:
            self.reign = None
            self._log.info("leader.stepped_down", epoch=reign.epoch)

    async def _until_over(self, reign: Reign) -> None:
        """Wait for the end of the session, for doubt about it, or for our own resignation."""
        while True:
            self._wake.clear()
            is_over = self._session.state in (State.UNKNOWN, State.EXPIRED, State.CLOSED)
            if is_over or not self._is_standing or self._session.session_id != reign.session_id:
                return
            try:
                # Without it another may take office, and where control/ was deleted even in an epoch of our number.
                stat = await self._session.exists(self._paths.leader, watch=self._saw)
                if stat is None or stat.ephemeral_owner != reign.session_id:
                    return
                said = msgspec.structs.replace(self._said, queue_max=self._queue_max())
                if said != self._said:  # submitters go by it
                    change = SetData(self._paths.leader, codec.encode(said), stat.version)
                    await self._session.multi([reign.check, change], within=reign.session_id)
                    self._said = said
                    continue
            except ZooKeeperError as error:
                self._log.info("election.interrupted", error=str(error))
            await self._wake.wait()
