"""The asks of one round, as trees: who was asked for which parts, and who stands in for whom.

A node is asked for several parts at once and answers with one sum over them, so an answer counts as a whole or not at
all. An ask that is late, failed or lost its node is *covered*: other nodes that hold its parts are asked for them. The
first to be complete counts, the ask itself or all that cover it, and so on down the tree; the other side is dropped.

    ask 1 {a b c} at n1 -- late --> ask 4 {a} at n2, ask 5 {b c} at n3      counted: 1, or 4 and 5
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TypeAlias

NodeId: TypeAlias = str
Part: TypeAlias = int


@dataclass(frozen=True, slots=True)
class Home:
    """Where a part lies: how many rows it has, and the nodes with a good copy, the preferred one first."""

    rows: int
    nodes: tuple[NodeId, ...]


class AskState(Enum):
    WAITING = "waiting"
    ANSWERED = "answered"
    FAILED = "failed"  # or its node is lost


@dataclass(frozen=True, slots=True)
class Ask:
    """One request to one node. `covers` is the ask whose parts it stands in for; None for the first ones."""

    number: int
    node: NodeId
    parts: tuple[Part, ...]
    rows: int
    sent_s: float
    covers: int | None = None
    state: AskState = AskState.WAITING
    took_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Homeless:
    """A part that no live node holds, since when, and the ask it has to stand in for."""

    since_s: float
    covers: int | None


@dataclass(frozen=True, slots=True)
class Asks:
    """All asks of a round; an ask's number is its place. `failures` are the nodes where a part failed, one a time."""

    homes: Mapping[Part, Home]
    live: frozenset[NodeId]
    all: tuple[Ask, ...] = ()
    below: Mapping[int | None, tuple[int, ...]] = field(default_factory=dict)  # an ask -> those that cover it
    homeless: Mapping[Part, Homeless] = field(default_factory=dict)
    failures: Mapping[Part, tuple[NodeId, ...]] = field(default_factory=dict)

    def covering(self, number: int | None) -> Iterator[Ask]:
        """The asks that cover one; for None the first ones."""
        return (self.all[other] for other in self.below.get(number, ()))

    def with_ask(self, ask: Ask) -> Asks:
        """With an ask changed, or a new one added at the end."""
        if ask.number < len(self.all):
            return replace(self, all=(*self.all[: ask.number], ask, *self.all[ask.number + 1 :]))
        below = {**self.below, ask.covers: (*self.below.get(ask.covers, ()), ask.number)}
        return replace(self, all=(*self.all, ask), below=below)

    def counted(self, ask: Ask) -> list[int] | None:
        """The asks whose answers make up this one's parts: itself, or those that cover it; None if some are missing."""
        if ask.state is AskState.ANSWERED:
            return [ask.number]
        below = list(self.covering(ask.number))
        if sum(len(other.parts) for other in below) != len(ask.parts):
            return None
        numbers: list[int] = []
        for other in below:
            chosen = self.counted(other)
            if chosen is None:
                return None
            numbers += chosen
        return numbers

    def complete(self) -> tuple[int, ...] | None:
        """The answers that together count every part exactly once; None while some are missing."""
        numbers: list[int] = []
        for ask in self.covering(None):
            chosen = self.counted(ask)
            if chosen is None:
                return None
            numbers += chosen
        if any(lost.covers is None for lost in self.homeless.values()):
            return None
        parts = sorted(part for number in numbers for part in self.all[number].parts)
        assert parts == sorted(self.homes), few(parts)
        return tuple(sorted(numbers))

    def is_settled(self, ask: Ask) -> bool:
        """Whether its parts are counted already: by itself, by those that cover it, or further up."""
        above: Ask | None = ask
        while above is not None:
            if self.counted(above) is not None:
                return True
            above = None if above.covers is None else self.all[above.covers]
        return False

    def waiting(self) -> list[Ask]:
        """The asks that an answer is missed from."""
        return [ask for ask in self.all if ask.state is AskState.WAITING and not self.is_settled(ask)]

    def gaps(self, covers: int | None = None) -> Iterator[tuple[Ask, tuple[Part, ...]]]:
        """Failed asks, and which of their parts nobody is asked for any more. Nothing below an ask still waited for."""
        for ask in self.covering(covers):
            if ask.state is AskState.FAILED:
                held = {part for other in self.covering(ask.number) for part in other.parts}
                held |= {part for part, lost in self.homeless.items() if lost.covers == ask.number}
                if len(held) < len(ask.parts):
                    yield ask, tuple(part for part in ask.parts if part not in held)
                yield from self.gaps(ask.number)

    def may_have(self, part: Part, former: int | None) -> tuple[NodeId, ...]:
        """The live nodes that hold a part and were not tried for it, by the ask to be covered or before."""
        tried = set(self.failures.get(part, ()))
        while former is not None:
            tried.add(self.all[former].node)
            former = self.all[former].covers
        return tuple(node for node in self.live_homes(part) if node not in tried)

    def live_homes(self, part: Part) -> tuple[NodeId, ...]:
        return tuple(node for node in self.homes[part].nodes if node in self.live)

    def added(
        self, parts: Iterable[Part], covers: int | None, now_s: float, pace: Mapping[NodeId, float]
    ) -> tuple[Asks, list[Ask]]:
        """With new asks for these parts, at nodes not tried yet where there are such; the others become homeless."""
        parts = sorted(parts)
        may = {part: self.may_have(part, covers) or self.live_homes(part) for part in parts}
        busy: dict[NodeId, float] = defaultdict(float)
        for ask in self.all:
            if ask.state is AskState.WAITING:
                busy[ask.node] += ask.rows
        homeless = {part: lost for part, lost in self.homeless.items() if part not in may}
        homeless |= {part: Homeless(now_s, covers) for part in parts if not may[part]}
        asks, new = replace(self, homeless=homeless), []
        homed = [part for part in parts if may[part]]
        for node, chosen in share_out(homed, self.homes, may, pace, busy).items():
            rows = sum(self.homes[part].rows for part in chosen)
            new.append(Ask(len(asks.all), node, tuple(chosen), rows, now_s, covers))
            asks = asks.with_ask(new[-1])
        return asks, new


def share_out(
    parts: Iterable[Part],
    homes: Mapping[Part, Home],
    may: Mapping[Part, Sequence[NodeId]],
    pace: Mapping[NodeId, float],
    busy: Mapping[NodeId, float],
) -> dict[NodeId, list[Part]]:
    """Each part to the node, of those that may have it, that would be done first; large parts first.

    `busy` is how many rows a node has to go through already, `pace` its rows a second where that is known. Among equals
    the part's preferred node wins, so that the same nodes get the same parts round after round and find them in their
    page caches.
    """
    usual = statistics.median(pace.values()) if pace else 1.0
    load = {node: rows / pace.get(node, usual) for node, rows in busy.items()}
    shared: dict[NodeId, list[Part]] = defaultdict(list)
    for part in sorted(parts, key=lambda part: (-homes[part].rows, part)):
        rows = homes[part].rows
        done = {node: load.get(node, 0.0) + rows / pace.get(node, usual) for node in may[part]}
        chosen = min(done, key=done.__getitem__)  # the first of equals
        load[chosen] = done[chosen]
        shared[chosen].append(part)
    return {node: sorted(shared[node]) for node in sorted(shared)}


def few(parts: Sequence[Part]) -> str:
    """Part numbers for people, not all of them."""
    shown = ", ".join(map(str, sorted(parts)[:8]))
    return f"{shown} and {len(parts) - 8} more" if len(parts) > 8 else shown or "none"
