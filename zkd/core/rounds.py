"""One round over all parts: whom to ask, when to ask somebody else, and whose answers to add up.

Each part counts exactly once, and none is ever left out to save time. Since sums of partials do not depend on their
grouping, it does not matter for the result which of two nodes was quicker. Vectors never come here: the caller keeps
each ask's answer under its number, and adds those that `Close` names.

    open_round -> Send...      Answered, Failed, NodesChanged, Ticked -> Send | Forget...      at last Close or GiveUp
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from zkd.core.asks import Ask, Asks, AskState, Home, NodeId, Part, few

LATE_SHARE = 0.75  # of all rows have to be in before anything is late
LATE_FACTOR = 1.5  # of the median time a row, as for MapReduce's backup tasks (Dean and Ghemawat, 2004, section 3.6)
LATE_MIN_S = 0.05  # below, asking twice costs more than waiting
FAILURES_MAX = 3  # of one part in one round; a node's loss is not its fault and does not count
ANSWER_MAX_S = 600.0  # then an ask has failed, whatever its node says of itself
HOMELESS_MAX_S = 600.0  # how long a round waits for a part that no live node holds


@dataclass(frozen=True, slots=True)
class Round:
    """A round's state. `fence` and `number` say which round answers have to belong to."""

    fence: int
    number: int
    asks: Asks
    is_over: bool = False


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer came. `parts` are those that it says it counted."""

    fence: int
    round: int
    ask: int
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Failed:
    """A node says that it cannot answer, and why."""

    fence: int
    round: int
    ask: int
    why: str


@dataclass(frozen=True, slots=True)
class NodesChanged:
    """The nodes that are live now, and where parts lie now if that has changed."""

    live: frozenset[NodeId]
    homes: Mapping[Part, Home] | None = None


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed; `next_look_s` says when this is due."""


Event: TypeAlias = Answered | Failed | NodesChanged | Ticked


@dataclass(frozen=True, slots=True)
class Send:
    ask: int
    node: NodeId
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Forget:
    """The node may stop working on an ask: its answer will not count."""

    ask: int
    node: NodeId


@dataclass(frozen=True, slots=True)
class Close:
    """The round is complete: add the answers to these asks. Every part is in exactly one of them."""

    asks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GiveUp:
    why: str


Command: TypeAlias = Send | Forget | Close | GiveUp
Step: TypeAlias = tuple[Round, list[Command]]


def open_round(
    fence: int,
    number: int,
    homes: Mapping[Part, Home],
    live: Collection[NodeId],
    now_s: float,
    pace: Mapping[NodeId, float] | None = None,
) -> Step:
    """A new round, and whom to ask. `pace`, rows a second (`paces`), tells fast nodes from slow ones."""
    assert homes, "a round needs at least one part"
    asks, new = Asks(dict(homes), frozenset(live)).added(homes, None, now_s, pace or {})
    return Round(fence, number, asks), _sent(new)


def step(state: Round, event: Event, now_s: float) -> Step:
    """What an event changes, and what is to be done. A round that is over takes no more part in anything."""
    if state.is_over:
        return state, []
    if isinstance(event, Answered):
        return _answered(state, event, now_s)
    if isinstance(event, Failed):
        return _failed(state, event, now_s)
    if isinstance(event, NodesChanged):
        return _nodes_changed(state, event, now_s)
    return _ticked(state, now_s)


def next_look_s(state: Round, now_s: float) -> float:
    """When `Ticked` is due, if nothing happens before."""
    late_s = _late_s_a_row(state.asks)
    times = [lost.since_s + HOMELESS_MAX_S for lost in state.asks.homeless.values()]
    for ask in state.asks.waiting():
        is_covered = ask.number in state.asks.below
        late = ANSWER_MAX_S if late_s is None or is_covered else max(late_s * ask.rows, LATE_MIN_S)
        times.append(ask.sent_s + min(late, ANSWER_MAX_S))
    return max(min(times, default=now_s + ANSWER_MAX_S), now_s + LATE_MIN_S)


def waits_for(state: Round) -> list[str]:
    """What the round waits for, for people: one line a node or a lost part."""
    by_node: dict[NodeId, int] = defaultdict(int)
    for ask in state.asks.waiting():
        by_node[ask.node] += len(ask.parts)
    lines = [f"{node}: {count} part{'s' * (count != 1)}" for node, count in sorted(by_node.items())]
    return lines + [f"part {part}: no live node holds it" for part in sorted(state.asks.homeless)]


def paces(state: Round) -> dict[NodeId, float]:
    """Rows a second of each node that answered in this round."""
    rows: dict[NodeId, int] = defaultdict(int)
    took_s: dict[NodeId, float] = defaultdict(float)
    for ask in state.asks.all:
        if ask.state is AskState.ANSWERED and ask.took_s > 0 and ask.rows > 0:
            rows[ask.node] += ask.rows
            took_s[ask.node] += ask.took_s
    return {node: rows[node] / took_s[node] for node in rows}


def _answered(state: Round, event: Answered, now_s: float) -> Step:
    ask = _meant(state, event)
    if ask is None:
        return state, []
    if tuple(sorted(event.parts)) != ask.parts:
        why = f"{ask.node} counted the parts {few(event.parts)} where it was asked for {few(ask.parts)}"
        return _failed(state, Failed(event.fence, event.round, event.ask, why), now_s)
    done = replace(ask, state=AskState.ANSWERED, took_s=max(now_s - ask.sent_s, 0.0))
    state = replace(state, asks=state.asks.with_ask(done))
    complete = state.asks.complete()
    return (state, []) if complete is None else _over(state, Close(complete))


def _failed(state: Round, event: Failed, now_s: float) -> Step:
    ask = _meant(state, event)
    if ask is None:
        return state, []
    failures = dict(state.asks.failures)
    for part in ask.parts:
        failures[part] = (*failures.get(part, ()), ask.node)
    asks = replace(state.asks.with_ask(replace(ask, state=AskState.FAILED)), failures=failures)
    return _mended(replace(state, asks=asks), now_s, event.why)


def _nodes_changed(state: Round, event: NodesChanged, now_s: float) -> Step:
    homes = state.asks.homes if event.homes is None else dict(event.homes)
    assert set(homes) == set(state.asks.homes), "a round is over the parts that it began with"
    asks = replace(state.asks, live=event.live, homes=homes)
    for ask in asks.all:
        if ask.state is AskState.WAITING and ask.node not in event.live:
            asks = asks.with_ask(replace(ask, state=AskState.FAILED))
    groups: dict[int | None, list[Part]] = defaultdict(list)
    for part, lost in sorted(asks.homeless.items()):
        if asks.live_homes(part):
            groups[lost.covers].append(part)
    commands: list[Command] = []
    for covers, parts in groups.items():
        asks, new = asks.added(parts, covers, now_s, {})
        commands += _sent(new)
    state, more = _mended(replace(state, asks=asks), now_s, "its node is gone")
    return state, [*commands, *more]


def _mended(state: Round, now_s: float, why: str) -> Step:
    """Asks others for what nobody is asked for any more; gives up where that has failed too often."""
    asks, commands = state.asks, list[Command]()
    for ask, parts in list(asks.gaps()):
        for part in parts:
            failures = asks.failures.get(part, ())
            if len(failures) >= FAILURES_MAX:
                return _over(state, GiveUp(f"part {part} failed on {', '.join(failures)}; the last time: {why}"))
        asks, new = asks.added(parts, ask.number, now_s, {})
        commands += _sent(new)
    return replace(state, asks=asks), commands


def _ticked(state: Round, now_s: float) -> Step:
    for part, lost in state.asks.homeless.items():
        if now_s - lost.since_s >= HOMELESS_MAX_S:
            nodes = ", ".join(state.asks.homes[part].nodes) or "no node"
            why = f"part {part} lies on {nodes}, none of which was live for {HOMELESS_MAX_S:.0f} s"
            return _over(state, GiveUp(why))
    commands: list[Command] = []
    late_s = _late_s_a_row(state.asks)
    for ask in state.asks.waiting():
        age_s = now_s - ask.sent_s
        if age_s >= ANSWER_MAX_S:
            why = f"{ask.node} gave no answer within {ANSWER_MAX_S:.0f} s"
            state, more = _failed(state, Failed(state.fence, state.number, ask.number, why), now_s)
            commands += more
            if state.is_over:
                return state, commands
        elif late_s is not None and age_s >= max(late_s * ask.rows, LATE_MIN_S) and _can_be_covered(state.asks, ask):
            asks, new = state.asks.added(ask.parts, ask.number, now_s, {})
            state = replace(state, asks=asks)
            commands += _sent(new)
    return state, commands


def _can_be_covered(asks: Asks, ask: Ask) -> bool:
    """Whether others hold all of its parts; some of them would not help."""
    return ask.number not in asks.below and all(asks.may_have(part, ask.number) for part in ask.parts)


def _over(state: Round, end: Close | GiveUp) -> Step:
    waiting = [ask for ask in state.asks.all if ask.state is AskState.WAITING and ask.node in state.asks.live]
    return replace(state, is_over=True), [*(Forget(ask.number, ask.node) for ask in waiting), end]


def _late_s_a_row(asks: Asks) -> float | None:
    """How many seconds a row an ask may take; None while too few rows are in to tell."""
    answered = [ask for ask in asks.all if ask.state is AskState.ANSWERED and ask.rows > 0]
    total = sum(home.rows for home in asks.homes.values())
    if not answered or sum(ask.rows for ask in answered) < LATE_SHARE * total:
        return None
    return LATE_FACTOR * statistics.median(ask.took_s / ask.rows for ask in answered)


def _meant(state: Round, event: Answered | Failed) -> Ask | None:
    """The ask that is answered. None for one of a former round or coordinator, and for a second answer."""
    if (event.fence, event.round) != (state.fence, state.number) or not 0 <= event.ask < len(state.asks.all):
        return None
    ask = state.asks.all[event.ask]
    return ask if ask.state is AskState.WAITING else None


def _sent(asks: list[Ask]) -> list[Command]:
    return [Send(ask.number, ask.node, ask.parts) for ask in asks]
