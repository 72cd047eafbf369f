"""Stands: the nodes for which the tasks of some lanes wait, the least loaded first.

Lanes with the same labels, slots and kinds of nodes share one, so that what a node has to offer is looked at
once for all of them. A node without room for such a task is dropped; the journal tells when it gets roomier.
One that lacks only memory for the task in hand, or is kept free for another, stays.
"""

from __future__ import annotations

import heapq
from collections.abc import Container

from zkd.core.picture import Member
from zkd.core.room import Rank, Room
from zkd.paths import NodeId

Wanted = tuple[frozenset[int], tuple[tuple[str, str], ...], int]  # kinds, labels, slots


class Stand:
    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._nodes: list[Rank] = []
        self._read_to = -1

    def suits(self, member: Member) -> bool:
        """Whether this node could ever stand here."""
        kinds, labels, slots = self._wanted
        record = member.record
        return (
            member.kind in kinds
            and slots <= record.slots
            and all(record.labels.get(name) == value for name, value in labels)
        )

    def node(self, room: Room, memory: int | None, closed: Container[NodeId]) -> NodeId | None:
        """The least loaded node with room for such a task, but for those in `closed`."""
        self._catch_up(room)
        slots, nodes = self._wanted[2], self._nodes
        aside: list[Rank] = []
        found: NodeId | None = None
        while nodes:
            name = nodes[0][2]
            # It may have come back as another, without what made it suit.
            if not room.has(name, slots) or not self.suits(room.members[name]):
                heapq.heappop(nodes)
                continue
            rank = room.rank(name)
            if rank != nodes[0]:
                heapq.heapreplace(nodes, rank)
            elif name in closed or not room.has_memory(name, memory):
                aside.append(heapq.heappop(nodes))
            else:
                found = name
                break
        for rank in dict.fromkeys(aside):
            heapq.heappush(nodes, rank)
        return found

    def _catch_up(self, room: Room) -> None:
        names = room.roomier.since(self._read_to) if self._read_to >= 0 else None
        self._read_to = room.roomier.end
        if names is None or len(self._nodes) > 2 * len(room.members) + 64:
            suiting = (name for name, member in room.members.items() if self.suits(member))
            self._nodes = [room.rank(name) for name in suiting]
            heapq.heapify(self._nodes)
            return
        for name in set(names):
            member = room.members.get(name)
            if member is not None and self.suits(member):
                heapq.heappush(self._nodes, room.rank(name))
