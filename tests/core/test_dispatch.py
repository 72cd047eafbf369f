"""What the leader decides: events in, commands out."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.core.scene import cluster, decided, drop, ends, line, lists, mourned, node, taken_back
from zkd.core import dispatch
from zkd.core.catalogue import UNKNOWN_KERNEL_GRACE_S
from zkd.core.commands import Assign, End, Mourn, TakeBack
from zkd.core.credits import AHEAD_MAX
from zkd.core.dispatch import BACKOFF_MAX_S, ORPHAN_GRACE_S, TRIM_S, Dispatch, backoff_s
from zkd.errors import BadRecord
from zkd.records import NODE_LOSSES_MAX, Attempt, Cause, Fault, Node, NodeState


def test_a_task_goes_to_a_node_in_one_write() -> None:
    mind = cluster(node("a"))
    drop(mind, "t", 7)
    assert decided(mind) == [Assign("a", "a.1", [line("t", 7)])]


def test_all_that_is_due_for_a_node_is_one_write() -> None:
    mind = cluster(node("a", 3))
    for n in range(3):
        drop(mind, f"t{n}", n)
    assert decided(mind) == [Assign("a", "a.1", [line("t0", 0), line("t1", 1), line("t2", 2)])]


def test_the_same_news_twice_changes_nothing() -> None:
    mind = cluster(node("a"))
    for _ in range(2):
        drop(mind, "t", 7)
    assert lists(decided(mind)) == {"a": ["t"]}
    drop(mind, "t", 7)
    mind.node_here(node("a"), 0.0)
    assert decided(mind) == []


def test_slots_are_never_exceeded_without_a_proven_pace() -> None:
    mind = cluster(node("a", 2), node("b", 1))
    for n in range(10):
        drop(mind, f"t{n}", n)
    assert {name: len(ids) for name, ids in lists(decided(mind)).items()} == {"a": 2, "b": 1}


def test_work_ahead_is_bounded_however_fast_a_node_was() -> None:
    mind = cluster(node("a", 2))
    czxid = 0
    now = 0.0
    for _ in range(12):
        now += 0.006
        for entry in list(mind.members["a"].held.values()):
            mind.task_gone(entry.id, now)
        for _ in range(800):
            czxid += 1
            drop(mind, f"t{czxid}", czxid, now=now)
        decided(mind, now)
        assert mind.members["a"].slots_held <= 2 + AHEAD_MAX
    assert mind.members["a"].slots_held == 2 + AHEAD_MAX  # and it was reached, so the bound was at work


def test_a_node_that_slowed_down_gets_nothing_ahead() -> None:
    mind = cluster(node("a", 2))
    pace = mind.members["a"].pace
    for n in range(1, 50):
        pace.finished(n * 0.01)
        pace.finished(n * 0.01)
    assert pace.ahead(0.5) > 0
    assert pace.ahead(5.0) == 0


def test_priority_goes_first_then_age() -> None:
    mind = cluster(node("a", 1))
    drop(mind, "old", 1)
    drop(mind, "older", 0)
    drop(mind, "urgent", 9, priority=5)
    drop(mind, "urgent but later", 10, priority=5)  # not a name, so it is refused and not run
    drop(mind, "idle", 2, priority=-5)
    order = []
    now = 0.0
    for _ in range(4):
        now += 1.0
        (given,) = lists(decided(mind, now)).values()
        order += given
        mind.task_gone(given[0], now)
    assert order == ["urgent", "older", "old", "idle"]


def test_the_least_loaded_node_is_next_and_the_leader_first_among_equals() -> None:
    mind = cluster(node("c", 4), node("b", 2), node("a", 2), me="b")
    given = []
    for n in range(8):
        drop(mind, f"t{n}", n)
        given.append(next(name for name, ids in lists(decided(mind)).items() if f"t{n}" in ids))
    assert given == ["b", "a", "c", "c", "b", "a", "c", "c"]


def test_nobody_waits_behind_a_task_that_needs_something_else() -> None:
    mind = cluster(node("a", 2, labels={"disk": "ssd"}), node("b", 1, memory=100))
    drop(mind, "node", 0, node="absent", priority=9)
    drop(mind, "label", 1, labels={"gpu": "yes"}, priority=9)
    drop(mind, "memory", 2, memory=10**12, labels={"rack": "r1"}, priority=9)
    drop(mind, "wide", 3, slots=99, priority=9)
    drop(mind, "kernel", 4, kernel="absent", priority=9)
    drop(mind, "plain", 5)
    drop(mind, "ssd", 6, labels={"disk": "ssd"})
    given = lists(decided(mind))
    assert sorted(id_ for ids in given.values() for id_ in ids) == ["plain", "ssd"]


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"node": "b"}, "b"),
        ({"labels": {"disk": "ssd"}}, "c"),
        ({"labels": {"disk": "ssd", "rack": "1"}}, "c"),
        ({"slots": 8}, "d"),
        ({"memory": 101}, "d"),
        ({"kernel": "rare"}, "e"),
        ({"labels": {"disk": "hdd"}}, None),
        ({"node": "b", "labels": {"disk": "ssd"}}, None),
        ({"slots": 9}, None),
        ({"node": "a", "memory": 101}, None),
    ],
)
def test_a_task_goes_only_where_its_needs_are_met(fields: dict[str, Any], where: str | None) -> None:
    mind = cluster(
        node("a", memory=100),
        node("b", memory=100),
        node("c", memory=100, labels={"disk": "ssd", "rack": "1"}),
        node("d", 8, memory=200),
        node("e", memory=100, kernels=("k", "rare")),
    )
    drop(mind, "t", 1, **fields)
    assert lists(decided(mind)) == ({where: ["t"]} if where else {})


def test_a_wide_task_waits_for_its_whole_gap() -> None:
    mind = cluster(node("a", 2))
    drop(mind, "narrow", 1)
    decided(mind)
    drop(mind, "wide", 2, slots=2)
    assert decided(mind) == []
    mind.task_gone("narrow", 1.0)
    assert lists(decided(mind, 1.0)) == {"a": ["wide"]}


def test_a_wide_task_is_not_passed_over_for_ever_by_narrow_ones() -> None:
    mind = cluster(node("a", 2))
    for n in range(2):
        drop(mind, f"n{n}", n)
    decided(mind)
    drop(mind, "wide", 2, slots=2, priority=1)
    now = 0.0
    for n in range(2, 200):
        now += 0.1
        drop(mind, f"n{n}", n + 1, now=now)
        held = list(mind.members["a"].held)
        if held == ["wide"]:
            return
        mind.task_gone(held[0], now)  # one by one, so that a whole gap never opens by itself
        decided(mind, now)
    pytest.fail("198 younger and less urgent tasks went first")


# --- What cannot run --------------------------------------------------------------------------------------


def test_an_unknown_kernel_is_refused_after_its_grace() -> None:
    mind = cluster(node("a", kernels=("numpy.sum",)))
    drop(mind, "t", 5, kernel="numpy.sun", ttl_s=9.0, traceparent="00-1")
    assert decided(mind) == []
    assert mind.next_timer() == UNKNOWN_KERNEL_GRACE_S
    assert decided(mind, UNKNOWN_KERNEL_GRACE_S - 0.01) == []
    message = "no node has a kernel 'numpy.sun', did you mean 'numpy.sum'? (`zkd get kernels` lists the 1 there are)"
    fault = Fault("kernel", message, path="$.kernel")
    assert decided(mind, UNKNOWN_KERNEL_GRACE_S) == [End("t", 5, 0, "rejected", fault, "numpy.sun", 0, [], 9.0, "00-1")]
    assert mind.next_timer() is None


def test_a_kernel_whose_only_node_restarts_is_waited_for() -> None:
    mind = cluster(node("a"), node("b", kernels=("rare",)))
    mind.node_lost("b", 1.0)
    drop(mind, "t", 5, kernel="rare", now=1.0)
    again = cluster(node("a"))
    again.succeed(mind, {"t"})
    drop(again, "tried", 4, version=1, kernel="rarer", attempts=[Attempt("node_loss", "c")])
    drop(again, "t", 5, kernel="rare")
    assert decided(again, 60.0) == []
    again.node_here(node("b", kernels=("rare", "rarer"), life=2), 60.0)
    assert lists(decided(again, 60.0)) == {"b": ["tried", "t"]}


def test_a_kernel_that_arrives_within_the_grace_runs() -> None:
    mind = cluster(node("a"))
    drop(mind, "t", 5, kernel="rare")
    decided(mind)
    mind.node_here(node("b", kernels=("rare",)), 0.4)
    assert lists(decided(mind, 0.4)) == {"b": ["t"]}
    assert decided(mind, 10.0) == []
    assert mind.next_timer() is None


def test_without_any_node_nothing_is_refused_and_no_timer_spins() -> None:
    mind = cluster(node("a"))
    drop(mind, "t", 5, kernel="rare")
    decided(mind)
    mind.node_lost("a", 0.1)
    assert decided(mind, 9.0) == []
    timer = mind.next_timer()
    assert timer is None or timer > 9.0
    mind.node_here(node("b", kernels=("rare",)), 20.0)
    assert lists(decided(mind, 20.0)) == {"b": ["t"]}


def test_a_bad_record_is_refused_with_its_place() -> None:
    mind = cluster(node("a"))
    mind.task_read("t", 5, 3, BadRecord("$.priority", "expected `int`, got `str`"), age_s=0, now=0)
    fault = Fault("task", "$.priority: expected `int`, got `str`", path="$.priority")
    assert decided(mind) == [End("t", 5, 3, "rejected", fault, None, 0, [], None, None)]


@pytest.mark.parametrize("task_id", [".hidden", "a b", "é", "x" * 129, "-a", "a\n", "\uff41", "a/b"])
def test_an_id_that_is_no_name_is_refused(task_id: str) -> None:
    mind = cluster(node("a"))
    drop(mind, task_id, 5)
    (end,) = decided(mind)
    assert isinstance(end, End)
    assert (end.id, end.status, end.error.path) == (task_id, "rejected", "id")


def test_an_unreadable_task_is_refused() -> None:
    mind = cluster(node("a"))
    mind.task_unreadable("t", 5, 0, "its ACL does not let zkd read it", 0.0)
    assert ends(decided(mind)) == {"t": "rejected"}


def test_a_corrected_task_is_taken_at_its_new_version() -> None:
    mind = cluster(node("a"))
    mind.task_read("t", 5, 0, BadRecord("$", "no"), age_s=0, now=0)
    drop(mind, "t", 5, version=1)
    commands = decided(mind)
    assert lists(commands) == {"a": ["t"]}


# --- Time -------------------------------------------------------------------------------------------------


def test_a_delay_counts_from_the_creation() -> None:
    mind = cluster(node("a"))
    drop(mind, "t", 5, delay_s=10.0, age_s=4.0, now=100.0)
    assert decided(mind, 100.0) == []
    assert mind.next_timer() == 106.0
    assert decided(mind, 105.9) == []
    assert lists(decided(mind, 106.0)) == {"a": ["t"]}


def test_a_task_expires_before_it_is_started() -> None:
    mind = cluster(node("a", 1))
    drop(mind, "busy", 1)
    decided(mind)
    drop(mind, "t", 5, not_after_s=3.0, age_s=1.0)
    assert decided(mind, 1.9) == []
    (end,) = decided(mind, 2.0)
    assert isinstance(end, End)
    assert (end.id, end.status) == ("t", "expired")
    mind.task_gone("busy", 2.1)
    assert "t" not in lists(decided(mind, 2.1)).get("a", [])


def test_a_task_that_expires_while_delayed_ends_too() -> None:
    mind = cluster(node("a"))
    drop(mind, "t", 5, delay_s=10.0, not_after_s=3.0)
    assert ends(decided(mind, 3.0)) == {"t": "expired"}


def test_expiry_of_an_assigned_task_is_its_holders_business() -> None:
    mind = cluster(node("a"))
    drop(mind, "t", 5, not_after_s=3.0)
    decided(mind)
    assert decided(mind, 4.0) == []


def test_attempts_that_count_are_spaced_out_and_others_are_not() -> None:
    def due(*causes: Cause) -> float | None:
        mind = cluster(node("a"))
        drop(mind, "t", 5, version=len(causes), retries=9, attempts=[Attempt(cause, "a") for cause in causes])
        return None if decided(mind) else mind.next_timer()

    assert due("error") == pytest.approx(0.1)
    assert due("crash") == pytest.approx(0.1)
    assert due("timeout", "error", "crash") == pytest.approx(0.4)
    assert due("node_loss") is None
    assert due("drain") is None
    assert due("error", "drain") is None


def test_back_off_doubles_up_to_its_bound() -> None:
    waits = [backoff_s(n) for n in range(1, 100)]
    assert waits[:4] == [0.1, 0.2, 0.4, 0.8]
    assert max(waits) == waits[-1] == BACKOFF_MAX_S


# --- Nodes that go ----------------------------------------------------------------------------------------


def test_what_a_lost_node_held_runs_again_elsewhere() -> None:
    mind = cluster(node("a", 1), node("b", 1))
    drop(mind, "t", 5)
    drop(mind, "u", 6)
    decided(mind)
    mind.node_lost("b", 1.0)
    loss = Attempt("node_loss", "b", "b was lost while it held the task")
    assert decided(mind, 1.0) == [TakeBack("u", 0, loss)]
    mind.task_gone("t", 1.1)
    drop(mind, "u", 6, version=1, attempts=[loss], now=1.1)
    assert decided(mind, 1.1) == [Assign("a", "a.1", [line("u", 6, 1, 2)])]


def test_a_new_incarnation_means_that_the_old_one_is_lost() -> None:
    mind = cluster(node("a"))
    drop(mind, "t", 5)
    decided(mind)
    mind.node_here(node("a", life=2), 1.0)
    assert [command.id for command in taken_back(decided(mind, 1.0))] == ["t"]
    drop(mind, "t", 5, version=1, attempts=[Attempt("node_loss", "a")], now=1.0)
    assert decided(mind, 1.0) == [Assign("a", "a.2", [line("t", 5, 1, 2)])]


def test_a_list_stands_until_what_a_former_life_of_its_node_held_is_taken_back() -> None:
    mind = cluster(node("a", 0), node("b"))
    drop(mind, "t1", 1)
    decided(mind)
    drop(mind, "t2", 2)
    mind.node_here(node("b", life=2), now=1.0)
    commands = decided(mind, now=1.0)
    # Were the list overwritten now and the leader lost, nobody would know that t1 was tried.
    assert ([it.id for it in taken_back(commands)], lists(commands)) == (["t1"], {})
    drop(mind, "t1", 1, version=1, now=1.0, attempts=[Attempt("node_loss", "b")])
    assert lists(decided(mind, now=1.0)) == {"b": ["t2", "t1"]}


@pytest.mark.parametrize("how", ["gone", "unwritable", "unreadable"])
def test_a_node_does_not_wait_for_what_cannot_be_taken_back(how: str) -> None:
    mind = cluster(node("a", 0), node("b"))
    drop(mind, "t1", 1)
    decided(mind)
    drop(mind, "t2", 2)
    mind.node_here(node("b", life=2), now=1.0)
    decided(mind, now=1.0)
    if how == "gone":
        mind.task_gone("t1", 1.0)
    elif how == "unwritable":
        mind.task_unwritable("t1", 0)
    else:
        mind.task_unreadable("t1", 1, 0, "hidden", 0.0)
    assert lists(decided(mind, now=1.0)) == {"b": ["t2"]}


def test_losses_of_nodes_have_a_budget_of_their_own() -> None:
    losses = [Attempt("node_loss", f"n{n}") for n in range(NODE_LOSSES_MAX - 1)]
    mind = cluster(node("a"))
    drop(mind, "t", 5, attempts=losses)
    decided(mind)
    mind.node_lost("a", 1.0)
    assert len(taken_back(decided(mind, 1.0))) == 1  # the tenth loss: one more life

    losses = [*losses, Attempt("node_loss", "a")]
    mind.node_here(node("b"), 2.0)
    drop(mind, "t", 5, version=1, attempts=losses, now=2.0)
    decided(mind, 2.0)
    mind.node_lost("b", 3.0)
    (end,) = decided(mind, 3.0)
    assert isinstance(end, End)
    assert (end.status, end.is_dead, end.error.kind, end.version) == ("failed", True, "node_loss", 1)
    assert [attempt.cause for attempt in end.attempts] == ["node_loss"] * (NODE_LOSSES_MAX + 1)


def test_a_charged_history_does_not_shorten_the_budget_of_losses() -> None:
    mind = cluster(node("a"))
    attempts = [Attempt("error", "x")] * 50 + [Attempt("drain", "x")] * 50
    drop(mind, "t", 5, attempts=attempts, retries=60)
    decided(mind, 60.0)
    mind.node_lost("a", 61.0)
    assert len(taken_back(decided(mind, 61.0))) == 1


@pytest.mark.parametrize("state", ["draining", "cordoned"])
def test_a_node_out_of_service_gets_nothing_new_and_keeps_what_it_has(state: NodeState) -> None:
    mind = cluster(node("a", 3))
    drop(mind, "t", 5)
    decided(mind)
    mind.node_state("a", state)
    drop(mind, "u", 6)
    assert decided(mind) == []
    assert list(mind.members["a"].held) == ["t"]
    mind.node_state("a", "active")
    assert lists(decided(mind)) == {"a": ["t", "u"]}


def test_a_state_that_was_set_before_the_node_came_counts() -> None:
    mind = Dispatch("a")
    mind.node_state("a", "cordoned")
    mind.node_here(node("a"), 0.0)
    drop(mind, "t", 5)
    assert decided(mind) == []


def test_a_node_that_says_it_is_draining_gets_nothing_new() -> None:
    mind = cluster(node("a", draining=True))
    drop(mind, "t", 5)
    assert decided(mind) == []
    mind.node_here(node("a"), 1.0)
    assert lists(decided(mind, 1.0)) == {"a": ["t"]}


def test_a_task_that_is_handed_back_frees_its_slots() -> None:
    mind = cluster(node("a", 1))
    drop(mind, "t", 5)
    drop(mind, "u", 6)
    decided(mind)
    drop(mind, "t", 5, version=1, attempts=[Attempt("error", "a")], retries=3, now=1.0)
    assert lists(decided(mind, 1.0)) == {"a": ["u"]}


# --- A new leader -----------------------------------------------------------------------------------------


def test_a_new_leader_leaves_work_where_it_is() -> None:
    mind = cluster(node("a", 2))
    drop(mind, "t", 5, version=2)
    mind.assignment_found("a", "a.1", [line("t", 5, 2)], 0.0)
    assert decided(mind) == []
    drop(mind, "u", 6)
    assert lists(decided(mind)) == {"a": ["t", "u"]}


def test_a_new_leader_counts_the_slots_it_finds_taken() -> None:
    mind = cluster(node("a", 2), node("b", 1))
    drop(mind, "t", 5, slots=2)
    mind.assignment_found("a", "a.1", [line("t", 5)], 0.0)
    drop(mind, "u", 6)
    drop(mind, "v", 7)
    assert lists(decided(mind)) == {"b": ["u"]}


@pytest.mark.parametrize("incarnation", ["gone.1", "a.0"])
def test_a_new_leader_takes_back_what_the_lost_held(incarnation: str) -> None:
    mind = cluster(node("a"))
    drop(mind, "t", 5)
    mind.assignment_found(incarnation.partition(".")[0], incarnation, [line("t", 5)], 0.0)
    assert [command.id for command in taken_back(decided(mind))] == ["t"]


@pytest.mark.parametrize("stale", [line("t", 5, 0), line("t", 4, 1), line("t", 4, 9), line("other", 5, 1)])
def test_a_new_leader_ignores_lines_of_other_lives_and_versions(stale: object) -> None:
    mind = cluster(node("a"))
    drop(mind, "t", 5, version=1)
    mind.assignment_found("gone", "gone.1", [stale], 0.0)  # type: ignore[list-item]
    assert decided(mind) == [Assign("a", "a.1", [line("t", 5, 1)])]


def test_a_new_leader_tells_a_node_what_was_cancelled_before_its_time() -> None:
    mind = cluster(node("a"))
    mind.assignment_found("a", "a.1", [line("cancelled", 5)], 0.0)
    decided(mind)
    assert mind.next_timer() is not None
    assert decided(mind, TRIM_S) == [Assign("a", "a.1", [])]


def test_two_lists_that_name_one_task_give_it_to_one_node() -> None:
    mind = cluster(node("a"), node("b"))
    drop(mind, "t", 5)
    mind.assignment_found("a", "a.1", [line("t", 5)], 0.0)
    mind.assignment_found("b", "b.1", [line("t", 5)], 0.0)
    decided(mind)
    assert [name for name, member in mind.members.items() if member.held] == ["a"]


def test_a_delayed_task_that_somebody_holds_is_not_delayed_again() -> None:
    mind = cluster(node("a"))
    drop(mind, "t", 5, delay_s=10.0, age_s=9.0)
    mind.assignment_found("a", "a.1", [line("t", 5)], 0.0)
    assert decided(mind, 1.0) == []
    assert decided(mind, 20.0) == []
    assert list(mind.members["a"].held) == ["t"]


# --- Cancelling -------------------------------------------------------------------------------------------


def test_a_cancelled_task_in_the_queue_gets_its_result_from_the_leader() -> None:
    mind = cluster(node("a", 1))
    drop(mind, "busy", 1)
    decided(mind)
    history = [Attempt("error", "a", "no")]
    drop(mind, "t", 5, attempts=history, retries=3, ttl_s=8.0, traceparent="00-1")
    mind.task_gone("t", 0.0)
    assert decided(mind) == [Mourn("t", 5, 0, history, 8.0, "00-1")]


def test_a_cancelled_task_that_is_delayed_gets_its_result_from_the_leader() -> None:
    mind = cluster(node("a"))
    drop(mind, "t", 5, delay_s=99.0)
    mind.task_gone("t", 0.0)
    assert mourned(decided(mind)) == ["t"]


def test_a_task_that_came_and_went_unread_gets_its_result_from_the_leader() -> None:
    mind = cluster(node("a"))
    mind.task_gone("t", 0.0)
    assert mourned(decided(mind)) == ["t"]


def test_a_task_that_has_ended_is_not_mourned() -> None:
    mind = cluster(node("a"))
    drop(mind, "t", 5)
    decided(mind)
    mind.task_gone("t", 1.0)
    mind.task_gone("t", 1.1)  # a read on its way comes back with nothing
    assert mourned(decided(mind, 1.1)) == []


def test_the_holder_of_a_cancelled_task_is_told_and_publishes() -> None:
    mind = cluster(node("a"))
    drop(mind, "t", 5)
    decided(mind)
    mind.task_gone("t", 1.0)
    assert decided(mind, 1.0) == []
    assert mind.next_timer() == 1.0 + TRIM_S
    assert decided(mind, 1.0 + TRIM_S) == [Assign("a", "a.1", [])]


def test_a_cancelled_task_whose_holder_is_lost_is_mourned() -> None:
    mind = cluster(node("a"))
    drop(mind, "t", 5)
    decided(mind)
    mind.task_gone("t", 1.0)
    mind.node_lost("a", 1.0 + ORPHAN_GRACE_S)
    assert mourned(decided(mind, 6.0)) == ["t"]


def test_a_task_that_ended_long_before_its_node_was_lost_is_not_mourned() -> None:
    mind = cluster(node("a"))
    drop(mind, "t", 5)
    decided(mind)
    mind.task_gone("t", 1.0)
    mind.node_lost("a", 1.01 + ORPHAN_GRACE_S)
    assert mourned(decided(mind, 7.0)) == []


def test_a_task_cancelled_while_it_is_taken_back_is_mourned() -> None:
    mind = cluster(node("a"), node("b"))
    drop(mind, "t", 5)
    decided(mind)
    mind.node_lost("a", 1.0)
    assert len(taken_back(decided(mind, 1.0))) == 1
    mind.task_gone("t", 1.01)  # before its version moved on: its holder is gone, nobody else will tell
    assert mourned(decided(mind, 1.01)) == ["t"]


def test_a_task_that_the_leader_ended_is_not_mourned() -> None:
    mind = cluster(node("a"))
    mind.task_read("t", 5, 0, BadRecord("$", "no"), age_s=0, now=0)
    decided(mind)
    mind.task_gone("t", 0.1)
    assert decided(mind, 0.1) == []


def succeeded(former: Dispatch, *nodes: Node, there: set[str] = frozenset()) -> Dispatch:  # type: ignore[assignment]
    """The picture made anew after a lost connection."""
    mind = cluster(*nodes)
    mind.succeed(former, there)
    return mind


def test_what_was_cancelled_while_the_leader_was_cut_off_is_mourned() -> None:
    former = cluster(node("a", 1))
    drop(former, "held", 1)
    drop(former, "queued", 2)
    drop(former, "delayed", 3, delay_s=99.0)
    drop(former, "stays", 4)
    decided(former)
    assert mourned(decided(succeeded(former, node("a", 1), there={"stays"}))) == ["held", "queued", "delayed"]


def test_what_a_node_held_that_was_lost_meanwhile_is_mourned_too() -> None:
    former = cluster(node("a", 2), node("b", 2))
    drop(former, "t", 1)
    drop(former, "cancelled", 2)
    decided(former)
    former.task_gone("cancelled", 1.0)
    mind = succeeded(former, node("a", 2, life=2))
    assert sorted(mourned(decided(mind))) == ["cancelled", "t"]


def test_what_a_node_was_to_hold_that_is_still_here_is_mourned_too() -> None:
    """It may never have heard of it: the assignment was lost with the connection."""
    former = cluster(node("a", 1))
    drop(former, "before", 1)
    drop(former, "t", 2)
    decided(former)
    former.task_gone("before", 1.0)
    assert lists(decided(former, 1.0)) == {"a": ["t"]}
    former.task_gone("t", 1.0)
    assert mourned(decided(succeeded(former, node("a", 1)))) == ["before", "t"]


def test_a_task_that_was_being_refused_when_it_was_cancelled_is_mourned() -> None:
    former = cluster(node("a", 1))
    drop(former, "t", 1, dataset="d")
    decided(former)
    assert mourned(decided(succeeded(former, node("a", 1)))) == ["t"]


def test_mourning_that_was_interrupted_is_taken_up_again() -> None:
    former = cluster()
    drop(former, "t", 1)
    drop(former, "u", 2)
    former.task_gone("t", 0.0)
    former.task_gone("u", 0.0)
    assert mourned(decided(former)) == ["t", "u"]
    former.mourned("u")
    mind = succeeded(former)
    assert mourned(decided(mind)) == ["t"]
    mind.mourned("t")
    assert mourned(decided(succeeded(mind))) == []


# --- Lives ------------------------------------------------------------------------------------------------


def test_an_id_dropped_again_is_another_task() -> None:
    mind = cluster(node("a"))
    drop(mind, "t", 5, version=3)
    decided(mind)
    mind.task_gone("t", 1.0)
    drop(mind, "t", 9, now=1.0)
    assert decided(mind, 1.0) == [Assign("a", "a.1", [line("t", 9)])]


def test_a_new_life_seen_before_the_end_of_the_old_one_replaces_it() -> None:
    mind = cluster(node("a", 1))
    drop(mind, "t", 5, version=3)
    decided(mind)
    drop(mind, "t", 9, now=1.0)
    assert decided(mind, 1.0) == [Assign("a", "a.1", [line("t", 9)])]


def test_a_late_read_of_an_old_version_changes_nothing() -> None:
    mind = cluster(node("a"))
    drop(mind, "t", 5, version=3)
    decided(mind)
    drop(mind, "t", 5, version=2)
    drop(mind, "t", 4, version=9)
    assert decided(mind) == []
    assert mind.tasks["t"].version == 3


def test_the_ended_are_remembered_up_to_a_bound() -> None:
    mind = cluster(node("a"))
    for n in range(dispatch.ENDED_REMEMBERED + 10):
        mind.task_read(f"t{n}", n, 0, BadRecord("$", "no"), age_s=0, now=0)
        mind.task_gone(f"t{n}", 0.0)
    assert len(mind.ended) == dispatch.ENDED_REMEMBERED


def test_a_task_that_was_cancelled_between_a_retry_and_its_reading_is_mourned() -> None:
    """Its holder recorded the failed attempt, which ended the hold; then it was deleted before the leader read it."""
    mind = cluster(node("a"))
    drop(mind, "t", 1)
    decided(mind)
    mind.task_moved("t")
    mind.task_gone("t", 0.1)
    assert mourned(decided(mind, 0.1)) == ["t"]


def test_a_task_that_its_holder_ended_is_not_mourned() -> None:
    mind = cluster(node("a"))
    drop(mind, "t", 1)
    decided(mind)
    mind.task_gone("t", 0.1)
    assert mourned(decided(mind, 0.1)) == []


@pytest.mark.parametrize("fields", [{"delay_s": 86_400.0}, {"not_after_s": 86_400.0}])
def test_timers_of_tasks_that_are_gone_are_not_kept_until_they_are_due(fields: dict[str, Any]) -> None:
    mind = cluster(node("a", 1))
    for n in range(5_000):
        drop(mind, f"t{n}", n, now=float(n), **fields)
        decided(mind, float(n))
        mind.task_gone(f"t{n}", float(n))
    assert mind.sizes()["timers"] <= 1_002
    drop(mind, "kept", 9_999, now=5_000.0, **fields)
    for n in range(10_000, 13_000):
        drop(mind, f"t{n}", n, now=5_000.0, **fields)
        mind.task_gone(f"t{n}", 5_000.0)
    commands = mind.commands(91_401.0)
    assert "kept" in {*ends(commands), *lists(commands).get("a", [])}


def test_nodes_that_came_and_went_leave_nothing_behind() -> None:
    mind = cluster()
    for n in range(100):
        mind.node_state(f"n{n}", "draining")
        mind.node_here(node(f"n{n}"), 0.0)
        mind.node_lost(f"n{n}", 1.0)
        mind.node_state(f"n{n}", "active")
    assert (mind.sizes()["members"], mind.sizes()["states"]) == (0, 0)


@pytest.mark.parametrize("submitters", [1, 3])
def test_what_is_cancelled_behind_one_that_cannot_run_leaves_nothing_behind(submitters: int) -> None:
    mind = cluster(node("a"))
    drop(mind, "head", 1, labels={"rack": "r2"}, submitter="s0")
    for n in range(2, 5_000):
        drop(mind, f"t{n}", n, labels={"rack": "r2"}, submitter=f"s{n % submitters}", priority=n % 2)
        assert lists(decided(mind)) == {}
        mind.task_gone(f"t{n}", 0.0)
    assert mind.sizes()["queued"] < 600
    drop(mind, "tail", 6_000, labels={"rack": "r2"}, submitter="s1")
    mind.node_here(node("b", 2, labels={"rack": "r2"}), 1.0)
    assert lists(decided(mind, 1.0)) == {"b": ["head", "tail"]}


def test_a_node_that_comes_back_without_its_labels_gets_nothing_that_needs_them() -> None:
    ssd = {"disk": "ssd"}
    mind = cluster(node("a", 1, labels=ssd), node("c", 1, labels=ssd))
    drop(mind, "t", 1, labels=ssd)
    assert lists(decided(mind)) == {"a": ["t"]}
    mind.node_here(node("c", 1, life=2), 1.0)
    drop(mind, "u", 2, labels=ssd)
    assert lists(decided(mind, 1.0)) == {}


def test_a_task_that_is_hidden_while_it_waits_or_is_held_leaves_its_place() -> None:
    mind = cluster(node("a", 1))
    drop(mind, "held", 1)
    decided(mind)
    drop(mind, "waiting", 2)
    decided(mind)
    mind.task_unreadable("held", 1, 1, "hidden", 0.0)
    mind.task_unreadable("waiting", 2, 1, "hidden", 0.0)
    assert ends(decided(mind)) == {"held": "rejected", "waiting": "rejected"}
    mind.task_gone("held", 0.0)
    mind.task_gone("waiting", 0.0)
    drop(mind, "next", 3)
    assert lists(decided(mind)) == {"a": ["next"]}


def test_very_many_unknown_kernels_cost_the_leader_little() -> None:
    names = tuple(f"package.kernel_number_{number}" for number in range(600))
    mind = cluster(node("a", kernels=names))
    for number in range(2_000):
        drop(mind, f"t{number}", number + 1, kernel=f"package.kernel_numbre_{number}")
    mind.commands(0.0)
    began = time.process_time()
    messages = [command.error.message for command in mind.commands(1.0) if isinstance(command, End)]
    assert time.process_time() - began < 5  # each look for a name that is close takes 10 ms
    assert len(messages) == 2_000
    assert 1 <= sum("did you mean" in message for message in messages) <= 10


def test_what_waits_for_a_node_that_never_comes_leaves_nothing_behind() -> None:
    mind = cluster(node("a"))
    drop(mind, "waits", 1, labels={"rack": "r9"})
    decided(mind)
    for number in range(2, 1_000):
        drop(mind, f"t{number}", number, labels={"rack": "r9"})
        mind.commands(0.0)
        mind.task_gone(f"t{number}", 0.0)
        mind.mourned(f"t{number}")
        mind.commands(0.0)
    assert mind.sizes()["queued"] < 300
    assert mind.sizes()["shelved"] < 100
