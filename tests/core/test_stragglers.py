"""A second copy of what is late: the first to end counts, and exactly one does."""

from __future__ import annotations

from typing import Any

from tests.core.scene import cluster, decided, drop, line, lists, mourned, node, taken_back
from zkd.core.commands import Assign, TakeBack
from zkd.core.dispatch import Dispatch
from zkd.core.stragglers import KERNELS_KEPT, KNOWN_MIN, LATE_MIN_S, TIMES_KEPT, Times
from zkd.records import Attempt, Limit, Node


def late(*others: Node, **fields: Any) -> Dispatch:
    """Node a holds `t` since 0.0, and tasks of its kernel take 0.1 s."""
    mind = cluster(node("a", 1))
    for _ in range(KNOWN_MIN):
        mind.times.ended("k", 0.1)
    drop(mind, "t", 7, speculative=True, **fields)
    assert lists(decided(mind)) == {"a": ["t"]}
    for other in others:
        mind.node_here(other, 0.0)
    assert decided(mind, LATE_MIN_S / 2) == []
    return mind


def copied(**fields: Any) -> Dispatch:
    """Nodes a and b hold `t`."""
    mind = late(node("b", 1), **fields)
    assert decided(mind, 1.0) == [Assign("b", "b.1", [line("t", 7)])]
    return mind


def test_a_late_task_is_given_to_a_second_node_by_the_same_line() -> None:
    mind = copied()
    assert sorted(mind.tasks["t"].holders) == ["a", "b"]
    assert decided(mind, 50.0) == [], "two are enough"


def test_what_is_long_by_nature_is_left_alone() -> None:
    mind = cluster(node("a", 1), node("b", 1))
    for _ in range(KNOWN_MIN):
        mind.times.ended("k", 10.0)
    drop(mind, "t", 7, speculative=True)
    decided(mind)
    for now in range(1, 20):
        assert decided(mind, float(now)) == []
    assert lists(decided(mind, 20.0)) == {"b": ["t"]}


def test_only_what_asks_for_it_is_copied() -> None:
    mind = cluster(node("a", 1), node("b", 1))
    for _ in range(KNOWN_MIN):
        mind.times.ended("k", 0.1)
    drop(mind, "t", 7)
    decided(mind)
    assert decided(mind, 60.0) == []
    assert mind.next_timer() is None


def test_nothing_is_known_of_a_kernel_at_first() -> None:
    mind = cluster(node("a", 3), node("b", 3))
    drop(mind, "t", 99, speculative=True)
    for n in range(KNOWN_MIN):
        drop(mind, f"n{n}", n)
    decided(mind)
    for n in range(KNOWN_MIN - 1):
        mind.task_gone(f"n{n}", 0.1)
    decided(mind, 0.5)
    decided(mind, 30.0)
    assert mind.tasks["t"].copy is None
    mind.task_gone(f"n{KNOWN_MIN - 1}", 30.1)
    decided(mind, 31.5)
    assert mind.tasks["t"].copy is not None


def test_a_copy_takes_no_slot_that_somebody_waits_for() -> None:
    mind = late(node("b", 1))
    drop(mind, "u", 8, now=0.9)
    drop(mind, "v", 9, now=0.9)
    assert lists(decided(mind, 1.0)) == {"b": ["u"]}
    mind.task_gone("u", 1.5)
    assert lists(decided(mind, 2.0)) == {"b": ["v"]}
    mind.task_gone("v", 2.5)
    decided(mind, 2.5)
    assert lists(decided(mind, 3.0)) == {"b": ["t"]}


def test_a_copy_goes_only_where_the_task_could_run() -> None:
    others = node("b", 1, kernels=("other",)), node("c", 1, draining=True), node("d", 1, labels={"disk": "hdd"})
    mind = cluster(node("a", 1, labels={"disk": "ssd"}), *others)
    for _ in range(KNOWN_MIN):
        mind.times.ended("k", 0.1)
    drop(mind, "t", 7, speculative=True, labels={"disk": "ssd"})
    drop(mind, "u", 8, speculative=True, node="a")
    decided(mind)
    assert decided(mind, 9.0) == []


def test_a_copy_counts_against_the_limit_of_its_kernel() -> None:
    mind = late(node("b", 1))
    mind.limit_set("k", Limit(at_once=1), 0.5)
    decided(mind, 0.5)
    decided(mind, 5.0)
    assert mind.tasks["t"].copy is None


def test_the_first_to_end_ends_it_and_the_other_is_told() -> None:
    mind = copied()
    mind.task_gone("t", 2.0)
    assert decided(mind, 2.0) == []
    assert lists(decided(mind, 2.5)) == {"a": [], "b": []}


def test_a_cancelled_one_is_mourned_if_both_holders_are_lost() -> None:
    mind = copied()
    mind.task_gone("t", 2.0)
    mind.node_lost("a", 2.1)
    assert mourned(decided(mind, 2.1)) == ["t"]
    mind.mourned("t")
    mind.node_lost("b", 2.2)
    assert mourned(decided(mind, 2.2)) == ["t"]  # refused where it has a result


def test_if_one_of_the_two_is_lost_the_other_goes_on() -> None:
    for lost, left in (("a", "b"), ("b", "a")):
        mind = copied()
        mind.node_lost(lost, 2.0)
        assert taken_back(decided(mind, 2.0)) == []
        assert mind.tasks["t"].holders == [left]
        mind.node_lost(left, 3.0)
        assert decided(mind, 3.0) == [
            TakeBack("t", 0, Attempt("node_loss", left, f"{left} was lost while it held the task"))
        ]


def test_after_a_loss_there_may_be_another_copy() -> None:
    mind = copied()
    mind.node_here(node("c", 1), 2.0)
    mind.node_lost("a", 2.0)
    assert lists(decided(mind, 2.0)) == {"c": ["t"]}


def test_a_retry_by_one_shuts_out_the_other() -> None:
    mind = copied(retries=1)
    mind.task_moved("t")
    drop(mind, "t", 7, version=1, speculative=True, retries=1, attempts=[Attempt("error", "b")], now=2.0)
    assert list(mind.members["a"].held) == list(mind.members["b"].held) == []
    decided(mind, 2.0)
    commands = decided(mind, 2.5)
    assert sorted(lists(commands).values()) == [[], ["t"]]
    assert [command.tasks for command in commands if isinstance(command, Assign) and command.tasks] == [
        [line("t", 7, 1, 2)]
    ]


def test_a_hand_back_by_one_shuts_out_the_other() -> None:
    mind = copied()
    mind.node_state("a", "draining")
    drop(mind, "t", 7, version=1, speculative=True, attempts=[Attempt("drain", "a")], now=2.0)
    assert lists(decided(mind, 2.0)) == {"b": ["t"]}
    assert mind.tasks["t"].holders == ["b"]
    assert mind.tasks["t"].line == line("t", 7, 1)


def found(mind: Dispatch, *holders: str, speculative: bool = True) -> Dispatch:
    drop(mind, "t", 7, speculative=speculative)
    for name in holders:
        mind.assignment_found(name, f"{name}.1", [line("t", 7)], 0.0)
    return mind


def test_a_new_leader_leaves_both_copies_where_they_are() -> None:
    mind = found(cluster(node("a"), node("b"), node("c")), "a", "b")
    assert decided(mind) == []
    assert sorted(mind.tasks["t"].holders) == ["a", "b"]


def test_a_new_leader_takes_nothing_back_that_a_second_node_still_holds() -> None:
    for order in (("lost", "b"), ("b", "lost")):
        mind = found(cluster(node("b")), *order)
        assert decided(mind) == []
        assert mind.tasks["t"].holders == ["b"]


def test_a_new_leader_takes_back_what_two_lost_nodes_held_once() -> None:
    mind = found(cluster(node("c")), "a", "b")
    assert [command.id for command in taken_back(decided(mind))] == ["t"]


def test_only_so_much_is_remembered() -> None:
    times = Times()
    for n in range(3 * TIMES_KEPT):
        times.ended("k", float(n))
    assert times.late_after_s("k") == 2 * (2.5 * TIMES_KEPT - 0.5)
    for n in range(2 * KERNELS_KEPT):
        times.ended(f"k{n}", 1.0)
    assert len(times._times) <= KERNELS_KEPT + 1
