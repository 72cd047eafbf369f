"""Which nodes parts are placed on: decides, from who is here and what operators say, when the ring has to change.

    is here, weight > 0     in the ring, from SETTLE_S after it came: nodes that start together make one change
    is gone                 stays for the time of grace, named in `lost`: a restart moves nothing
    drained, or weight 0    out at once, though it goes on serving what it holds
    none of these is here   the ring stays as it is: parts belong somewhere, and those that come back may hold them

Times are a leader's own, monotonic. Who takes over gives everyone that is missing the whole time of grace again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from zkd.manifests import Keeper, Ring
from zkd.paths import NodeId
from zkd.records import Node, NodeState

SETTLE_S = 1.0
WEIGHT_MAX = 1e6


def keeper_of(node: Node) -> Keeper | None:
    """What a node that is here brings into the ring; None if it keeps no data or could not hand it out."""
    is_able = node.address is not None and node.data is not None  # one of an earlier zkd has no place for data
    if not is_able or not node.weight > 0:  # NaN is not, either
        return None
    return Keeper(node.node, weight=min(node.weight, WEIGHT_MAX), zone=node.zone)


@dataclass(slots=True)
class Muster:
    """Who is here, beside the ring that stands in the tree."""

    ring: Ring
    here: dict[NodeId, Keeper | None] = field(default_factory=dict)
    drained: set[NodeId] = field(default_factory=set)
    came_at: dict[NodeId, float] = field(default_factory=dict)  # of those here: when they came to be as they are
    missing_since: dict[NodeId, float] = field(default_factory=dict)  # of those in the ring that are not here

    # --- What happened ----------------------------------------------------------------------------------

    def ring_read(self, ring: Ring, now: float) -> None:
        self.ring = ring
        missing = {keeper.node for keeper in ring.keepers} - self.here.keys()
        self.missing_since = {node: self.missing_since.get(node, now) for node in missing}

    def node_here(self, node: NodeId, keeper: Keeper | None, now: float) -> None:
        if node not in self.here or self.here[node] != keeper:
            self.here[node] = keeper
            self.came_at[node] = now
        self.missing_since.pop(node, None)

    def node_gone(self, node: NodeId, now: float) -> None:
        self.here.pop(node, None)
        self.came_at.pop(node, None)
        if any(keeper.node == node for keeper in self.ring.keepers):
            self.missing_since.setdefault(node, now)

    def node_state(self, node: NodeId, state: NodeState, now: float) -> None:
        """What an operator said; a cordoned node keeps its data."""
        if state == "draining":
            self.drained.add(node)
        elif node in self.drained:
            self.drained.remove(node)
            if node in self.here:
                self.came_at[node] = now

    # --- What to do -------------------------------------------------------------------------------------

    def decide(self, now: float, grace_s: float, at: str) -> tuple[list[Keeper], dict[NodeId, str]] | None:
        """The keepers and the lost ones that should stand in the ring; None if they do. `at` is UTC, for people."""
        former = {keeper.node: keeper for keeper in self.ring.keepers}
        fit = self._fit()
        settles_at = self._settles_at()
        if settles_at is not None and now < settles_at:
            if not former:
                return None
            settled = {node: former[node] for node in fit if node in former}
            fit = settled or fit
        patient = {
            node: former[node]
            for node, since in self.missing_since.items()
            if now < since + grace_s and node not in self.drained
        }
        if fit:
            keepers = fit | patient
        else:
            keepers = former or {node: keeper for node, keeper in self.here.items() if keeper is not None}
        lost = {node: self.ring.lost.get(node, at) for node in keepers if node not in self.here}
        if keepers == former and lost == self.ring.lost:
            return None
        return [keepers[node] for node in sorted(keepers)], lost

    def next_timer(self, now: float, grace_s: float) -> float | None:
        """When to decide again, if nothing happens before."""
        times = [since + grace_s for since in self.missing_since.values()]
        settles_at = self._settles_at()
        if settles_at is not None:
            times.append(settles_at)
        return min((time for time in times if time > now), default=None)

    def _fit(self) -> dict[NodeId, Keeper]:
        return {node: keeper for node, keeper in self.here.items() if keeper is not None and node not in self.drained}

    def _settles_at(self) -> float | None:
        """When those that came, or changed, have to be in; the first of them waits longest for the others."""
        former = {keeper.node: keeper for keeper in self.ring.keepers}
        news = [self.came_at[node] for node, keeper in self._fit().items() if former.get(node) != keeper]
        return min(news) + SETTLE_S if news else None
