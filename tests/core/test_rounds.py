"""A round counts each part exactly once, whoever is slow, fails, leaves or answers twice."""

from __future__ import annotations

import random

import pytest

from zkd.core.asks import Home, share_out
from zkd.core.rounds import (
    ANSWER_MAX_S,
    HOMELESS_MAX_S,
    Answered,
    Close,
    Failed,
    Forget,
    GiveUp,
    NodesChanged,
    Round,
    Send,
    Ticked,
    next_look_s,
    open_round,
    paces,
    step,
    waits_for,
)

HOMES = {0: Home(100, ("a", "b")), 1: Home(100, ("b", "c")), 2: Home(100, ("c", "a")), 3: Home(100, ("b", "a"))}
ALL = frozenset("abc")


def opened(homes=HOMES, live=ALL) -> Round:
    return open_round(7, 1, homes, live, 0.0)[0]


def answered(state: Round, ask: int, now_s: float = 1.0):
    return step(state, Answered(7, 1, ask, state.asks.all[ask].parts), now_s)


def test_every_part_is_asked_for_once_and_the_load_is_even() -> None:
    state, commands = open_round(7, 1, HOMES, ALL, 0.0)
    assert commands == [Send(0, "a", (0,)), Send(1, "b", (1, 3)), Send(2, "c", (2,))]
    assert waits_for(state) == ["a: 1 part", "b: 2 parts", "c: 1 part"]


def test_a_round_closes_with_the_last_answer() -> None:
    state = opened()
    for ask in (2, 0):
        state, commands = answered(state, ask)
        assert commands == []
    state, commands = answered(state, 1)
    assert commands == [Close((0, 1, 2))]
    assert state.is_over


def test_a_second_answer_and_one_of_another_round_or_coordinator_change_nothing() -> None:
    state, _ = answered(opened(), 0)
    for event in (
        Answered(7, 1, 0, (0,)),
        Answered(6, 1, 1, (1, 3)),
        Answered(7, 2, 1, (1, 3)),
        Answered(7, 1, 99, (1,)),
        Failed(6, 1, 1, "old"),
        Failed(7, 1, 0, "after all"),
    ):
        assert step(state, event, 2.0) == (state, [])


def test_an_answer_that_counted_other_parts_is_a_failure() -> None:
    state, commands = step(opened(), Answered(7, 1, 1, (1,)), 1.0)
    assert commands == [Send(3, "a", (3,)), Send(4, "c", (1,))]
    assert state.asks.failures == {1: ("b",), 3: ("b",)}


def test_the_parts_of_a_lost_node_go_to_others_that_hold_them() -> None:
    state, commands = step(opened(), NodesChanged(frozenset("ac")), 1.0)
    assert commands == [Send(3, "a", (3,)), Send(4, "c", (1,))]
    for ask in (0, 2, 3):
        state, _ = answered(state, ask, 2.0)
    state, commands = answered(state, 4, 2.0)
    assert commands == [Close((0, 2, 3, 4))]


def test_what_a_lost_node_answered_before_still_counts() -> None:
    state, _ = answered(opened(), 1)
    state, commands = step(state, NodesChanged(frozenset("ac")), 1.0)
    assert commands == []
    state, _ = answered(state, 0)
    assert answered(state, 2)[1] == [Close((0, 1, 2))]


def late() -> Round:
    """b holds parts 1 and 3 of 100 rows among 1000, and is the last."""
    homes = {**HOMES, 4: Home(800, ("c",))}
    state, _ = open_round(7, 1, homes, ALL, 0.0)
    for ask in state.asks.all:
        if ask.node != "b":
            state, _ = step(state, Answered(7, 1, ask.number, ask.parts), 1.0)
    return state


def test_who_is_late_is_covered_and_the_first_to_be_complete_counts() -> None:
    state = late()
    slow = next(ask for ask in state.asks.all if ask.node == "b")
    due_s = next_look_s(state, 0.0)
    assert step(state, Ticked(), due_s - 0.001)[1] == []
    state, commands = step(state, Ticked(), due_s)
    assert {part for send in commands for part in send.parts} == set(slow.parts)
    assert all(send.node != "b" for send in commands)
    first = step(state, Answered(7, 1, slow.number, slow.parts), 61.0)[1]
    assert first[-1] == Close(tuple(sorted(ask.number for ask in state.asks.all if ask.covers is None)))
    assert first[:-1] == [Forget(send.ask, send.node) for send in commands]
    for send in commands:
        state, ended = step(state, Answered(7, 1, send.ask, send.parts), 61.0)
    counted = {ask.number for ask in state.asks.all} - {slow.number}
    assert ended == [Forget(slow.number, "b"), Close(tuple(sorted(counted)))]


def test_nobody_is_late_before_most_rows_are_in() -> None:
    state, _ = answered(opened(), 0, 0.01)
    assert step(state, Ticked(), 60.0)[1] == []


def test_a_late_ask_is_covered_once() -> None:
    state, commands = step(late(), Ticked(), 60.0)
    assert commands
    assert step(state, Ticked(), 60.01)[1] == []


def test_who_is_late_twice_is_covered_by_a_third() -> None:
    homes = {0: Home(10, ("a", "b", "c")), 1: Home(1000, ("d",))}
    state, _ = open_round(7, 1, homes, frozenset("abcd"), 0.0)
    state, _ = step(state, Answered(7, 1, 1, (1,)), 1.0)
    asked = []
    for now_s in (10.0, 20.0, 30.0):
        state, commands = step(state, Ticked(), now_s)
        asked += [send.node for send in commands]
    assert asked == ["b", "c"]
    assert step(state, Answered(7, 1, 3, (0,)), 31.0)[1] == [Forget(0, "a"), Forget(2, "b"), Close((1, 3))]


def test_when_the_cover_fails_the_late_one_is_waited_for() -> None:
    state, commands = step(late(), Ticked(), 60.0)
    for send in commands:
        state, more = step(state, Failed(7, 1, send.ask, "disk"), 61.0)
        assert more == []
    slow = next(ask for ask in state.asks.all if ask.node == "b")
    assert isinstance(step(state, Answered(7, 1, slow.number, slow.parts), 62.0)[1][-1], Close)


def test_when_the_cover_and_then_the_late_one_fail_somebody_is_asked_again() -> None:
    state, commands = step(late(), Ticked(), 60.0)
    for send in commands:
        state, _ = step(state, Failed(7, 1, send.ask, "disk"), 61.0)
    slow = next(ask for ask in state.asks.all if ask.node == "b")
    state, more = step(state, Failed(7, 1, slow.number, "disk"), 62.0)
    assert {part for send in more for part in send.parts} == set(slow.parts)


def test_a_part_that_fails_everywhere_ends_the_round_with_the_reason() -> None:
    state = open_round(7, 1, {0: Home(10, ("a", "b"))}, ALL, 0.0)[0]
    state, commands = step(state, Failed(7, 1, 0, "shape"), 1.0)
    assert commands == [Send(1, "b", (0,))]
    state, commands = step(state, Failed(7, 1, 1, "shape"), 1.0)
    assert commands == [Send(2, "a", (0,))]
    state, commands = step(state, Failed(7, 1, 2, "shape"), 1.0)
    assert commands == [GiveUp("part 0 failed on a, b, a; the last time: shape")]
    assert state.is_over


def test_the_loss_of_nodes_uses_nothing_up() -> None:
    state = open_round(7, 1, {0: Home(10, ("a", "b"))}, frozenset("ab"), 0.0)[0]
    for _ in range(10):
        for left in ("b", "a"):
            state, commands = step(state, NodesChanged(frozenset(left)), 1.0)
            assert not any(isinstance(command, GiveUp) for command in commands)
            state, _ = step(state, NodesChanged(frozenset("ab")), 1.0)
    waiting = state.asks.waiting()[-1]
    assert step(state, Answered(7, 1, waiting.number, (0,)), 2.0)[1] == [Close((waiting.number,))]


def test_a_part_without_a_live_home_waits_for_one() -> None:
    state, commands = open_round(7, 1, {0: Home(10, ("a",)), 1: Home(10, ("b",))}, frozenset("b"), 0.0)
    assert commands == [Send(0, "b", (1,))]
    assert waits_for(state) == ["b: 1 part", "part 0: no live node holds it"]
    state, commands = answered(state, 0)
    assert commands == []
    state, commands = step(state, NodesChanged(frozenset("ab")), 5.0)
    assert commands == [Send(1, "a", (0,))]
    assert step(state, Answered(7, 1, 1, (0,)), 6.0)[1] == [Close((0, 1))]


def test_a_part_that_moved_is_asked_for_where_it_is_now() -> None:
    state, _ = open_round(7, 1, {0: Home(10, ("a",))}, frozenset("a"), 0.0)
    state, commands = step(state, NodesChanged(frozenset("c")), 1.0)
    assert commands == []
    _, commands = step(state, NodesChanged(frozenset("c"), {0: Home(10, ("c",))}), 2.0)
    assert commands == [Send(1, "c", (0,))]


def test_no_wait_is_without_end() -> None:
    state, _ = open_round(7, 1, {0: Home(10, ("a",))}, frozenset(), 0.0)
    assert next_look_s(state, 0.0) == HOMELESS_MAX_S
    why = "part 0 lies on a, none of which was live for 600 s"
    assert step(state, Ticked(), HOMELESS_MAX_S)[1] == [GiveUp(why)]
    state = opened()
    assert next_look_s(state, 0.0) == ANSWER_MAX_S
    state, commands = step(state, Ticked(), ANSWER_MAX_S)
    assert {part for send in commands for part in send.parts} == set(HOMES)


def test_fast_nodes_get_more() -> None:
    homes = {part: Home(100, ("a", "b")) for part in range(10)}
    may = dict.fromkeys(homes, ("a", "b"))
    shared = share_out(homes, homes, may, {"a": 4.0, "b": 1.0}, {})
    assert (len(shared["a"]), len(shared["b"])) == (8, 2)


def test_pace_is_rows_a_second() -> None:
    state, _ = answered(opened(), 1, 4.0)
    assert paces(state) == {"b": 50.0}


@pytest.mark.parametrize("seed", range(200))
def test_whatever_happens_each_part_counts_once(seed: int) -> None:
    """Nodes answer, fail, leave, come back and dawdle at random; at last all are well, and the round ends."""
    rng = random.Random(seed)
    nodes = [f"n{number}" for number in range(rng.randint(1, 5))]
    homes = {
        part: Home(rng.randint(0, 1000), tuple(rng.sample(nodes, rng.randint(1, len(nodes)))))
        for part in range(rng.randint(1, 12))
    }
    live, now_s = set(nodes), 0.0
    state, commands = open_round(7, 1, homes, live, now_s)
    sent = {command.ask: command for command in commands if isinstance(command, Send)}
    for turn in range(400):
        now_s += rng.expovariate(1.0)
        is_calm = turn > 60
        draw = rng.random()
        if is_calm and live != set(nodes):
            live = set(nodes)
            event = NodesChanged(frozenset(live))
        elif draw < 0.5 and sent:
            send = sent[rng.choice(list(sent))]
            event = Answered(7, 1, send.ask, send.parts) if send.node in live else Ticked()
        elif draw < 0.55 and sent and not is_calm:
            event = Failed(7, 1, rng.choice(list(sent)), "chance")
        elif draw < 0.8 and not is_calm:
            live ^= {rng.choice(nodes)}
            event = NodesChanged(frozenset(live))
        else:
            event = Ticked()
        state, commands = step(state, event, now_s)
        sent |= {command.ask: command for command in commands if isinstance(command, Send)}
        for command in commands:
            if isinstance(command, Send):
                assert command.node in live
                assert all(command.node in homes[part].nodes for part in command.parts)
        if state.is_over:
            break
    assert state.is_over, waits_for(state)
    end = commands[-1]
    if isinstance(end, Close):
        counted = [part for number in end.asks for part in state.asks.all[number].parts]
        assert sorted(counted) == sorted(homes)
    else:
        assert isinstance(end, GiveUp)
        assert any(len(failures) >= 3 for failures in state.asks.failures.values())
