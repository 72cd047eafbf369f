"""How much work a node may hold: its slots, and a little ahead of them.

Work that lies ready at the node fills the gap between the end of one kernel and the arrival of the next
assignment, which takes two hops through ZooKeeper. Too much of it is unfair: what one node has queued,
another cannot start. So a node is given what it will finish in LEAD_S at the rate it showed lately;
nodes with long kernels get nothing ahead and start each task at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

LEAD_S = 0.05  # a few round trips of a durable write and its event, measured at 1-3 ms each, under load
RISE_S = 0.01  # how fast the rate follows when work gets quicker,
FALL_S = 0.25  # and when it gets slower or stops
LEAD_MAX_S = 0.5  # kernels that take longer are never queued ahead of the slots
AHEAD_MAX = 512  # keeps assign/<node> below 64 KiB and the loss of a node bearable


@dataclass(slots=True)
class Pace:
    """A node's rate of finished tasks, as an average that decays with time."""

    rate: float = 0.0
    at: float = 0.0
    pending: int = 0

    def finished(self, now: float) -> None:
        self.pending += 1
        elapsed = now - self.at
        if elapsed < 0.005:  # a burst of events from one transaction is one observation
            return
        seen = self.pending / elapsed
        weight = math.exp(-elapsed / (RISE_S if seen > self.rate else FALL_S))
        self.rate = self.rate * weight + seen * (1 - weight)
        self.pending = 0
        self.at = now

    def ahead(self, now: float, lead_s: float = LEAD_S) -> int:
        idle = max(0.0, now - self.at - lead_s)
        rate = self.rate * math.exp(-idle / FALL_S)
        return min(AHEAD_MAX, int(rate * lead_s))


@dataclass(slots=True)
class Lead:
    """How far ahead nodes are given work, by how long ZooKeeper takes for a write at present.

    From one assignment to the next that answers its end it is three: the list, the end, and what waits in line
    before either. A lead shorter than that lets the rate, and with it the lead, fall until each node has one
    task at a time: a flood of creates, which makes writes slow, would all but stop the work.
    """

    write_s: float = 0.0

    def wrote(self, took_s: float) -> None:
        self.write_s += (took_s - self.write_s) / 4

    @property
    def s(self) -> float:
        return min(LEAD_MAX_S, LEAD_S + 3 * self.write_s)
