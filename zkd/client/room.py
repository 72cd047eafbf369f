"""Holds a program back before it drops more than the cluster takes.

Every so many tasks one cheap look (the number of children is in the stat of an `exists`) gives credit for the next
ones: a share of what is left below the limit that the leader announces. Without credit tasks wait here, in their
order, and not in the tree. A program that drops little never looks, and never waits.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from zkd.codec import decode
from zkd.errors import BadRecord, NoNode, Overloaded, SessionClosed, ZooKeeperError
from zkd.records import Leader

if TYPE_CHECKING:
    from collections.abc import Callable

    from zkd.paths import Paths
    from zkd.zk import Session

LOOK_EACH = 2_000  # tasks without a look: so many of each program harm no server
UNLIMITED = 20_000  # so many when nobody says how many may wait, or nobody can be asked
# A sole submitter has half of the limit (`zkd.core.admission`); others may be dropping in the same moment.
FILLED = 0.45
OTHERS = 8  # so many programs may look at once and use up what they see
SMALL = 1 / 16  # of the limit: who has dropped less than this since the queue was short is not the one who floods
SHORT = 1 / 4
AGAIN_S = 0.1
PATIENCE_S = 60.0  # so long a task waits while there is no room at all, as it would for a lost ensemble
LIMIT_KNOWN_S = 30.0


class Room:
    """The room in ``tasks/`` as one client sees it. Its tasks belong to the given group."""

    def __init__(self, session: Session, paths: Paths, tasks: asyncio.TaskGroup) -> None:
        self._session = session
        self._paths = paths
        self._tasks = tasks
        self._credit = LOOK_EACH
        self._taken = 0  # since the last look
        self._mine = 0  # dropped since the queue was short
        self._limit = (0, 0.0)  # as the leader announced it, and when we read that
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._looking: asyncio.Task[None] | None = None

    def take(self) -> bool:
        """Whether one more may be dropped now. If not, `wait` for it."""
        if self._credit <= 0:
            return False
        self._credit -= 1
        self._taken += 1
        if self._taken == LOOK_EACH // 2:
            self._look_soon()  # early, so that nobody has to wait for the answer
        return True

    async def wait(self) -> None:
        """Return when it may be dropped. Raises `Overloaded` when there was no room for PATIENCE_S."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._look_soon()
        await future

    async def queued_and_limit(self) -> tuple[int, int]:
        """How many tasks wait or run now, and how many may; the latter is 0 when no leader says it."""
        stat = await self._session.exists(self._paths.tasks)
        limit, read_at = self._limit
        if time.monotonic() - read_at > LIMIT_KNOWN_S:
            try:
                limit = decode((await self._session.get(self._paths.leader)).data, Leader).queue_max
            except (NoNode, BadRecord):
                limit = 0
            self._limit = (limit, time.monotonic())
        return 0 if stat is None else stat.num_children, limit

    def close(self) -> None:
        """Nobody may go on waiting."""
        if self._looking is not None:
            self._looking.cancel()
        self._refuse_all(SessionClosed)

    def _look_soon(self) -> None:
        if self._looking is None or self._looking.done():
            self._looking = self._tasks.create_task(self._look())

    async def _look(self) -> None:
        """Look until there is credit for all who wait, or no hope."""
        had_room_at = time.monotonic()
        while True:
            self._mine += self._taken
            self._taken = 0
            try:
                queued, limit = await self.queued_and_limit()
            except ZooKeeperError:
                queued = limit = 0  # what an outage means is for the drop itself to find out
            self._credit = self._credit_for(queued, limit)
            if self._credit:
                had_room_at = time.monotonic()
            while self._waiting and self._credit > 0:
                future = self._waiting.popleft()
                if not future.done():
                    future.set_result(None)
                    self._credit -= 1
                    self._taken += 1
            if not self._waiting:
                return
            if time.monotonic() - had_room_at > PATIENCE_S:
                self._refuse_all(partial(Overloaded, told(queued, limit), kind="overloaded"))
                return
            await asyncio.sleep(AGAIN_S)

    def _credit_for(self, queued: int, limit: int) -> int:
        if not limit:
            return UNLIMITED
        if queued < SHORT * limit:
            self._mine = 0
        left = int(FILLED * limit) - queued
        if left > 0:
            return max(1, min(LOOK_EACH, left), left // OTHERS)
        # The room that is left is for those who dropped little, and the leader says who that is.
        return min(LOOK_EACH, limit - queued) if queued < limit and self._mine < SMALL * limit else 0

    def _refuse_all(self, error: Callable[[], Exception]) -> None:
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(error())


def told(queued: int, limit: int) -> str:
    """In words, that there is no room."""
    return (
        f"{queued:,} tasks wait or run, and the cluster takes {limit:,} (tasks.queue_max), half of them from one "
        "submitter: drop it again when fewer wait, or start more nodes"
    )
