"""While this node leads: removes results and dead tasks whose time is over, and what lost nodes left behind.

Times are counted from each znode's creation by the server's clock (`zkd.core.clock`). One list of names a
round finds what is new; a result's own ``ttl_s`` is known from its task where this leader saw it, else the
result is read once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from structlog.typing import FilteringBoundLogger as Log

from zkd import codec
from zkd.core.clock import ServerClock
from zkd.errors import BadRecord, MultiFailed, NoNode, Unavailable, ZooKeeperError
from zkd.paths import Paths, TaskId
from zkd.records import Result
from zkd.zk import Check, Delete, Session

ROUND_S = 10.0
DELETE_AT_ONCE = 100
READ_AT_ONCE = 25
JUST_MET_S = 60.0  # at least, or its whole time to live
# What a node left behind goes when it has not come back for this long.
NODE_FORGOTTEN_S = 3600.0


class Reaper:
    def __init__(
        self,
        session: Session,
        paths: Paths,
        clock: ServerClock,
        log: Log,
        result_ttl_s: Callable[[], float],
        dead_ttl_s: Callable[[], float],
    ) -> None:
        self._session = session
        self._paths = paths
        self._clock = clock
        self._log = log
        self._result_ttl_s = result_ttl_s
        self._dead_ttl_s = dead_ttl_s
        self._due: dict[str, float] = {}  # path -> when to remove it
        self._missing_since: dict[str, float] = {}

    @property
    def known(self) -> int:
        """Results and dead tasks whose end is known."""
        return len(self._due)

    async def run(self, check: Check, ended: Callable[[], Mapping[TaskId, float | None]]) -> None:
        """One reign. `ended` gives the tasks that this leader saw end, with the `ttl_s` they asked for."""
        self._due.clear()
        while True:
            try:
                await self._round(check, ended())
            except Unavailable:
                pass  # the next round will do
            except ZooKeeperError as error:
                self._log.info("reaper.interrupted", error=str(error))
            await asyncio.sleep(ROUND_S)

    async def _round(self, check: Check, ended: Mapping[TaskId, float | None]) -> None:
        now = asyncio.get_running_loop().time()
        names = await self._session.children(self._paths.results)
        results = {f"{self._paths.results}/{name}": name for name in names}
        dead = {f"{self._paths.dead}/{name}" for name in await self._session.children(self._paths.dead)}
        self._due = {path: due for path, due in self._due.items() if path in results or path in dead}
        unknown = []
        for path, name in results.items():
            if path in self._due:
                continue
            if name in ended:
                self._due[path] = now + (ended[name] or self._result_ttl_s())
            else:
                unknown.append(path)
        unknown.extend(path for path in dead if path not in self._due)
        for start in range(0, len(unknown), READ_AT_ONCE):
            await self._read(unknown[start : start + READ_AT_ONCE], now)
        over = [path for path, due in self._due.items() if due <= now]
        for start in range(0, len(over), DELETE_AT_ONCE):
            await self._delete(check, over[start : start + DELETE_AT_ONCE])
        if over:
            self._log.info("results.reaped", count=len(over))
        await self._forget_nodes(check, now)

    async def _read(self, paths: list[str], now: float) -> None:
        for path, got in zip(paths, await self._session.get_many(paths), strict=True):
            if isinstance(got, ZooKeeperError):
                continue
            ttl_s = self._dead_ttl_s()
            if path.startswith(f"{self._paths.results}/"):
                ttl_s = self._result_ttl_s()
                try:
                    ttl_s = codec.decode(got.data, Result).ttl_s or ttl_s
                except BadRecord as error:
                    self._log.warning("result.unreadable", path=path, error=str(error))
            # However old the servers' clocks make it, one that we have just met stays for a while: two servers'
            # clocks may differ by more than a time to live, and a result that is gone cannot be read again.
            left_s = ttl_s - self._clock.age_s(got.stat.ctime, now, got.stat.czxid)
            self._due[path] = now + max(left_s, min(ttl_s, JUST_MET_S))

    async def _delete(self, check: Check, paths: list[str]) -> None:
        while paths:
            try:
                await self._session.multi([check, *(Delete(path, -1) for path in paths)])
                return
            except MultiFailed as refusal:
                if refusal.index == 0:
                    return  # deposed
                gone = paths.pop(refusal.index - 1)
                if not isinstance(refusal.cause, NoNode):
                    self._log.warning("result.not_reaped", path=gone, error=str(refusal.cause))

    async def _forget_nodes(self, check: Check, now: float) -> None:
        here = set(await self._session.children(self._paths.nodes))
        left = {
            f"{directory}/{name}"
            for directory in (self._paths.statuses, self._paths.assignments)
            for name in await self._session.children(directory)
            if name not in here
        }
        self._missing_since = {path: self._missing_since.get(path, now) for path in left}
        await self._delete(check, [path for path, at in self._missing_since.items() if at <= now - NODE_FORGOTTEN_S])
