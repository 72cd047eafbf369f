"""While this node leads: removes results and dead tasks whose time is over, and what lost nodes left behind.

Times are counted from each znode's creation by the server's clock (`zkd.core.clock`). One list of names a
round finds what is new; a result's own ``ttl_s`` is known from its task where this leader saw it, else the
result is read once. When more results stand than a server should hold, those whose time is over next go
before it, but none that was met less than a minute ago. A result that a waiting task names in `after` stays.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Mapping
from typing import NamedTuple

from structlog.typing import FilteringBoundLogger as Log

from zkd import codec
from zkd.core.admission import Room
from zkd.core.clock import ServerClock
from zkd.errors import BadRecord, MultiFailed, NoNode, Unavailable, ZooKeeperError
from zkd.paths import Paths, TaskId, leaf
from zkd.records import Result
from zkd.zk import Check, Delete, Session

ROUND_S = 10.0
# A list of 250,000 names keeps the loop busy for 0.2 s: then rounds are further apart.
ROUND_SHARE = 1 / 50
ROUND_MAX_S = 30.0  # a busy machine makes a short list take long, too
SLICE = 5_000  # names looked at in one turn of the loop
DELETE_AT_ONCE = 100
READ_AT_ONCE = 25
JUST_MET_S = 60.0  # at least, or its whole time to live
SAMPLED = 64  # results whose size is asked for, to know about how much all have
SAMPLED_FROM = 500  # fewer than this are no danger, whatever their size
# What a node left behind goes when it has not come back for this long.
NODE_FORGOTTEN_S = 3600.0


class Due(NamedTuple):
    """When something is to go, and when it was met."""

    at: float
    met_at: float


class Reaper:
    def __init__(
        self,
        session: Session,
        paths: Paths,
        clock: ServerClock,
        log: Log,
        result_ttl_s: Callable[[], float],
        dead_ttl_s: Callable[[], float],
        room: Callable[[], Room],
    ) -> None:
        self._session = session
        self._paths = paths
        self._clock = clock
        self._log = log
        self._result_ttl_s = result_ttl_s
        self._dead_ttl_s = dead_ttl_s
        self._room = room  # for results
        self._due: dict[str, Due] = {}
        self._missing_since: dict[str, float] = {}

    @property
    def known(self) -> int:
        """Results and dead tasks whose end is known."""
        return len(self._due)

    async def run(
        self, check: Check, ended: Callable[[], Mapping[TaskId, float | None]], is_wanted: Callable[[TaskId], bool]
    ) -> None:
        """One reign. `ended` gives the tasks that this leader saw end, with the `ttl_s` they asked for."""
        self._due.clear()
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                await self._round(check, ended(), is_wanted)
            except Unavailable:
                pass  # the next round will do
            except ZooKeeperError as error:
                self._log.info("reaper.interrupted", error=str(error))
            await asyncio.sleep(max(ROUND_S, min(ROUND_MAX_S, (loop.time() - began) / ROUND_SHARE)))

    async def _round(
        self, check: Check, ended: Mapping[TaskId, float | None], is_wanted: Callable[[TaskId], bool]
    ) -> None:
        now = asyncio.get_running_loop().time()
        names = await self._session.children(self._paths.results)
        former, due = self._due, dict[str, Due]()
        unknown = []
        for number, name in enumerate(names):
            path = f"{self._paths.results}/{name}"
            if path in former:
                due[path] = former[path]
            elif name in ended:
                due[path] = Due(now + (ended[name] or self._result_ttl_s()), now)
            else:
                unknown.append(path)
            if number % SLICE == SLICE - 1:
                await asyncio.sleep(0)
        for path in [f"{self._paths.dead}/{name}" for name in await self._session.children(self._paths.dead)]:
            if path in former:
                due[path] = former[path]
            else:
                unknown.append(path)
        self._due = due
        for start in range(0, len(unknown), READ_AT_ONCE):
            await self._read(unknown[start : start + READ_AT_ONCE], now)
        over = [path for path, when in self._due.items() if when.at <= now]
        excess = await self._excess(names) - len(over)
        if excess > 0:
            crowded = self._first_to_go(excess, now)
            self._log.warning("results.crowded", there=len(names), too_many=excess, reaped_early=len(crowded))
            over += crowded
        over = [path for path in over if not is_wanted(leaf(path))]
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
            self._due[path] = Due(now + max(left_s, min(ttl_s, JUST_MET_S)), now)

    async def _excess(self, names: list[str]) -> int:
        """How many results are too many, by their number, or by what a sample of them says of all their bytes."""
        room = self._room()
        excess = len(names) - room.tasks
        if len(names) >= SAMPLED_FROM:
            some = names[:: len(names) // SAMPLED]  # a server tells them in no order
            stats = await asyncio.gather(*(self._session.exists(f"{self._paths.results}/{name}") for name in some))
            sizes = [stat.data_length for stat in stats if stat is not None]
            mean = sum(sizes) / max(1, len(sizes))
            excess = max(excess, len(names) - int(room.size / max(1.0, mean)))
        return excess

    def _first_to_go(self, count: int, now: float) -> list[str]:
        """So many results whose time is over next, of those that were there long enough to be read."""
        results = f"{self._paths.results}/"
        old = (
            (due.at, path)
            for path, due in self._due.items()
            if path.startswith(results) and due.at > now and due.met_at <= now - JUST_MET_S
        )
        return [path for _, path in heapq.nsmallest(count, old)]

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
