"""A lane: the waiting tasks that the same nodes could run, and which of both is next.

Kernels that the same nodes have share a lane, since it matters not to the node which of them it is. Within a
lane nobody waits behind a task that needs something else, so its head alone has to be looked at.
"""

from __future__ import annotations

import heapq
from collections.abc import Container, Mapping
from dataclasses import dataclass

from zkd.core.fairness import Aged, Submitters, Turns
from zkd.core.picture import Entry, Member, Phase
from zkd.core.room import Room
from zkd.core.stands import Stand
from zkd.paths import NodeId, TaskId

# Places in the heaps of a lane, of a task that waits and beside that: more are of tasks that have left.
PLACES_EACH = 4
PLACES_KEPT = 256

# The more urgent, the smaller: priority, slots held and tag of the submitter, age.
Urgency = tuple[int, int, int, Aged]


@dataclass(frozen=True, slots=True)
class Demand:
    """What the tasks of one lane need of a node."""

    kinds: frozenset[int]  # of nodes, by the kernels they have
    kernel: str | None  # where tasks of this kernel keep to themselves
    node: NodeId | None
    labels: tuple[tuple[str, str], ...]
    slots: int
    memory: int | None


@dataclass(slots=True)
class Gap:
    """Where the wide tasks of a lane wait for room, and since when."""

    since: float
    look_at: float  # for a node to be kept free; not before
    node: NodeId | None = None


class Lane:
    def __init__(self, demand: Demand, stand: Stand, tasks: Mapping[TaskId, Entry], submitters: Submitters) -> None:
        self.demand = demand
        self.stand = stand
        self._tasks = tasks
        self._submitters = submitters
        self.turns: dict[int, Turns] = {}  # by priority
        self._priorities: list[int] = []  # negated
        self._ages: list[Aged] | None = None  # every task by age alone, once there is another order
        self.count = 0
        self._places = 0  # taken since the heaps were last cleared of tasks that have left
        self.gap: Gap | None = None

    # --- Tasks --------------------------------------------------------------------------------------------

    def push(self, entry: Entry) -> None:
        turns = self.turns.get(entry.priority)
        if turns is None:
            turns = self.turns[entry.priority] = Turns(self._submitters)
            heapq.heappush(self._priorities, -entry.priority)
        aged = (entry.czxid, entry.id, entry.version)
        turns.push(entry.submitter, aged)
        if self._ages is not None:
            heapq.heappush(self._ages, aged)
        self.count += 1
        self._places += 1

    def left(self) -> None:
        """One of its tasks is no longer ready, or no longer here."""
        self.count -= 1
        if self.count == 0:  # what still stands in its heaps has gone
            self.turns.clear()
            self._priorities.clear()
            self._ages = None
            self._places = 0
            self.gap = None
        elif self._places > PLACES_EACH * self.count + PLACES_KEPT:
            self._clear_out()

    def _clear_out(self) -> None:
        """Who leaves behind a head that cannot run never comes up, and would stand here for as long as that waits."""
        for turns in self.turns.values():
            turns.clear_out(self.is_live)
        if self._ages is not None:
            self._ages = [aged for aged in self._ages if self.is_live(aged)]
            heapq.heapify(self._ages)
        self._places = self.count

    def size(self) -> int:
        queued = sum(len(queue) for turns in self.turns.values() for queue in turns.queues.values())
        return queued + len(self._ages or ())

    def is_live(self, aged: Aged) -> bool:
        """Whether this task is really ready. Tasks leave by being forgotten here, lazily."""
        czxid, task_id, version = aged
        entry = self._tasks.get(task_id)
        return (
            entry is not None
            and entry.phase is Phase.READY
            and entry.czxid == czxid
            and entry.version == version
            and self in entry.lanes
        )

    def head(self) -> Urgency | None:
        """How urgent its best task is; None when nothing waits."""
        while self._priorities:
            negated = self._priorities[0]
            best = self.turns[-negated].best(self.is_live)
            if best is not None:
                return (negated, *best)
            del self.turns[-negated]
            heapq.heappop(self._priorities)
        return None

    def oldest(self) -> Entry | None:
        """The task that has waited longest, whatever its priority and whosever it is."""
        if self._ages is None:
            queues = [queue for turns in self.turns.values() for queue in turns.queues.values()]
            if len(queues) == 1:
                head = self.head()
                return None if head is None else self._tasks[head[3][1]]
            self._ages = [aged for queue in queues for aged in queue]
            heapq.heapify(self._ages)
        while self._ages and not self.is_live(self._ages[0]):
            heapq.heappop(self._ages)
        return self._tasks[self._ages[0][1]] if self._ages else None

    # --- Nodes --------------------------------------------------------------------------------------------

    def suits(self, member: Member) -> bool:
        """Whether this node could run its tasks at all, busy or not."""
        demand = self.demand
        return (
            demand.node in (None, member.record.node)
            and (demand.memory is None or member.memory is None or demand.memory <= member.memory)
            and self.stand.suits(member)
        )

    def node(self, room: Room, closed: Container[NodeId]) -> NodeId | None:
        """The least loaded node with room for its tasks, but for those in `closed`."""
        demand = self.demand
        if demand.node is not None:
            member = room.members.get(demand.node)
            is_open = member is not None and demand.node not in closed and self.suits(member)
            has_room = is_open and room.has(demand.node, demand.slots) and room.has_memory(demand.node, demand.memory)
            return demand.node if has_room else None
        return self.stand.node(room, demand.memory, closed)
