"""Leader election: a line whose first candidate leads. ``sync/elections/<name>/candidate-<identity>-<number>``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zkd.errors import NoNode
from zkd.zk.recipes.footing import INTERRUPTIONS, Alarm, Footing
from zkd.zk.recipes.holding import Holding, Until
from zkd.zk.recipes.line import Line
from zkd.zk.recipes.locks import Mine, Standee, line_at

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from zkd.zk.recipes.held import Held


class Election:
    """`async with election.lead() as term`: lead for the block; `term.release()` resigns before its end."""

    def __init__(self, footing: Footing, directory: str, name: str, mine: Mine) -> None:
        self.name = name
        self._footing = footing
        self._directory = directory
        self._mine = mine

    def lead(self, *, timeout_s: float | None = None, until: Until = "doubt") -> Holding[Held]:
        """Stand for election, and lead when elected. `Held.fence` is the term: greater than any before."""
        line = Line(self._footing, f"election {self.name}", self._directory, "candidate")
        return Holding(line, timeout_s, until, self._mine)

    async def candidates(self) -> list[Standee]:
        """Who stands for election, the leader first."""
        return await line_at(self._footing.session, self._directory)

    async def leader(self) -> Standee | None:
        """Who leads, as the server that we talk to knows; None while nobody stands."""
        return next(iter(await self.candidates()), None)

    async def leaders(self) -> AsyncIterator[Standee | None]:
        """Who leads now, and again whenever that is somebody else; across lost connections. Never ends by itself."""
        last, is_first = "", True
        with Alarm(self._footing.session) as alarm:
            while True:
                await alarm.connected()
                try:
                    leader = await self._look(alarm)
                except INTERRUPTIONS:
                    continue
                if is_first or (leader.znode if leader else "") != last:
                    is_first, last = False, leader.znode if leader else ""
                    yield leader
                await alarm.wait()  # without bound: a leader may lead for years

    async def _look(self, alarm: Alarm) -> Standee | None:
        alarm.clear()
        while True:
            try:
                await alarm.children(self._directory)
                return await self.leader()
            except NoNode:
                if await self._footing.session.exists(self._directory, watch=alarm.ring) is None:
                    return None
