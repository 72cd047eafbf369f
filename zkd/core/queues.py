"""Ready tasks in queues by what they need, and which of them goes to which node.

No task waits behind another that needs something else. Each queue is served by priority, then age; the
best head of all queues goes first, to the least loaded node that can run it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from zkd.core.picture import Entry, Member, Need, Phase, fits
from zkd.paths import NodeId, TaskId

# A wide task needs a whole gap, and narrow ones close gaps as they open. Once they have passed it over for
# this long, one node that could run it gets nothing less urgent until the gap is there.
PASSED_OVER_S = 1.0


@dataclass(slots=True)
class Gap:
    """Where a wide need waits for room, and since when."""

    since: float
    node: NodeId | None = None


class Queues:
    """The ready ones among `tasks`, to be matched with `members`; both belong to the leader's mind."""

    def __init__(self, me: NodeId, tasks: Mapping[TaskId, Entry], members: Mapping[NodeId, Member]) -> None:
        self._me = me
        self._tasks = tasks
        self._members = members
        self._ready: dict[Need, list[tuple[int, int, TaskId]]] = {}
        self.passed_over: dict[Need, Gap] = {}  # wide needs that wait for a gap

    def __bool__(self) -> bool:
        return bool(self._ready)

    def size(self) -> int:
        """Entries in all queues, also of tasks that have left and not been noticed yet."""
        return sum(map(len, self._ready.values()))

    def needs(self) -> list[Need]:
        """What the waiting tasks need; some of these may have left their queue already."""
        return list(self._ready)

    def push(self, entry: Entry) -> None:
        heapq.heappush(self._ready.setdefault(entry.need, []), (-entry.priority, entry.czxid, entry.id))

    def pop_all(self, need: Need) -> Iterator[Entry]:
        """Every task of this need, out of its queue, the best first."""
        while queue := self._live_queue(need):
            yield self._tasks[heapq.heappop(queue)[2]]

    def match(self, now: float, give: Callable[[Entry, Member], None]) -> None:
        """Give ready tasks to nodes with credit: best task first, least loaded node first."""
        room: dict[NodeId, int] = {}
        for name, member in self._members.items():
            if member.takes_work:
                ahead = member.pace.ahead(now)
                credit = member.record.slots + ahead - member.slots_held
                # A busy node is refilled by the handful: a write of assign/<node> costs the same for one task.
                if credit > ahead // 4:
                    room[name] = credit
        if not room:
            return
        for need in self.passed_over.keys() - self._ready.keys():
            del self.passed_over[need]
        heads = [(queue[0], n, need) for n, need in enumerate(list(self._ready)) if (queue := self._live_queue(need))]
        heapq.heapify(heads)
        ranked: dict[Need, list[tuple[float, bool, NodeId]]] = {}
        while heads and room:
            _, n, need = heads[0]
            queue = self._ready[need]
            nodes = ranked.get(need)
            if nodes is None:
                nodes = ranked[need] = self._rank(need, room)
            best = self._best_node(need, nodes, room)
            if best is None:
                if need.slots > 1:
                    self._keep_gap(need, room, now)
                heapq.heappop(heads)
                continue
            self.passed_over.pop(need, None)
            give(self._tasks[heapq.heappop(queue)[2]], self._members[best])
            room[best] -= need.slots
            if room[best] <= 0:
                del room[best]
            if self._live_queue(need):
                heapq.heapreplace(heads, (queue[0], n, need))
            else:
                heapq.heappop(heads)

    def _rank(self, need: Need, room: dict[NodeId, int]) -> list[tuple[float, bool, NodeId]]:
        """A heap of the nodes with credit that could run this, the least loaded on top."""
        names = room if need.node is None else (need.node,)
        heap = [self._load(name) for name in names if name in room and fits(need, self._members[name])]
        heapq.heapify(heap)
        return heap

    def _load(self, name: NodeId) -> tuple[float, bool, NodeId]:
        # The leader's own node comes first among equals: handing work to it saves two hops.
        member = self._members[name]
        return member.slots_held / member.record.slots, name != self._me, name

    def _best_node(self, need: Need, nodes: list[tuple[float, bool, NodeId]], room: dict[NodeId, int]) -> NodeId | None:
        """The least loaded of these nodes, or None when none has room. Their order is brought up to date on the way."""
        while nodes:
            name = nodes[0][2]
            load = self._load(name)
            member = self._members[name]
            if name not in room or (need.slots > 1 and need.slots > member.record.slots - member.slots_held):
                heapq.heappop(nodes)  # a wide task waits for a whole gap; only narrow ones queue ahead
            elif load != nodes[0]:
                heapq.heapreplace(nodes, load)
            else:
                return name
        return None

    def _keep_gap(self, need: Need, room: dict[NodeId, int], now: float) -> None:
        """After a while keep less urgent tasks off one node, until this wide one fits in there."""
        gap = self.passed_over.setdefault(need, Gap(now))
        if now - gap.since < PASSED_OVER_S:
            return
        able = [name for name, member in self._members.items() if member.takes_work and fits(need, member)]
        if gap.node not in able:
            gap.node = min(able, key=lambda name: self._members[name].slots_held, default=None)
        room.pop(gap.node or "", None)

    def _live_queue(self, need: Need) -> list[tuple[int, int, TaskId]]:
        """The queue, its head a task that is really ready. Tasks leave by being forgotten here, lazily."""
        queue = self._ready.get(need, [])
        while queue:
            _, czxid, task_id = queue[0]
            entry = self._tasks.get(task_id)
            if entry is not None and entry.czxid == czxid and entry.phase is Phase.READY and entry.need == need:
                return queue
            heapq.heappop(queue)
        self._ready.pop(need, None)
        return queue
