"""Which nodes have room, told without asking all of them.

A node's room grows only when something happens to it: a task of its ends, it joins, an operator speaks. Each
such node is noted in a journal, which others read on from where they stopped. So a turn costs as much as has
happened since the last one, however many nodes there are.
"""

from __future__ import annotations

from collections.abc import Mapping

from zkd.core.credits import Lead
from zkd.core.fairness import Journal
from zkd.core.picture import Member
from zkd.paths import NodeId

Rank = tuple[float, bool, NodeId]


class Room:
    """The members' room, and within one turn what is left of it."""

    def __init__(self, me: NodeId, members: Mapping[NodeId, Member]) -> None:
        self._me = me
        self.members = members
        self.roomier = Journal()  # nodes that may have more room than they had
        self.lead = Lead()
        self._left: dict[NodeId, int] = {}
        self._now = 0.0

    def begin(self, now: float) -> None:
        """A new turn: what nodes have is reckoned anew, for each when it is first asked for."""
        self._left.clear()
        self._now = now

    def left(self, node: NodeId) -> int:
        """How many slots' worth of narrow tasks this node may still be given in this turn."""
        left = self._left.get(node)
        if left is None:
            member = self.members.get(node)
            left = 0
            if member is not None and member.takes_work:
                ahead = member.pace.ahead(self._now, self.lead.s)
                left = member.record.slots + ahead - member.slots_held
                # A busy node is refilled by the handful: a write of assign/<node> costs the same for one task.
                if left <= ahead // 4:
                    left = 0
            self._left[node] = left
        return left

    def has(self, node: NodeId, slots: int) -> bool:
        """Whether there is room for such a task now. A wide one waits for a whole gap; only narrow ones queue ahead."""
        return self.left(node) > 0 and (slots == 1 or slots <= self.members[node].free_slots)

    def has_memory(self, node: NodeId, memory: int | None) -> bool:
        """Whether what the node holds leaves so much memory, as far as both are known."""
        member = self.members[node]
        return memory is None or member.memory is None or memory <= member.memory - member.memory_held

    def took(self, node: NodeId, slots: int) -> None:
        if node in self._left:
            self._left[node] -= slots

    def rank(self, node: NodeId) -> Rank:
        # The leader's own node comes first among equals: handing work to it saves two hops.
        member = self.members[node]
        return member.slots_held / member.record.slots, node != self._me, node
