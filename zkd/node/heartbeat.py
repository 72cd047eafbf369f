"""Says every few seconds at ``status/<node>`` what this node is doing, in one coalesced write.

That a node lives is said by its session, not by this: a missed heartbeat is a node too busy to talk, no
reason to take its work away. Each write also tells us what the server's clock shows (`zkd.core.clock`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import cache

from structlog.typing import FilteringBoundLogger as Log

from zkd import codec
from zkd.core.clock import ServerClock
from zkd.errors import NoNode, ZooKeeperError
from zkd.paths import NodeId, Paths
from zkd.records import NodeStatus
from zkd.zk import Session, Stat, State, ensure_path

BUSY_S = 1.0  # while kernels run: their progress is in it
IDLE_S = 10.0  # 1,000 idle nodes cost the ensemble 100 writes/s


class Heartbeat:
    def __init__(
        self,
        session: Session,
        paths: Paths,
        node: NodeId,
        clock: ServerClock,
        log: Log,
        status: Callable[[], NodeStatus | None],
    ) -> None:
        self._session = session
        self._path = paths.status(node)
        self._clock = clock
        self._log = log
        self._status = status
        self._hurry = asyncio.Event()
        self.lag_s = 0.0  # how late this loop was called last: what delays it delays the whole daemon

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        written_at = -IDLE_S
        was_busy = False
        while True:
            due = loop.time() + BUSY_S
            hurries = await self._pause()
            if not hurries:
                self.lag_s = max(0.0, loop.time() - due)
            status = self._status()
            if status is None or self._session.state is not State.CONNECTED:
                continue
            is_busy = bool(status.running or status.queued)
            if not hurries and not is_busy and not was_busy and loop.time() - written_at < IDLE_S:
                continue
            was_busy = is_busy
            try:
                stat = await self._write(codec.encode(status))
            except ZooKeeperError as error:
                self._log.info("heartbeat.missed", error=str(error))
                continue
            written_at = loop.time()
            self._clock.observe(stat.mtime, written_at, stat.mzxid)

    def hurry(self) -> None:
        """Something is news to people: say it now, not with the next beat."""
        self._hurry.set()

    async def _pause(self) -> bool:
        """Wait for the next beat or for news, whichever comes first; whether it was news."""
        try:
            async with asyncio.timeout(BUSY_S):
                await self._hurry.wait()
        except TimeoutError:
            return False
        self._hurry.clear()
        return True

    async def _write(self, data: bytes) -> Stat:
        try:
            return await self._session.set(self._path, data, -1)
        except NoNode:
            await ensure_path(self._session, self._path)
            return await self._session.set(self._path, data, -1)

    async def remove(self) -> None:
        """Leave no status behind: this node stops in good order."""
        if self._session.state is State.CONNECTED:
            try:
                await self._session.delete(self._path, -1)
            except ZooKeeperError as error:
                self._log.info("heartbeat.not_removed", error=str(error))


def memory_bytes() -> int:
    """The resident memory of this process. Once it was asked for, also while no more files can be opened."""
    return int(os.pread(_statm(), 128, 0).split()[1]) * os.sysconf("SC_PAGE_SIZE")


@cache
def _statm() -> int:
    return os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
