"""One request for a prediction, and the nodes that are asked for its answer: one, and others when that is not enough.

    late, by what is usual         another one is asked beside, if there were not too many of those
    in danger, by the deadline     another one is asked beside, whatever that costs
    its node has left the tree     the same, at once
    failed, or refused for now     the next one is asked; one that was asked comes again after a pause

The first good answer counts, and who is still at it is hung up on. All of it ends with the deadline.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zkd.client.prediction_wire import Answer, Lost, NotAllowed, Question, Shed, Unknown, ask
from zkd.errors import BadRows, ModelNotFound, NotPredicted

if TYPE_CHECKING:
    import aiohttp

    from zkd.client.serving_view import ServingView
    from zkd.core.choice import Choice
    from zkd.paths import NodeId

DANGER = (0.4, 0.7)  # shares of the time until the deadline
PAUSE_S, PAUSE_S_MAX = 0.01, 0.2  # of a node that failed, doubled each time
FAULTS_TOLD = 6


@dataclass(frozen=True)
class Lane:
    """What all requests of a predictor share."""

    what: str  # for people
    path: str
    http: aiohttp.ClientSession
    view: ServingView
    choice: Choice
    is_hedging: bool


class Race:
    """`run` once."""

    def __init__(self, lane: Lane, question: Question, began: float, give_up: float) -> None:
        self.asked: list[NodeId] = []
        self._lane = lane
        self._question = question
        self._began = began
        self._give_up = give_up
        self._running: dict[NodeId, float] = {}  # since when
        self._resting: dict[NodeId, float] = {}  # until when
        self._faults: dict[NodeId, Lost] = {}
        self._failures = 0
        self._heard: asyncio.Queue[tuple[NodeId, Answer | Exception] | None] = asyncio.Queue()
        self._now = asyncio.get_running_loop().time

    def look(self, nodes: Mapping[NodeId, str]) -> None:
        """The nodes are others now. One that has gone may still answer, but nobody counts on it."""
        if not self._running or any(node not in nodes for node in self._running):
            self._heard.put_nowait(None)

    async def run(self) -> Answer:
        """Raises `BadRows`, `ModelNotFound`, `NotPredicted`; `TimeoutError` is the caller's, who bounds it."""
        async with asyncio.TaskGroup() as tasks:
            answer = await self._answered(tasks)
            for task in self._tasks:
                task.cancel()
        if isinstance(answer, Exception):
            raise answer
        self._lane.choice.took(self._now() - self._began)
        return answer

    def told(self) -> str:
        """What came of it so far, for people."""
        faults = [f"{node}: {fault}" for node, fault in self._faults.items()][-FAULTS_TOLD:]
        silent = sorted(self._running)
        if silent:
            faults.append(f"{', '.join(silent)} did not answer")
        return "; ".join(faults) or "no node is here that serves"

    async def _answered(self, tasks: asyncio.TaskGroup) -> Answer | Exception:
        lane, late_s = self._lane, self._lane.choice.late_s
        self._tasks: list[asyncio.Task[None]] = []
        beside_at = self._began + late_s if lane.is_hedging and late_s is not None else math.inf
        dangers = deque(self._began + share * (self._give_up - self._began) for share in DANGER)
        self._ask(tasks)
        while True:
            wake = min(beside_at, dangers[0] if dangers else math.inf)
            if not self._running:
                wake = min([wake, *self._resting.values()])
            try:
                async with asyncio.timeout_at(wake if wake < math.inf else None):
                    heard = await self._heard.get()
            except TimeoutError:
                now = self._now()
                is_danger = bool(dangers) and dangers[0] <= now
                if is_danger:
                    dangers.popleft()
                is_late = beside_at <= now
                if is_late:
                    beside_at = math.inf
                others = is_late and lane.choice.trusted(self._free(), now)
                if not self._running or is_danger or (others and lane.choice.may_ask_beside()):
                    self._ask(tasks)
                continue
            if heard is None:
                self._ask(tasks)
                continue
            node, answer = heard
            asked_at = self._running.pop(node)
            if isinstance(answer, Answer):
                for other, since in self._running.items():
                    if since <= asked_at:
                        lane.choice.overtaken(other, since, self._now())
                return answer
            if not isinstance(answer, Lost):
                return answer
            self._note(node, answer)
            if (verdict := self._verdict()) is not None:
                return verdict
            self._ask(tasks)

    # --- Asking -----------------------------------------------------------------------------------------------

    def _free(self) -> list[NodeId]:
        now = self._now()
        return [
            node for node in self._lane.view.nodes if node not in self._running and self._resting.get(node, now) <= now
        ]

    def _ask(self, tasks: asyncio.TaskGroup) -> None:
        """Ask the best of those that can be asked, if there is one."""
        node = self._lane.choice.pick(self._free(), self._now())
        if node is not None:
            self._lane.choice.asked(node, is_first=not self.asked)
            self.asked.append(node)
            self._running[node] = self._now()
            self._tasks.append(tasks.create_task(self._one(node, self._lane.view.nodes[node])))

    async def _one(self, node: NodeId, address: str) -> None:
        lane, since = self._lane, self._now()
        left_ms = max(1, math.floor(1000 * (self._give_up - since)))
        try:
            answer, queued = await ask(lane.http, address + lane.path, lane.view.token, self._question, left_ms)
        except (BadRows, Lost) as error:
            self._heard.put_nowait((node, error))
        else:
            lane.choice.answered(node, self._now(), self._now() - since, queued)
            self._heard.put_nowait((node, answer))
        finally:
            lane.choice.ended(node)

    # --- Faults -----------------------------------------------------------------------------------------------

    def _note(self, node: NodeId, fault: Lost) -> None:
        now, choice = self._now(), self._lane.choice
        self._faults[node] = fault
        self._failures += 1
        rest_s = min(PAUSE_S_MAX, PAUSE_S * 2 ** min(self._failures, 8))
        if isinstance(fault, Shed):
            rest_s = max(rest_s, fault.after_s)
            choice.shed(node, now, rest_s)
        elif isinstance(fault, NotAllowed):
            self._lane.view.look_again()
        elif not isinstance(fault, Unknown):
            choice.failed(node, now)
        self._resting[node] = now + rest_s

    def _verdict(self) -> Exception | None:
        """What there is to be said already, if nobody is left who could answer in time."""
        nodes = self._lane.view.nodes
        if self._running or not nodes or any(node not in self._faults for node in nodes):
            return None
        faults = [self._faults[node] for node in nodes]
        if all(isinstance(fault, Unknown) for fault in faults):
            return ModelNotFound(str(faults[0]))
        if all(isinstance(self._faults[node], Shed) and self._resting[node] >= self._give_up for node in nodes):
            after_s = min(fault.after_s for fault in faults if isinstance(fault, Shed))
            return NotPredicted("full", f"{self._lane.what}: no node takes more; {self.told()}", after_s)
        return None
