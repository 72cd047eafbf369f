"""One question to all parts, and the answers to add up: does what `zkd.core.rounds` decides, over the links.

Every part is in exactly one of the answers that `gather` gives. Who was asked, who was late, who failed and who was
lost meanwhile makes no difference to them but in how they are cut.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import suppress

from structlog.typing import FilteringBoundLogger as Log

from zkd.core import rounds
from zkd.core.asks import Home
from zkd.core.rounds import Answered, Close, Command, Event, Failed, Forget, GiveUp, NodesChanged, Round, Send, Ticked
from zkd.errors import ZkdError
from zkd.paths import NodeId
from zkd.training.frames import Buffer
from zkd.training.links import Came, Heard, Links, Refused

PACE_MIN_S = 0.01  # what is done sooner tells nothing of a node's pace
PACE_STEPS = 2.0  # paces are told to these powers, so that equals stay equals and parts stay where they are cached

Homes = Mapping[int, Home]


class GivenUp(ZkdError):
    """A round cannot be completed. The message says why."""


class Gathering:
    """Questions one after the other; `homes` gives where the parts lie, and is asked again after `moved`."""

    def __init__(self, links: Links, homes: Callable[[], Homes], counts: Counter[str], log: Log) -> None:
        self._links = links
        self._homes = homes
        self._log = log
        self._number = 0
        self._wake = asyncio.Event()
        self._heard: deque[Heard] = deque()
        self._has_moved = True
        self._known: Homes = {}
        self._paces: dict[NodeId, float] = {}
        self._round: Round | None = None
        self._counts = counts

    def hear(self, what: Heard) -> None:
        """Something came over the links."""
        self._heard.append(what)
        self._wake.set()

    def moved(self) -> None:
        """Parts may lie elsewhere now."""
        self._has_moved = True
        self._wake.set()

    def waits_for(self) -> list[str]:
        """For people: one line a node or a lost part."""
        return [] if self._round is None or self._round.is_over else rounds.waits_for(self._round)

    async def gather(self, fence: int, question: bytes) -> list[Buffer]:
        """The partials of all parts. Raises `GivenUp`; cancelled, it tells the nodes to forget."""
        self._number += 1
        self._heard.clear()
        self._look()
        answers: dict[int, tuple[Buffer, ...]] = {}
        self._round, commands = rounds.open_round(
            fence, self._number, self._known, self._links.live, self._now(), self._paces
        )
        closed: Close | None = None
        try:
            while True:
                closed = self._carry_out(commands, question)
                if closed is not None:
                    break
                await self._wait(rounds.next_look_s(self._round, self._now()))
                commands = []
                while self._heard and not self._round.is_over:
                    commands += self._take(self._heard.popleft(), answers, fence)
                if not self._round.is_over and self._has_moved:
                    self._look()
                    commands += self._step(NodesChanged(self._links.live, self._known))
                if not self._round.is_over:
                    commands += self._step(Ticked())
        finally:
            if closed is None and not self._round.is_over:
                for ask in self._round.asks.waiting():
                    self._links.forget(ask.node, self._number, ask.number)
            state, self._round = self._round, None
        self._learn(state)
        return [partial for number in closed.asks for partial in answers[number]]

    def _take(self, what: Heard, answers: dict[int, tuple[Buffer, ...]], fence: int) -> list[Command]:
        """An event of this round; nothing of any other."""
        assert self._round is not None
        if isinstance(what, Came):
            if what.round != self._number or not self._is_of(what.node, what.ask):
                return []
            answers.setdefault(what.ask, what.partials)
            self._counts["answered"] += 1
            return self._step(Answered(fence, what.round, what.ask, what.parts))
        if isinstance(what, Refused):
            if what.round != self._number or not self._is_of(what.node, what.ask):
                return []
            self._counts["failed"] += 1
            self._log.info("job.ask_failed", node=what.node, round=what.round, error=what.why)
            return self._step(Failed(fence, what.round, what.ask, what.why))
        return self._step(NodesChanged(what.live))

    def _is_of(self, node: NodeId, ask: int) -> bool:
        """Whether this node was sent this ask: none answers for another."""
        assert self._round is not None
        asks = self._round.asks.all
        return 0 <= ask < len(asks) and asks[ask].node == node

    def _step(self, event: Event) -> list[Command]:
        assert self._round is not None
        self._round, commands = rounds.step(self._round, event, self._now())
        return commands

    def _carry_out(self, commands: list[Command], question: bytes) -> Close | None:
        for command in commands:
            if isinstance(command, Send):
                self._counts["asked"] += 1
                self._links.ask(command.node, self._number, command.ask, command.parts, question)
            elif isinstance(command, Forget):
                self._links.forget(command.node, self._number, command.ask)
            elif isinstance(command, GiveUp):
                raise GivenUp(command.why)
            else:
                return command
        return None

    async def _wait(self, until_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, until_s - self._now())):
                await self._wake.wait()
        self._wake.clear()

    def _look(self) -> None:
        if self._has_moved:
            self._has_moved = False
            self._known = self._homes()

    def _learn(self, state: Round) -> None:
        """How fast nodes are, roughly: parts that move between nodes of the same pace are read anew each time."""
        for ask in state.asks.all:
            if 0 < ask.took_s < PACE_MIN_S:
                return
        for node, pace in rounds.paces(state).items():
            known = self._paces.get(node)
            if known is None or not 1 / PACE_STEPS < pace / known < PACE_STEPS:
                self._paces[node] = PACE_STEPS ** round(math.log(pace, PACE_STEPS))

    @staticmethod
    def _now() -> float:
        return time.monotonic()  # the loop's own has milliseconds only
