"""Operators' limits on kernels: how many starts a second, and how many runs at once, in the whole cluster.

The rate is kept by the generic cell rate algorithm (ITU-T I.371), a token bucket of which only the time is kept
at which the next token is there. A limit that is new to this leader allows one start now and from then on the
rate, so that a change of leader exceeds it by one at most.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from zkd.records import Limit

BURST_S = 0.1  # what accrues in so long may start at once where `burst` does not say, and at least one
ROUNDING_S = 1e-6  # sums of intervals are not exact, and a burst is not to be one short for it
NEVER = float("inf")  # not by the passing of time


@dataclass(slots=True)
class Gate:
    limit: Limit
    open_at: float  # a start is allowed from then on

    def started(self, now: float) -> None:
        rate = self.limit.per_s
        if rate is not None:
            burst = self.limit.burst or max(1, int(rate * BURST_S))
            self.open_at = max(now - (burst - 1) / rate, self.open_at) + 1 / rate


class Limits:
    """The limits there are, and how much of each kernel is held."""

    def __init__(self) -> None:
        self._gates: dict[str, Gate] = {}
        self._held: Counter[str] = Counter()

    def __contains__(self, kernel: str) -> bool:
        return kernel in self._gates

    def set(self, kernel: str, limit: Limit | None, now: float) -> bool:
        """An operator's word. Whether the kernel has become limited, or is so no more."""
        known = self._gates.get(kernel)
        if limit is None:
            self._gates.pop(kernel, None)
            return known is not None
        if known is not None and known.limit == limit:
            return False
        open_at = now
        if known is not None and limit.per_s is not None:  # what was started under the old limit is not forgotten
            open_at = max(now, min(known.open_at, now + 1 / limit.per_s))
        self._gates[kernel] = Gate(limit, open_at)
        return known is None

    def opens_at(self, kernel: str, now: float) -> float:
        """When the next task of this kernel may be given out: now or before, later, or NEVER until one ends."""
        gate = self._gates.get(kernel)
        if gate is None:
            return now
        at_once = gate.limit.at_once
        if at_once is not None and self._held[kernel] >= at_once:
            return NEVER
        return gate.open_at - ROUNDING_S if gate.limit.per_s is not None else now

    def gave(self, kernel: str) -> None:
        self._held[kernel] += 1

    def started(self, kernel: str, now: float) -> None:
        """One that was not held before was given out: it counts against the rate."""
        if kernel in self._gates:
            self._gates[kernel].started(now)

    def released(self, kernel: str) -> None:
        self._held[kernel] -= 1
        if not self._held[kernel]:
            del self._held[kernel]

    def held(self, kernel: str) -> int:
        return self._held[kernel]

    def of(self, kernel: str) -> Limit | None:
        gate = self._gates.get(kernel)
        return None if gate is None else gate.limit
