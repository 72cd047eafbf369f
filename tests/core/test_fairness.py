"""Who goes first: priority, then the submitter whose turn it is, then age; and nothing waits for ever."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.core.scene import cluster, decided, drop, line, lists, node
from zkd.core.dispatch import Dispatch
from zkd.core.fairness import JOURNAL_MAX, SUBMITTERS_REMEMBERED, Submitters, Turns
from zkd.core.queues import AGED_EVERY
from zkd.records import Attempt


def serve(mind: Dispatch, count: int, now: float = 1.0) -> list[str]:
    """The next ids that a single slot is given, each ending before the next."""
    order: list[str] = []
    while len(order) < count:
        given = [task_id for ids in lists(decided(mind, now)).values() for task_id in ids]
        if not given:
            return order
        order += given
        for task_id in given:
            mind.task_gone(task_id, now)
        now += 1.0
    return order


def owners(order: list[str]) -> str:
    return "".join(task_id[0] for task_id in order)


def test_submitters_take_turns_however_much_one_of_them_dropped() -> None:
    mind = cluster(node("a", 1))
    for n in range(100):
        drop(mind, f"x{n}", n, submitter="x")
    for n in range(3):
        drop(mind, f"y{n}", 100 + n, submitter="y")
    drop(mind, "z0", 200)
    assert owners(serve(mind, 7)) == "xyzxyxy"


def test_the_fewest_slots_held_go_first() -> None:
    mind = cluster(node("a", 4))
    for n in range(8):
        drop(mind, f"x{n}", n, submitter="x")
    assert lists(decided(mind)) == {"a": ["x0", "x1", "x2", "x3"]}
    for n in range(8):
        drop(mind, f"y{n}", 10 + n, submitter="y")
    for n in range(2):
        mind.task_gone(f"x{n}", 1.0)
    assert lists(decided(mind, 1.0)) == {"a": ["x2", "x3", "y0", "y1"]}
    mind.task_gone("y0", 2.0)
    assert lists(decided(mind, 2.0)) == {"a": ["x2", "x3", "y1", "y2"]}


def test_a_wide_task_counts_as_its_slots() -> None:
    mind = cluster(node("a", 4))
    drop(mind, "x0", 0, submitter="x", slots=3)
    drop(mind, "y0", 1, submitter="y")
    decided(mind)
    for n in range(1, 4):
        drop(mind, f"x{n}", 2 * n, submitter="x")
        drop(mind, f"y{n}", 2 * n + 1, submitter="y")
    mind.task_gone("y0", 1.0)
    assert "y1" in lists(decided(mind, 1.0))["a"]


def test_who_was_idle_has_saved_up_nothing() -> None:
    mind = cluster(node("a", 1))
    drop(mind, "y0", 0, submitter="y")
    for n in range(1, 30):
        drop(mind, f"x{n}", n, submitter="x")
    assert owners(serve(mind, 20)) == "y" + 19 * "x"
    for n in range(30, 40):
        drop(mind, f"y{n}", n, submitter="y")
    assert Counter(owners(serve(mind, 6, now=50.0))) == {"x": 3, "y": 3}


def test_priority_goes_before_fairness() -> None:
    mind = cluster(node("a", 1))
    for n in range(5):
        drop(mind, f"x{n}", n, submitter="x", priority=1)
    drop(mind, "y", 9, submitter="y")
    assert owners(serve(mind, 6)) == "xxxxxy"


def test_turns_are_taken_across_kernels_and_labels() -> None:
    mind = cluster(node("a", 1, kernels=("k", "l"), labels={"disk": "ssd"}))
    for n in range(10):
        drop(mind, f"x{n}", n, submitter="x", kernel="k")
        drop(mind, f"y{n}", 100 + n, submitter="y", kernel="l", labels={"disk": "ssd"})
    assert owners(serve(mind, 6)) == "xyxyxy"


def test_what_a_node_runs_when_a_leader_takes_over_counts() -> None:
    mind = cluster(node("a", 2))
    drop(mind, "x0", 0, submitter="x")
    mind.assignment_found("a", "a.1", [line("x0", 0)], 0.0)
    drop(mind, "x1", 1, submitter="x")
    drop(mind, "y1", 2, submitter="y")
    assert lists(decided(mind)) == {"a": ["x0", "y1"]}


def test_what_is_taken_back_counts_no_more() -> None:
    mind = cluster(node("a", 1), node("b", 1))
    drop(mind, "x0", 0, submitter="x")
    drop(mind, "y0", 1, submitter="y")
    decided(mind)
    lost = next(name for name, member in mind.members.items() if "x0" in member.held)
    mind.node_lost(lost, 1.0)
    decided(mind, 1.0)
    drop(mind, "x0", 0, version=1, submitter="x", attempts=[Attempt("node_loss", lost)], now=1.0)
    drop(mind, "y1", 3, submitter="y", now=1.0)
    mind.task_gone("y0", 2.0)
    (given,) = lists(decided(mind, 2.0)).values()
    assert given == ["x0"]


def test_the_oldest_is_not_passed_over_for_ever_by_more_urgent_ones() -> None:
    mind = cluster(node("a", 1))
    drop(mind, "old", 0, priority=-1000)
    for n in range(1, 50):
        drop(mind, f"n{n}", n, priority=1000)
    order = serve(mind, 20)
    assert order.index("old") == AGED_EVERY - 1


def test_a_task_for_one_node_is_not_passed_over_for_ever_either() -> None:
    """It competes for that node only, with tasks that could go anywhere."""
    mind = cluster(node("a", 1), node("b", 1))
    drop(mind, "pinned", 0, node="b", priority=-5)
    for n in range(1, 100):
        drop(mind, f"n{n}", n)
    order = serve(mind, 4 * AGED_EVERY)
    assert "pinned" in order


def test_an_edited_task_has_its_new_place() -> None:
    mind = cluster(node("a", 1))
    drop(mind, "busy", 0)
    decided(mind)
    drop(mind, "t", 1, priority=9)
    drop(mind, "u", 2, priority=5)
    drop(mind, "t", 1, version=1, priority=0, submitter="x")
    mind.task_gone("busy", 1.0)
    assert serve(mind, 2) == ["u", "t"]


def test_a_reader_far_behind_sees_what_has_changed() -> None:
    submitters = Submitters()
    turns = Turns(submitters)
    for n, name in enumerate("xyz"):
        turns.push(name, (n, name, 0))
        submitters.gave(name, n + 1)
    live = lambda aged: True  # noqa: E731
    assert turns.best(live) == (1, 1, (0, "x", 0))
    for _ in range(JOURNAL_MAX + 10):
        submitters.gave("other", 1)
        submitters.released("other", 1)
    submitters.released("z", 3)
    best = turns.best(live)
    assert best is not None
    assert best[2][1] == "z"


@pytest.mark.parametrize("holds", [0, 5])
def test_submitters_without_number_are_not_remembered_for_ever(holds: int) -> None:
    submitters = Submitters()
    for n in range(holds):
        submitters.gave(f"busy-{n}", 2)
    for n in range(3 * SUBMITTERS_REMEMBERED):
        submitters.gave(f"s{n}", 1)
        submitters.released(f"s{n}", 1)
    assert len(submitters._standings) <= 2 * SUBMITTERS_REMEMBERED
    assert submitters.held() == {f"busy-{n}": 2 for n in range(holds)}


def test_many_different_needs_are_all_served() -> None:
    """More lanes than are weighed at once, and none is overlooked."""
    mind = cluster(node("a", 1, memory=10**9))
    for n in range(300):
        drop(mind, f"t{n}", n, memory=1000 + 100 * n, priority=n % 3)
    assert sorted(serve(mind, 300)) == sorted(f"t{n}" for n in range(300))
